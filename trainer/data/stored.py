"""What a split holds in memory: arrays, and examples of different lengths, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.errors import UserError


@dataclass(frozen=True)
class Flat:
    """Examples of different lengths, one after the other.

    Attributes:
      values: [sum of lengths, ...].
      lengths: int64 [examples].
    """

    values: np.ndarray
    lengths: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Where each example begins, int64 [examples]."""
        return np.cumsum(self.lengths) - self.lengths

    def __len__(self) -> int:
        """How many examples."""
        return len(self.lengths)

    def __getitem__(self, chosen: slice) -> "Flat":
        """The examples of a slice without steps."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        first, stop, _ = chosen.indices(len(self))
        return Flat(self.values[ends[first] : ends[max(stop, first)]], self.lengths[first:stop])


Stored = np.ndarray | Flat


def as_array(value: Any, where: str) -> Any:
    """What a user brings, as an array or, where examples differ in length, as `Flat`."""
    if isinstance(value, Flat | np.memmap):
        return value
    if isinstance(value, tf.RaggedTensor):
        return flat_of([row.numpy() for row in value], where)
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return flat_of(value, where)
    if array.ndim == 0:
        raise UserError(f"{where} is a single value, not an array of examples.")
    if array.dtype == object and not all(isinstance(x, str | bytes) for x in array.flat):
        if array.ndim == 1 and all(isinstance(x, np.ndarray | list | tuple) for x in array):
            return flat_of(list(array), where)
        raise UserError(f"{where} holds Python objects; give numbers or strings.")
    if array.dtype.kind not in "biufcOSU" and array.dtype.name not in ("bfloat16",):
        raise UserError(f"{where} is of type {array.dtype}; give numbers or strings, dates as numbers.")
    return array


def flat_of(rows: Sequence[Any], where: str) -> Flat:
    """Examples of different lengths, one after the other."""
    arrays = [np.asarray(row) for row in rows]
    odd = next((i for i, a in enumerate(arrays) if a.ndim == 0 or a.shape[1:] != arrays[0].shape[1:]), None)
    if odd is not None:
        raise UserError(
            f"{where}: example {odd} has shape {list(arrays[odd].shape)}, and example 0 "
            f"{list(arrays[0].shape)}: "
            "examples may differ in their first dimension only."
        )
    if any(a.dtype == object for a in arrays):
        raise UserError(f"{where} holds Python objects; give numbers or strings.")
    full = [a for a in arrays if len(a)] or arrays[:1]  # an empty list has no type of its own
    kinds = np.result_type(*{a.dtype for a in full})
    values = np.concatenate([a.astype(kinds) for a in arrays])
    return Flat(values, np.array([len(a) for a in arrays], np.int64))


def kept(array: Any, rows: np.ndarray) -> Any:
    """The rows of these numbers, as an array of its own."""
    if not isinstance(array, Flat):
        return array[rows]
    lengths = array.lengths[rows]
    starts = np.repeat(array.starts[rows] - (np.cumsum(lengths) - lengths), lengths)
    return Flat(array.values[starts + np.arange(len(starts))], lengths)


def joined(arrays: Sequence[Any]) -> Any:
    """Arrays of parts of a split, one after the other."""
    if len(arrays) == 1:
        return arrays[0]
    if isinstance(arrays[0], Flat):
        return Flat(np.concatenate([a.values for a in arrays]), np.concatenate([a.lengths for a in arrays]))
    return np.concatenate(arrays)


def parts_of(array: Any) -> tuple[np.ndarray, ...]:
    """The arrays that it is made of."""
    return (array.values, array.lengths) if isinstance(array, Flat) else (array,)


def _dtype(array: np.ndarray) -> Any:
    if array.dtype == np.float64:
        return keras.config.floatx()
    return tf.string if array.dtype.kind in "OSU" else array.dtype


def stored(array: np.ndarray) -> np.ndarray:
    """The array in the type that a model gets it in."""
    kind = _dtype(array)
    if kind == tf.string:
        return array if array.dtype.kind == "S" else array.astype(object)
    return np.asarray(array.astype(kind, copy=False))


def as_stored(array: Any) -> Any:
    """As `stored`, of examples of different lengths, too."""
    return Flat(stored(array.values), array.lengths) if isinstance(array, Flat) else stored(array)


def spec_of(array: Any) -> tf.TensorSpec:
    """Of one example."""
    if isinstance(array, Flat):
        return tf.TensorSpec([None, *array.values.shape[1:]], tf.as_dtype(_dtype(array.values)))
    return tf.TensorSpec(array.shape[1:], tf.as_dtype(_dtype(array)))
