"""Objects of Python: to the source that they are."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf

from trainer.data.source import Source
from trainer.data.sources.arrays import Arrays
from trainer.data.sources.dataset import Datasets
from trainer.data.sources.sequence import Sequences
from trainer.errors import UserError

_OUGHT = (
    "a dictionary of arrays, anything with len() and [i], a tf.data.Dataset with its size (dataset, size), "
    "or "
    "a dictionary of these by split (docs/data.md)"
)


def as_dataset(given: Any, names: Sequence[str] = (), shuffle: int = 0, name: str = "data") -> Source:
    """Data of one's own with what the object itself does not tell; `Run(dataset=...)` takes either.

    Args:
      given: `{feature: array}`; anything with `len()` and `[i]`; a `tf.data.Dataset` of single examples or
        `(dataset, size)`; or a dictionary of these by split. What is a data set already is given back.
      names: of the parts of examples that are tuples.
      shuffle: of a `tf.data.Dataset`: examples that are shuffled at a time, by the seed and the epoch.
      name: what messages and the plan call it.

    Raises:
      UserError: it is none of these, or its examples cannot be used.

    Example:
      >>> import numpy as np, trainer
      >>> x, y = np.zeros([100, 28, 28, 1], "uint8"), np.zeros([100], "int64")
      >>> trainer.as_dataset((x, y), names=("image", "label")).sizes()
      {'train': 100}
    """
    if all(hasattr(given, part) for part in ("sizes", "spec", "elements")):
        return cast(Source, given)
    flag, splits = f"--dataset={name}", _by_split(given)
    kinds = {split: _kind(found, f"{flag}: split {split}", names) for split, found in splits.items()}
    if len(set(kinds.values())) > 1:
        raise UserError(f"{flag}: its splits are of different kinds: {kinds}. Give all alike.")
    kind = next(iter(kinds.values()))
    if shuffle and kind != "dataset":
        raise UserError(f"{flag}: shuffle={shuffle} is for a tf.data.Dataset; all else is shuffled whole.")
    if kind == "arrays":
        return Arrays(name, **{split: _named(found, names) for split, found in splits.items()})
    if kind == "dataset":
        return Datasets(name, {s: _sized(f, f"{flag}: split {s}", names) for s, f in splits.items()}, shuffle)
    return Sequences(name, splits, names)


def _by_split(given: Any) -> dict[str, Any]:
    """`{split: what it is}`."""
    if not isinstance(given, Mapping):
        return {"train": given}
    if given and all(_is_a_split(value) for value in given.values()):
        return {str(split): value for split, value in given.items()}
    return {"train": given}


def _is_a_split(value: Any) -> bool:
    """Whether a value of a dictionary is a split of its own, not an array."""
    if isinstance(value, Mapping | tf.data.Dataset):
        return True
    if isinstance(value, tuple) and value and isinstance(value[0], tf.data.Dataset):
        return True
    if isinstance(value, tuple) and value and all(hasattr(part, "shape") for part in value):  # (x, y)
        return True
    array_like = isinstance(value, np.ndarray | list | tuple | tf.Tensor | tf.RaggedTensor | str | bytes)
    return not array_like and not hasattr(value, "__array__") and _has_items(value)


def _has_items(value: Any) -> bool:
    return hasattr(type(value), "__len__") and hasattr(type(value), "__getitem__")


def _kind(found: Any, where: str, names: Sequence[str]) -> str:
    if isinstance(found, tf.data.Dataset):
        return "dataset"
    if isinstance(found, tuple) and found and isinstance(found[0], tf.data.Dataset):
        if len(found) != 2:
            raise UserError(f"{where}: is {len(found)} things; give (dataset, size).")
        return "dataset"
    if isinstance(found, Mapping):
        return "arrays"
    if isinstance(found, tuple) and all(hasattr(part, "shape") for part in found):
        if len(names) != len(found):
            raise UserError(
                f"{where}: is {len(found)} arrays without names. Give them: names=('image', 'label')."
            )
        return "arrays"
    if isinstance(found, str | bytes) or not _has_items(found):
        raise UserError(f"{where}: is {type(found).__name__}, not {_OUGHT}.")
    return "sequence"


def _named(found: Any, names: Sequence[str]) -> Mapping[str, Any]:
    return dict(zip(names, found, strict=True)) if isinstance(found, tuple) else found


def _sized(found: Any, where: str, names: Sequence[str]) -> tuple[tf.data.Dataset, int]:
    """A `tf.data.Dataset` and how many examples it has."""
    data, size = found if isinstance(found, tuple) else (found, int(found.cardinality()))
    if type(size) is not int or size < 1:
        raise UserError(
            f"{where}: how many examples its tf.data.Dataset has is not known, or it has no end. Give "
            "(dataset, size), or use dataset.apply(tf.data.experimental.assert_cardinality(size))."
        )
    if isinstance(data.element_spec, tuple):
        if len(names) != len(data.element_spec):
            raise UserError(
                f"{where}: its examples are tuples of {len(data.element_spec)}. Name their parts: "
                "names=('image', 'label')."
            )
        data = data.map(lambda *parts: dict(zip(names, parts, strict=True)))
    return data, size
