"""What tells that data changed, in seconds: of bytes in memory all, of files names, sizes and their ends."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

END = 64 << 10  # bytes at each end of a file
MOST_FILES = 256  # of which the ends are read


def fingerprint(*parts: Any) -> str:
    """Of anything that JSON can tell: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def of_array(array: np.ndarray) -> str:
    """Of the bytes, the type and the shape of an array; of strings, of their text."""
    found = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    if array.dtype.kind == "O":
        for text in array.flat:
            data = text.encode() if isinstance(text, str) else bytes(text)
            found.update(len(data).to_bytes(8, "little") + data)
    else:
        for start in range(0, len(array), step := max(1, (64 << 20) // max(array[:1].nbytes, 1))):
            found.update(np.ascontiguousarray(array[start : start + step]).view(np.uint8).data)
    return found.hexdigest()[:16]


def of_files(files: Iterable[Path], root: Path) -> str:
    """Of files under `root`: relative names, sizes, and the first and last 64 KiB; no times.

    Of more than `MOST_FILES` the ends of so many, evenly spread, are read. A byte that changes in the middle
    of a large file is not seen.
    """
    files = sorted(files)
    step = -(-len(files) // MOST_FILES) or 1
    rows = []
    for i, file in enumerate(files):
        ends = _ends(file) if i % step == 0 else ""
        rows.append([file.relative_to(root).as_posix(), file.stat().st_size, ends])
    return fingerprint(rows)


def _ends(file: Path) -> str:
    with open(file, "rb") as stream:
        first = stream.read(END)
        stream.seek(max(file.stat().st_size - END, 0))
        return hashlib.sha256(first + stream.read(END)).hexdigest()
