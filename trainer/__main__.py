"""The command line door: `python -m trainer`, the command `trainer`, and `python run.py`."""

import functools
import os
import resource
import sys
from pathlib import Path
from types import ModuleType

from trainer.errors import UserError, blame, message_of
from trainer.flags.command_line import parse
from trainer.noise import no_matplotlib, open_streams, quiet_start
from trainer.text import printable, shortened

_ADDRESSES = 2200 << 20  # bytes of virtual memory without which the imports do not come to an end


def main(arguments: list[str] | None = None) -> int:
    """Runs the mode that the flags ask for and returns the exit status.

    Args:
      arguments: the program's name and the flags; those of the process if None.
    """
    open_streams()
    arguments = sys.argv if arguments is None else arguments
    refuse = functools.partial(_refuse, Path(arguments[0]).name)
    mode = ""
    try:
        config = parse(arguments)
        mode = config.mode
        return _modes().run(config)
    except UserError as error:
        return refuse(message_of(error, lines=True))
    except SystemExit as error:  # not ours, so that what was asked for has not been done
        if not mode:
            raise  # --help
        return refuse(f"--mode={mode}: something {blame(error)}")
    except KeyboardInterrupt:  # before a mode takes signals over
        return 130
    except BrokenPipeError:  # whoever read the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as of SIGPIPE
    except (OSError, MemoryError) as error:  # of the machine: a limit, a disk, a file that went away
        return refuse(f"--mode={mode}: the run {blame(error)}")


def _modes() -> ModuleType:
    """The modes; imports TensorFlow, which a mistyped flag need not wait for."""
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend != "tensorflow":
        raise UserError(f"KERAS_BACKEND={backend}: this trains TensorFlow models. Unset it.")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < _ADDRESSES:  # what it imports would abort, or try to allocate for ever
        raise UserError(
            f"TensorFlow and Keras cannot be imported under these limits on memory: ulimit -v {limit >> 10}, "
            f"and they take about {_ADDRESSES >> 10}, training some more. Raise the limit."
        )
    try:
        with quiet_start(), no_matplotlib():
            import keras  # noqa: F401 (reads its settings)

            from trainer import modes
    except (Exception, SystemExit) as error:
        raise UserError(
            f"TensorFlow and Keras cannot be imported: {blame(error)}. Look at the installation, at the "
            "limits on memory, and at ~/.keras/keras.json, whose backend must be tensorflow."
        ) from error
    return modes


def _refuse(program: str, message: str) -> int:
    """Says it on standard error; the exit status of a run that was refused."""
    program = "trainer" if program == "__main__.py" else program
    print(shortened(printable(f"{program}: {message}")), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
