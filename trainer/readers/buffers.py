"""Memory for arrays that are read from files, which TensorFlow can take over without a copy.

TensorFlow keeps freed memory in a pool of its own. An array in NumPy's memory would have to be copied into
that pool, and a handed-over one would leave the pool holding what it replaced: a restore would need the
model's size again. So large arrays are read straight into memory of the pool.
"""

import ctypes
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import tensorflow as tf

ALIGNED = 64  # bytes, as TensorFlow's own allocator has it
LARGE = 1 << 24  # bytes from which memory of the pool is taken
PIECE = 1 << 24  # bytes of a large array that are looked at together
_READ = 1 << 22


def room(size: int) -> np.ndarray:
    """`size` bytes, aligned, not initialised, nobody else's."""
    if size < LARGE:
        whole = np.empty(size + ALIGNED, np.uint8)
        start = -whole.ctypes.data % ALIGNED
        return whole[start : start + size]
    with tf.device("CPU:0"):
        tensor = tf.raw_ops.Empty(shape=[size], dtype=tf.uint8)
    # A tensor is not to be written, but this one has just been made and nothing else knows it.
    memory = (ctypes.c_uint8 * size).from_address(np.asarray(memoryview(tensor)).ctypes.data)
    memory.owner = tensor  # type: ignore[attr-defined]  # lives as long as the array does
    return np.ctypeslib.as_array(memory)


def fill(file: IO[bytes], size: int) -> np.ndarray:
    """The next `size` bytes of a file, or of a member of an archive.

    Raises:
      ValueError: it ends before.
    """
    into = room(size)
    view, at = into.data, 0
    while at < size:
        count = file.readinto(view[at : at + _READ])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("its data are cut short")
        at += count
    return into


@contextmanager
def opened(place: Path, offset: int) -> Iterator[IO[bytes]]:
    """A file, to be read from `offset`."""
    with place.open("rb") as file:
        file.seek(offset)
        yield file


@contextmanager
def member(place: Path, name: str, skipped: int = 0) -> Iterator[IO[bytes]]:
    """A member of a zip archive without its first bytes; it is to be read to its end, for its checksum.

    Raises:
      ValueError: there is more of it than was read.
    """
    with zipfile.ZipFile(place) as archive, archive.open(name) as file:
        file.read(skipped)
        yield file
        if file.read(1):
            raise ValueError("it has more data than it announces")


def rows(shape: Sequence[int], size: int) -> Iterator[slice]:
    """Slices of the first axis of about `PIECE` bytes each, of an array of `size` bytes."""
    step = max(1, shape[0] * PIECE // max(size, 1))
    yield from (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))
