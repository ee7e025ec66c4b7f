"""One training process in a working directory at a time."""

import fcntl
import os
import stat
from pathlib import Path
from typing import Self

from trainer.errors import UserError


class Lock:
    """`with Lock(workdir):` keeps other training processes out; reading needs no lock.

    The lock is the system's, on the directory itself: nothing in the directory can break or fake
    it, and it ends with the process however that ends. The file `.lock` tells the holder's process
    id, and is locked too, for file systems that cannot lock a directory (NFS).

    Raises UserError where another process holds it, or where the directory cannot be used.
    """

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self._held: list[int] = []  # file descriptors

    def __enter__(self) -> Self:
        """Makes the directory if need be and takes the lock, or raises at once."""
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._held = [os.open(self.workdir, os.O_RDONLY | os.O_DIRECTORY), *self._file()]
            if not any([_locked(descriptor) for descriptor in self._held]):
                raise OSError(None, "its file system has no locks")
            for file in self._held[1:]:
                os.ftruncate(file, 0)
                os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            pid = self._pid()
            self.__exit__()
            raise UserError(
                f"--workdir={self.workdir} is in use by another training process{pid}. Wait for "
                "it, stop it, or name another --workdir; --mode=evaluate can run beside it."
            ) from None
        except OSError as error:
            self.__exit__()
            raise UserError(
                f"--workdir={self.workdir} cannot be used: {error.strerror}. "
                "Make it a writable directory with room, or name another."
            ) from error
        return self

    def check(self) -> None:
        """Refuses to go on where the directory of this name is no longer the one that is locked.

        A process without the lock (another worker than the first) has nothing to check.

        Raises:
          UserError: it was moved, deleted or replaced.
        """
        if not self._held:
            return
        try:
            found = os.stat(self.workdir)
        except OSError:
            found = None
        if found is None or not os.path.samestat(found, os.fstat(self._held[0])):
            raise UserError(
                f"--workdir={self.workdir}: is no longer the directory that this run began in: it was moved, "
                "deleted or replaced. The run stops and saves nothing in another's place. Put the directory "
                "back and run the same command again: it goes on from the newest checkpoint there."
            )

    def __exit__(self, *_: object) -> None:
        """Gives the lock back. The file stays: removing it would race with the next process."""
        while self._held:
            os.close(self._held.pop())

    def _file(self) -> list[int]:
        """The open lock file; nothing where something else has its name, which is left alone."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            file = os.open(self.workdir / ".lock", flags, 0o644)
        except OSError:
            return []
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            return [file]
        os.close(file)
        return []

    def _pid(self) -> str:
        text = b"".join(os.pread(file, 20, 0) for file in self._held[1:]).strip()
        return f" (process {text.decode()})" if text.isdigit() else ""


def _locked(descriptor: int) -> bool:
    """Takes the lock; False where this file cannot have one, BlockingIOError where it is taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
