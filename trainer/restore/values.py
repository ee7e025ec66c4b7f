"""The values that variables start from, each read when it is asked for: one array in memory at a time."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trainer.readers import WeightsFile
from trainer.readers.source import np_dtype
from trainer.restore.decide import Decision
from trainer.restore.pieces import checksum

_PIECE = 1 << 20  # numbers looked at together


class Values(Mapping[str, np.ndarray]):
    """`{variable: array}` of what is restored, shaped and typed as the variable.

    Args:
      source: where the arrays come from.
      entries: what becomes of each variable.
    """

    def __init__(self, source: WeightsFile, entries: Sequence[Decision]) -> None:
        self._source = source
        self._entries = {entry.variable.name: entry for entry in entries if entry.sources}
        self._stored: dict[str, str] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        """The array, read now."""
        entry = self._entries[name]
        return _fitted(entry, [self._source.read(part) for part in entry.sources])

    def __iter__(self) -> Iterator[str]:
        """Names in the model's order."""
        return iter(self._entries)

    def __len__(self) -> int:
        """How many variables are restored."""
        return len(self._entries)

    def check(self, entry: Decision, fits: bool) -> None:
        """Reads one value and keeps the checksum of its stored bytes.

        Raises:
          ValueError: damaged, not finite, or too large for its variable; `fits` is false where the shape
            is known to be wrong, so that only the stored arrays are looked at.
        """
        arrays = [_finite(self._source, part) for part in entry.sources]
        self._stored[entry.variable.name] = checksum(*arrays)
        if fits:
            _fitted(entry, arrays)

    def stored(self, name: str) -> str:
        """SHA-256 of the bytes that the source holds for a variable; of several parts, one after another."""
        return self._stored[name]


def shape_of(entry: Decision, source: WeightsFile) -> tuple[int, ...]:
    """The shape that the entry's rules make of the stored arrays; reads nothing.

    Raises:
      ValueError, IndexError: they cannot be applied to such shapes.
    """
    zeros = [np.broadcast_to(np.zeros((), np.float32), source.specs[name].shape) for name in entry.sources]
    return _laid(entry, zeros, np.broadcast_to(np.zeros((), np.float32), entry.variable.shape)).shape


def _finite(source: WeightsFile, name: str) -> np.ndarray:
    """The stored array; ValueError where it is damaged or not finite."""
    array = source.read(name)
    if bad := _not_finite(array):
        raise ValueError(f"{bad} of {array.size} values in the source are not finite ({name}).")
    return array


def _laid(entry: Decision, arrays: Sequence[np.ndarray], initial: np.ndarray) -> np.ndarray:
    """The stored arrays as one, by the layout and then by `--init_adapt`."""
    if entry.adapt and entry.adapt.sources:
        return entry.adapt.combine(arrays, initial)
    array = entry.layout.apply(arrays) if entry.layout else arrays[0]
    return entry.adapt.apply(array, initial) if entry.adapt else array


def _fitted(entry: Decision, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The array as the variable takes it; ValueError where it cannot."""
    variable = entry.variable
    # What an adaptation leaves at its initial value comes from the variable as it is now.
    initial = variable.value.numpy() if entry.adapt else np.zeros(())
    array = _laid(entry, arrays, initial)
    wanted = np_dtype(variable.dtype.name)
    if array.dtype != wanted:
        with np.errstate(over="ignore"):
            array = array.astype(wanted)
        if bad := _not_finite(array):
            raise ValueError(f"{bad} values are too large for {variable.dtype.name}.")
    # Not made contiguous: that would be a second copy of a large array that was transposed.
    return array


def _not_finite(array: np.ndarray) -> int:
    # ml_dtypes' floats have kind V or f; isfinite knows them all. In pieces: no mask of the whole is made.
    if array.dtype.kind not in "fcV":
        return 0
    flat = array.reshape(-1)
    starts = range(0, flat.size, _PIECE)
    return sum(int(np.count_nonzero(~np.isfinite(flat[start : start + _PIECE]))) for start in starts)
