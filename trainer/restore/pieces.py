"""Large arrays without a second copy of them in memory: checksums in pieces, assignment by handing over."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.readers import buffers

_LARGE = 1 << 25  # bytes of an array that is handed over
_SHARED = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")


def checksum(*arrays: np.ndarray) -> str:
    """SHA-256 of the bytes of arrays in C order, one after another."""
    digest = hashlib.sha256()
    for array in arrays:
        for piece in cut(array):
            update(digest, piece)
    return digest.hexdigest()


def checksum_of(variable: Any) -> str:
    """SHA-256 of the bytes of a `tf.Variable`'s value, on one device."""
    value = variable.read_value()
    known = _on_cpu(variable) and variable.dtype.name in _SHARED
    # `numpy()` makes a copy.
    return checksum(np.asarray(memoryview(value)) if known else value.numpy())


def assign(variables: Sequence[Any], array: np.ndarray) -> None:
    """Assigns an array of the variables' shape and dtype to copies of a `tf.Variable` on several devices.

    A large array is handed over with its memory, which TensorFlow then owns: `assign` of an array makes two
    copies and keeps one for a while. Copies of a variable share the memory until one of them is written, as
    they do after any assignment of one tensor.
    """
    value: Any = array
    here = all(map(_on_cpu, variables)) and array.dtype.name in _SHARED
    if here and array.nbytes >= _LARGE:
        own = array if _ready(array) else _aligned(array)
        value = tf.experimental.dlpack.from_dlpack(own.__dlpack__())
    for variable in variables:
        variable.assign(value)


def _on_cpu(variable: Any) -> bool:
    return "CPU" in variable.device


def _ready(array: np.ndarray) -> bool:
    """Whether the memory can be handed over: in order, aligned, and nobody else's."""
    return bool(
        array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % buffers.ALIGNED == 0
    )


def _aligned(array: np.ndarray) -> np.ndarray:
    into = buffers.room(array.nbytes).view(array.dtype).reshape(array.shape)
    into[...] = array
    return into


def cut(array: np.ndarray) -> Iterator[np.ndarray]:
    """A large array in rows of its first axis; a small one as it is."""
    if array.nbytes <= buffers.PIECE or not array.ndim:
        yield array
    else:
        yield from (array[part] for part in buffers.rows(array.shape, array.nbytes))


def update(digest: Any, array: np.ndarray) -> None:
    """Adds the bytes of an array in C order to a checksum."""
    # As bytes: the 16-bit and 8-bit floats of ml_dtypes have no buffer of their own.
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
