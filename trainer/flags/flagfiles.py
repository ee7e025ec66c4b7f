"""What stands in a flagfile, line by line, and what its writer meant otherwise than it would be read."""

import contextlib
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

from trainer.errors import UserError, near

_BYTES = 1 << 20  # of a flagfile; what is larger is none


def lines(text: str) -> tuple[Path, list[str]]:
    """The real path of the flagfile `text`, and its lines.

    Raises:
      UserError: there is none, it is not text, or it is something that could be read for ever.
    """
    path = Path(text)
    try:
        path = path.expanduser().resolve()
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes would wait
        with contextlib.closing(os.fdopen(descriptor, "rb")) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(0, "not a file, but a directory, a device or a pipe")
            data = file.read(_BYTES + 1)
        if len(data) > _BYTES:
            raise OSError(0, f"more than {_BYTES:,} bytes")
        return path, data.decode().splitlines()
    except UnicodeDecodeError:
        reason = "not text"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RuntimeError) as error:  # a NUL in the path, or a ~ of nobody
        reason = str(error)
    raise UserError(f"--flagfile={text}: cannot be read: {reason.rstrip('.')}. {_beside(path)}")


def _beside(path: Path) -> str:
    """A sentence on the flagfiles that are where one was looked for."""
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.name.endswith(".flags")]
    except (OSError, ValueError):
        names = []
    return near(path.name, names) if names else "Give the path of a file."


def check_line(line: str, where: str, known: Collection[str]) -> None:
    """Refuses a line that its writer meant otherwise than it would be read.

    Args:
      line: of a flagfile.
      where: the file and the line's number.
      known: names of flags.

    Raises:
      UserError: with file and line.
    """
    text = line.strip()
    if not text or line.startswith(("#", "//")):
        return
    if text.startswith(("#", "//")):
        raise UserError(f"{where}: {text!r}: a comment must start in the first column.")
    if not text.startswith("-"):
        raise UserError(
            f"{where}: {text!r}: not a flag. A line is --NAME=VALUE, or a comment that starts with #."
        )
    if match := re.search(r"\s#", text):
        raise UserError(
            f"{where}: {text!r}: {text[match.start() :].strip()!r} would be part of the value. Put "
            "the comment on a line of its own."
        )
    if match := re.search(rf"\s(?:--(\w+)|-({'|'.join(known)}))(=|\s|$)", text):
        raise UserError(
            f"{where}: {text!r}: a second flag, --{match[1] or match[2]}, on one line. Give it a line of "
            "its own."
        )
    value = text.partition("=")[2]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        raise UserError(f"{where}: {text!r}: quotes are part of the value in a flagfile. Remove them.")
