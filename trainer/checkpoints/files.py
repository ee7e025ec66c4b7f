"""Writing durably: a killed process leaves the old file or the new one, whole."""

import contextlib
import os
import secrets
from pathlib import Path


def sync(path: Path) -> None:
    """Waits until the file or directory is on the disk: a rename alone may overtake its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Waits until a directory with all that is in it is on the disk."""
    for path in [*directory.rglob("*"), directory]:
        sync(path)


def replace(path: Path, data: str | bytes) -> None:
    """Writes a file whole: aside, on the disk, then renamed into its place.

    Raises:
      OSError: it cannot be written; what was there before is as it was, and nothing lies beside it.
    """
    aside = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        with open(aside, "xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync(path.parent)
