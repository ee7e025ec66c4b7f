"""Writing durably: a killed process leaves the old file or the new one, whole."""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
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


@contextlib.contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A directory to write in, beside `target`, whose name it is to be given when all of it is there.

    What is not renamed is removed at the end, with the folders that were made for it; what killed processes
    left of earlier attempts at the same target is removed first. One that a process still writes is locked.

    Raises:
      OSError: it cannot be made.
    """
    folders = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in os.listdir(target.parent):
            if re.fullmatch(rf"\.tmp-{re.escape(target.name)}-[0-9a-f]{{8}}", name):
                _sweep(target.parent / name)
        folder = target.with_name(f".tmp-{target.name}-{secrets.token_hex(4)}")
        folder.mkdir()
        with _locked(folder):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        for parent in folders:
            with contextlib.suppress(OSError):  # it holds what was written
                parent.rmdir()


def _sweep(folder: Path) -> None:
    """Removes what a killed process has left, unless another still holds it."""
    with contextlib.suppress(OSError), _locked(folder):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError where another process holds it, or where it is no directory."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
