"""Values that no model can mean: NaN, infinities, labels that say "missing"; found, named, or left out."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.padding import named
from trainer.errors import UserError, listing

AT_ONCE = 1 << 22  # numbers that are looked at together


def bad_rows(name: str, array: Any) -> np.ndarray:
    """Examples of one feature that cannot be used: their numbers, int64, in order.

    A float must be finite. An integer feature called `label` must not be -1, which says that the label is
    missing, where its other values count classes from 0.

    Args:
      name: of the feature.
      array: [examples, ...], or one after the other with `lengths`.
    """
    lengths = getattr(array, "lengths", None)
    values = array.values if lengths is not None else array
    if not isinstance(values, np.ndarray) or not len(values):
        return np.empty(0, np.int64)
    if values.dtype.kind == "f":
        rows = _not_finite(values)
    elif name == "label" and values.dtype.kind == "i" and values.ndim == 1 and lengths is None:
        negative = values < 0
        missing = negative.any() and values.min() == -1 and (values == 0).any()
        rows = np.flatnonzero(negative) if missing or (values == -1).all() else np.empty(0, np.int64)
    else:
        return np.empty(0, np.int64)
    if lengths is None:
        return rows
    return np.unique(np.searchsorted(np.cumsum(lengths), rows, "right"))


def refuse_bad(arrays: Mapping[str, Any], source: str, split: str, bad: str) -> None:
    """Refuses arrays with an example that cannot be used, unless `bad` is `keep`.

    Raises:
      UserError: names the split, the examples, the feature and the value.
    """
    if bad == "keep":
        return
    for name, array in arrays.items():
        rows = bad_rows(name, array)
        if len(rows):
            what = "the label is missing (-1)" if name == "label" else "not finite"
            value = array[rows[0]] if isinstance(array, np.ndarray) and array.ndim == 1 else what
            raise UserError(
                f"--dataset={source}: split {split}, example {listing(map(str, rows.tolist()), 5)} (of "
                f"{len(array)}, counted from 0), feature {name}: {value}"
                f"{'' if value == what else f' ({what})'}. Mend the data, or give --bad_examples=skip to "
                "leave "
                "such examples out, where the data are arrays or a table, or --bad_examples=keep to train "
                "on them."
            )


def refuse_classes(arrays: Mapping[str, Any], classes: Mapping[str, int], source: str, split: str) -> None:
    """Refuses labels that the model has no output for.

    Args:
      arrays: of a split, by feature.
      classes: by feature, how many classes the model has.
      source: name of the data.
      split: name of the split.

    Raises:
      UserError: names the split, the example, the feature and the label.
    """
    for name, count in classes.items():
        values = np.asarray(getattr(arrays.get(name), "values", arrays.get(name)))
        if values.dtype.kind not in "iu" or not values.size or (values.min() >= 0 and values.max() < count):
            continue
        wrong = np.flatnonzero((values < 0) | (values >= count))
        label = int(values.reshape(-1)[wrong[0]])
        example = int(_examples_of(arrays[name], wrong[:1])[0])
        raise UserError(
            f"--dataset={source}: split {split}, example {example} (counted from 0): {name} is {label}, and "
            f"the model has outputs for 0 to {count - 1} ({len(wrong):,} such). Give the model an output for "
            "every class, or mend the labels."
        )


def _examples_of(array: Any, places: np.ndarray) -> np.ndarray:
    """The examples in which the flat `places` of an array lie."""
    lengths = getattr(array, "lengths", None)
    if lengths is None:
        return places // max(1, array[0].size)
    rows = places // max(1, array.values[0].size)
    return np.searchsorted(np.cumsum(lengths), rows, "right")


def without(arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays without these examples."""
    size = len(next(iter(arrays.values())))
    kept = np.ones(size, bool)
    kept[rows] = False
    return {name: array[kept] for name, array in arrays.items()}


def checked(examples: Mapping[str, Any], alone: bool = False) -> dict[str, Any]:
    """A group of examples as it is; where one cannot be used, an op fails that `blamed` understands. Traced.

    Args:
      examples: {feature: [group, ...]}, nested or not.
      alone: a label of -1 is missing whatever else is in the group; by default, where there is a class 0.
    """
    paths = [path for path, _ in named(examples)]
    values = [
        _usable(path, value, alone) for path, value in zip(paths, tf.nest.flatten(examples), strict=True)
    ]
    return dict(tf.nest.pack_sequence_as(examples, values))


def _usable(name: str, value: Any, alone: bool) -> Any:
    if not isinstance(value, tf.Tensor | tf.RaggedTensor):  # a data set within an example
        return value
    return _finite(name, value) if value.dtype.is_floating else _labelled(name, value, alone)


def _finite(name: str, value: Any) -> Any:
    if isinstance(value, tf.RaggedTensor):
        return value.with_flat_values(_finite(name, value.flat_values))
    return tf.debugging.check_numerics(value, f"feature {name}: not finite")


def _labelled(name: str, value: Any, alone: bool) -> Any:
    if name != "label" or isinstance(value, tf.RaggedTensor) or value.dtype not in (tf.int32, tf.int64):
        return value
    missing = tf.reduce_any(value == -1)
    if not alone:
        missing = tf.logical_and(missing, tf.reduce_any(value == 0))
    said = tf.debugging.Assert(tf.logical_not(missing), ["feature label: -1 (the label is missing)"])
    with tf.control_dependencies([said]):
        return tf.identity(value)


def blamed(text: str) -> str:
    """`feature x: not finite (NaN)` out of the error of an op of `checked`; empty where it is another's."""
    if found := re.search(r"(feature .+?: not finite) : Tensor had (-?\w+)", text):
        return f"{found[1]} ({found[2]})"
    found = re.search(r"feature label: -1 \(the label is missing\)", text)
    return found[0] if found else ""


def _not_finite(values: np.ndarray) -> np.ndarray:
    """Rows of `values` with a NaN or an infinity."""
    size = max(1, int(np.prod(values.shape[1:])))
    step, found = max(1, AT_ONCE // size), []
    for start in range(0, len(values), step):
        part = values[start : start + step]
        # A sum is finite where all is, but for overflow: then the slow look decides.
        if not np.isfinite(part.sum(dtype=np.float64)):
            fine = np.isfinite(part).reshape(len(part), -1).all(1)
            found.append(start + np.flatnonzero(~fine))
    return np.concatenate(found) if found else np.empty(0, np.int64)
