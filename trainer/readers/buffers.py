"""Memory for arrays that are read from files, which TensorFlow can take over without a copy.

TensorFlow keeps freed memory in a pool of its own. An array in NumPy's memory would have to be copied into
that pool, and a handed-over one would leave the pool holding what it replaced: a restore would need the
model's size again. So large arrays are read straight into memory of the pool.
"""

import ctypes
from pathlib import Path
from typing import IO

import numpy as np
import tensorflow as tf

ALIGNED = 64  # bytes, as TensorFlow's own allocator has it
LARGE = 1 << 24  # bytes from which memory of the pool is taken
_PIECE = 1 << 22


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
        count = file.readinto(view[at : at + _PIECE])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("its data are cut short")
        at += count
    return into


def part(place: Path, offset: int, size: int) -> np.ndarray:
    """`size` bytes of a file from `offset`.

    Raises:
      ValueError: it ends before.
    """
    with place.open("rb") as file:
        file.seek(offset)
        return fill(file, size)
