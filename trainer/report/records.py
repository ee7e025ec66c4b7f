"""`metrics.jsonl`: one JSON object a line, handed to the system whole and at once.

NaN and infinities are the strings "NaN", "Infinity" and "-Infinity".
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import UserError


class Records:
    """The records of a run. Nothing is opened or written before the first call that needs it.

    Args:
      workdir: where `metrics.jsonl` lies; None keeps no records.
    """

    def __init__(self, workdir: Path | None) -> None:
        self._workdir = workdir
        self._file: int | None = None
        self._lines, self._hash = 0, hashlib.sha256()

    @property
    def written(self) -> dict[str, Any]:
        """What the file holds as far as it is known here: the number of its lines, and their checksum."""
        return {"lines": self._lines, "sha256": self._hash.hexdigest()}

    def append(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a line; returns the record with Python's own numbers.

        Raises:
          UserError: it cannot be written.
        """
        text = json.dumps(record, default=lambda value: value.item())
        plain = json.loads(text)
        if self._workdir is None:
            return plain
        line = data = json.dumps(json.loads(text, parse_constant=str)).encode() + b"\n"
        size = None
        try:
            if self._file is None:
                self._workdir.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
                self._file = os.open(self._workdir / "metrics.jsonl", flags, 0o644)
            size = os.fstat(self._file).st_size
            while data:  # once, but for a disk that is full half-way
                data = data[os.write(self._file, data) :]
        except OSError as error:
            if self._file is not None and size is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, size)
            raise unwritable(self._workdir, error) from error
        self._count([line])
        return plain

    def trim(self, step: int, evaluated: bool = True) -> int:
        """Takes back what was logged after `step`, where a run starts; returns the lines dropped.

        Where `step` itself is still to be evaluated, `evaluated` is false, and its evaluations go too.
        The file is written anew aside and renamed; a line that a kill has torn goes too.

        Raises:
          UserError: it cannot be written.
        """
        if self._workdir is None:
            return 0
        path, aside = self._workdir / "metrics.jsonl", self._workdir / ".tmp-metrics.jsonl"
        self._lines, self._hash = 0, hashlib.sha256()
        try:
            aside.unlink(missing_ok=True)
            if not os.path.lexists(path):
                return 0
            lines = path.read_bytes().splitlines() if path.is_file() else []
            kept = [x + b"\n" for x in lines if _step_of(x) < step + (evaluated or not _is_evaluation(x))]
            with open(aside, "xb") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise unwritable(self._workdir, error) from error
        self._count(kept)
        return len(lines) - len(kept)

    def _count(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._lines += 1
            self._hash.update(line)

    def sync(self) -> None:
        """Waits until the file is on the disk: before a checkpoint that its lines go with.

        Raises:
          UserError: the disk says that it is not.
        """
        try:
            if self._file is not None:
                os.fsync(self._file)
        except OSError as error:
            assert self._workdir is not None
            raise unwritable(self._workdir, error) from error

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def unwritable(workdir: Path, error: Exception) -> UserError:
    """The error to raise where a record of the run cannot be written."""
    reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
    return UserError(
        f"The records of the run in {workdir} cannot be written: {reason}. Free some space "
        "or make it writable, then run the same command again: it goes on from the newest checkpoint."
    )


def _step_of(line: bytes) -> float:
    """The step of a line of metrics.jsonl; infinity where it is not a record."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
    return step if type(step) is int else math.inf


def _is_evaluation(line: bytes) -> bool:
    """Whether a line of metrics.jsonl that has a step is the result of an evaluation."""
    return _step_of(line) < math.inf and json.loads(line).get("kind") == "eval"
