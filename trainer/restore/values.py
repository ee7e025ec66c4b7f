"""The values that variables start from, each read when it is asked for: one array in memory at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trainer.readers import WeightsFile, buffers
from trainer.readers.source import np_dtype, size
from trainer.restore import pieces
from trainer.restore.decide import Decision


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
        """The array, read now; where it is turned or cast by rows, in little more memory than its own."""
        entry = self._entries[name]
        if not _in_rows(entry, self._source):
            return _fitted(entry, [self._source.read(part) for part in entry.sources])
        variable, start = entry.variable, 0
        dtype = np_dtype(variable.dtype.name)
        into = buffers.room(variable.bytes).view(dtype).reshape(variable.shape)
        for rows in self._source.pieces(entry.sources[0]):
            part = slice(start, start + len(rows))
            if entry.layout:
                into[..., part] = entry.layout.apply([rows])
            else:
                into[part] = rows
            start = part.stop
        return into

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
        digest, wanted = hashlib.sha256(), np_dtype(entry.variable.dtype.name)
        whole = fits and bool(entry.how) and not _in_rows(entry, self._source)
        for name in entry.sources:
            bad, lost = 0, 0
            for rows in self._source.pieces(name):
                pieces.update(digest, rows)
                bad += _not_finite(rows)
                lost += _not_finite(_cast(rows, wanted)) if rows.dtype != wanted and not whole else 0
            if bad:
                total = size(self._source.specs[name].shape)
                raise ValueError(f"{bad} of {total} values in the source are not finite ({name}).")
            _refuse_lost(lost, entry)
        self._stored[entry.variable.name] = digest.hexdigest()
        if whole:
            self[entry.variable.name]

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


def _in_rows(entry: Decision, source: WeightsFile) -> bool:
    """Whether the stored array is changed, and rows of it can be put in their place one after another."""
    cast = source.specs[entry.sources[0]].dtype != entry.variable.dtype.name
    one_by_one = entry.layout.by_rows if entry.layout else cast
    return one_by_one and not entry.adapt and bool(entry.variable.shape)


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
    cast = _cast(array, np_dtype(variable.dtype.name))
    if cast is not array or len(arrays) > 1 or entry.adapt:
        _refuse_lost(_not_finite(cast), entry)
    # Not made contiguous: that would be a second copy of a large array that was transposed.
    return cast


def _cast(array: np.ndarray, wanted: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array if array.dtype == wanted else array.astype(wanted)


def _refuse_lost(count: int, entry: Decision) -> None:
    if count:
        raise ValueError(f"{count} values are too large for {entry.variable.dtype.name}.")


def _not_finite(array: np.ndarray) -> int:
    # ml_dtypes' floats have kind V or f; isfinite knows them all. In pieces: no mask of the whole is made.
    if array.dtype.kind not in "fcV":
        return 0
    return sum(int(np.count_nonzero(~np.isfinite(piece))) for piece in pieces.cut(array))
