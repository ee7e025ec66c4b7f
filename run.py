"""Flags and `main`: `python run.py --flagfile=mnist.flags`."""

import os
import sys

from trainer.errors import UserError
from trainer.flags.command_line import parse
from trainer.noise import quiet_start


def main(arguments: list[str]) -> int:
    """Runs the mode that the flags ask for and returns the exit status."""
    try:
        config = parse(arguments)
        with quiet_start():
            from trainer import modes
        return modes.run(config)
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before a mode takes signals over
        return 130
    except BrokenPipeError:  # whoever read the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
