"""The command line door: `python -m trainer`, the command `trainer`, and `python run.py`."""

import os
import sys
from pathlib import Path

from trainer.errors import UserError
from trainer.flags.command_line import parse
from trainer.noise import no_matplotlib, quiet_start


def main(arguments: list[str] | None = None) -> int:
    """Runs the mode that the flags ask for and returns the exit status.

    Args:
      arguments: the program's name and the flags; those of the process if None.
    """
    arguments = sys.argv if arguments is None else arguments
    try:
        config = parse(arguments)
        with quiet_start(), no_matplotlib():
            from trainer import modes  # imports TensorFlow, which a mistyped flag need not wait for
        return modes.run(config)
    except UserError as error:
        name = Path(arguments[0]).name
        print(f"{'trainer' if name == '__main__.py' else name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before a mode takes signals over
        return 130
    except BrokenPipeError:  # whoever read the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
