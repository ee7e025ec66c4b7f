"""Anything with `len()` and `[i]`: a PyTorch-style data set, Hugging Face `datasets`, a Grain source."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.data.fingerprints import fingerprint, of_array
from trainer.data.source import parts, place_of
from trainer.errors import UserError, guarded

PROBED = 16  # examples that are asked for beforehand, twice


class Sequences:
    """A data set out of objects with `len()` and `[i]`, by split; an element is the number of an example.

    Args:
      name: value of --dataset.
      splits: by name.
      names: of the parts of an example that is a tuple; () where it is a dictionary.

    Raises:
      UserError: an example that is no dictionary, that is another one when asked again, or of an odd type.
    """

    remedy = "Mend the data set's own [i]."
    prepared = True
    in_memory = False
    notes: tuple[str, ...] = ()

    def __init__(self, name: str, splits: Mapping[str, Any], names: Sequence[str] = ()) -> None:
        self.name, self._splits, self._names = name, dict(splits), tuple(names)
        self._one_at_a_time = threading.Lock()  # objects with [i] are seldom made for several threads
        self._sizes = {split: _length(name, split, found) for split, found in splits.items()}
        probed = {split: self._probe(split) for split in splits}
        self._spec = _common(name, [example for found in probed.values() for example in found])
        digests = {
            split: [{n: of_array(np.atleast_1d(v)) for n, v in example.items()} for example in found]
            for split, found in probed.items()
        }
        shown = {n: f"{s.dtype.name}{s.shape.as_list()}" for n, s in self._spec.items()}
        self._fingerprint = fingerprint(self._sizes, shown, digests)

    @property
    def full_name(self) -> str:
        """Its name."""
        return self.name

    @property
    def features(self) -> dict[str, Any]:
        """As `spec`."""
        return self._spec

    def prepare(self) -> None:
        """Nothing: examples are asked for as they are needed."""

    def fingerprint(self) -> str:
        """Of lengths, types and 16 examples a split."""
        return self._fingerprint

    def sizes(self) -> dict[str, int]:
        """`{split: examples}`."""
        return self._sizes

    def spec(self) -> dict[str, tf.TensorSpec]:
        """As 16 examples a split have it; a size that differs among them is None."""
        return self._spec

    def elements(self, split: str) -> np.ndarray:
        """Numbers of examples, all splits in a row."""
        firsts = dict(zip(self._sizes, np.cumsum([0, *self._sizes.values()]).tolist(), strict=False))
        return np.concatenate([firsts[name] + np.arange(a, b) for name, a, b in parts(split, self._sizes)])

    def example(self, element: tf.Tensor) -> dict[str, Any]:
        """The example of this number."""
        kinds = [part.dtype for part in self._spec.values()]

        def one(number: np.ndarray) -> list[np.ndarray]:
            (found,) = self._read(np.array([number]))
            return list(found.values())

        values = tf.numpy_function(one, [element], kinds, stateful=False)
        pairs = zip(self._spec.items(), values, strict=True)
        return {name: tf.ensure_shape(value, part.shape) for (name, part), value in pairs}

    def examples(self, elements: tf.Tensor) -> dict[str, Any]:
        """The examples of these numbers."""
        ragged = [name for name, part in self._spec.items() if not part.shape.is_fully_defined()]
        kinds = [part.dtype for part in self._spec.values()]

        def some(numbers: np.ndarray) -> list[np.ndarray]:
            found = self._read(numbers)
            values = [
                (np.concatenate if name in ragged else np.stack)([e[name] for e in found])
                for name in self._spec
            ]
            return [*values, *(np.array([len(e[name]) for e in found], np.int64) for name in ragged)]

        returned = tf.numpy_function(some, [elements], [*kinds, *[tf.int64] * len(ragged)], stateful=False)
        lengths = dict(zip(ragged, returned[len(kinds) :], strict=True))
        group: dict[str, Any] = {}
        for (name, part), values in zip(self._spec.items(), returned, strict=False):
            if name in lengths:
                flat = tf.ensure_shape(values, [None, *part.shape[1:]])
                length = tf.ensure_shape(lengths[name], [elements.shape[0]])
                group[name] = tf.RaggedTensor.from_row_lengths(flat, length, validate=False)
            else:
                group[name] = tf.ensure_shape(values, [elements.shape[0], *part.shape])
        return group

    def arrays(self, split: str) -> None:
        """None: each example is asked for."""

    def _read(self, numbers: np.ndarray) -> list[dict[str, np.ndarray]]:
        """The examples of these numbers, as the spec has them.

        Raises:
          UserError: an example is of another shape or type than the first ones.
        """
        found = []
        for split, place, example in self._asked([place_of(int(n), self._sizes) for n in numbers]):
            for name, part in self._spec.items():
                value = example.get(name)
                if value is None or not part.shape.is_compatible_with(value.shape):
                    has = "is not there" if value is None else f"has shape {list(value.shape)}"
                    raise UserError(
                        f"--dataset={self.name}: split {split}, example {place}: {name} {has}, where the "
                        "first "
                        f"examples have {part.dtype.name}{part.shape.as_list()}. {self.remedy}"
                    )
                if not _fits(value, part.dtype):
                    raise UserError(
                        f"--dataset={self.name}: split {split}, example {place}: {name} is {value.dtype}, "
                        "where "
                        f"the first examples have {part.dtype.name}. {self.remedy}"
                    )
            found.append({n: _cast(example[n], part.dtype) for n, part in self._spec.items()})
        return found

    def _asked(self, places: Sequence[tuple[str, int]]) -> list[tuple[str, int, dict[str, np.ndarray]]]:
        """Examples as they come, many at a time where the object can."""
        raw: dict[tuple[str, int], Any] = {}
        for split in dict.fromkeys(split for split, _ in places):
            own = [place for owner, place in places if owner == split]
            data = self._splits[split]
            with self._one_at_a_time:
                many = hasattr(data, "__getitems__")
                some = data.__getitems__(own) if many else [data[place] for place in own]
            raw |= {(split, place): example for place, example in zip(own, some, strict=True)}
        return [(split, at, self._example(split, at, raw[split, at])) for split, at in places]

    def _example(self, split: str, place: int, found: Any) -> dict[str, np.ndarray]:
        where = f"--dataset={self.name}: split {split}, example {place}"
        if isinstance(found, tuple | list):
            if len(found) != len(self._names):
                have = f"{len(self._names)} names are given" if self._names else "its parts have no names"
                raise UserError(
                    f"{where}: is a {type(found).__name__} of {len(found)}, and {have}. Give them: "
                    "names=('image', 'label')."
                )
            found = dict(zip(self._names, found, strict=True))
        if not isinstance(found, Mapping):
            raise UserError(f"{where}: is {type(found).__name__}, not a dictionary {{feature: array}}.")
        return {str(name): _value(f"{where}: {name}", value) for name, value in found.items()}

    def _probe(self, split: str) -> list[dict[str, np.ndarray]]:
        """Some examples, evenly spread, each asked for twice."""
        size = self._sizes[split]
        places = [(split, int(i)) for i in np.unique(np.linspace(0, size - 1, PROBED).astype(np.int64))]
        what = f"--dataset={self.name}: asking split {split} for an example"
        first, again = guarded(lambda: (self._asked(places), self._asked(places)), what)
        for (_, place, one), (_, _, other) in zip(first, again, strict=True):
            name = next((n for n in one if n not in other or not _same(one[n], other[n])), None)
            if name is not None:
                raise UserError(
                    f"--dataset={self.name}: split {split}, example {place}: {name} is another one when "
                    "asked "
                    "again, so that no run could be repeated or resumed. Leave random augmentation to the "
                    "model "
                    "module's preprocess, which is seeded (docs/data.md); a tf.data order that changes needs "
                    "reshuffle_each_iteration=False."
                )
        return [example for _, _, example in first]


def _length(name: str, split: str, data: Any) -> int:
    size = guarded(lambda: len(data), f"--dataset={name}: its len() of split {split}")
    if size < 1:
        raise UserError(f"--dataset={name}: split {split} has no examples.")
    return size


def _value(where: str, value: Any) -> np.ndarray:
    """A part of an example as an array."""
    if value is None:
        raise UserError(f"{where} has no value (None).")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{where} cannot be an array: {' '.join(str(error).split())[:200]}") from error
    if array.dtype.kind in "US":
        return array.astype(object)
    if array.dtype == object and not all(isinstance(x, str | bytes) for x in array.flat):
        raise UserError(f"{where} is {type(value).__name__}, not numbers or text.")
    return array


def _common(name: str, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, tf.TensorSpec]:
    """The spec that all these examples have; sizes that differ are None."""
    first = examples[0]
    for example in examples:
        if example.keys() != first.keys():
            raise UserError(
                f"--dataset={name}: examples have different features: {', '.join(first)}, and "
                f"{', '.join(example)}. Give all the same."
            )
    spec = {}
    for feature, value in first.items():
        all_of_it = [example[feature] for example in examples]
        if len({a.ndim for a in all_of_it}) > 1:
            raise UserError(
                f"--dataset={name}: {feature} has different numbers of dimensions. Give all the same."
            )
        sizes = [
            each.pop() if len(each) == 1 else None
            for each in ({a.shape[d] for a in all_of_it} for d in range(value.ndim))
        ]
        spec[feature] = tf.TensorSpec(sizes, _type(np.result_type(*{a.dtype for a in all_of_it})))
    return spec


def _type(dtype: np.dtype) -> Any:
    if dtype == np.float64:
        return keras.config.floatx()
    return tf.string if dtype.kind == "O" else dtype


def _fits(value: np.ndarray, dtype: tf.DType) -> bool:
    if dtype == tf.string:
        return value.dtype == object
    return value.dtype != object and np.can_cast(value.dtype, dtype.as_numpy_dtype, "same_kind")


def _cast(value: np.ndarray, dtype: tf.DType) -> np.ndarray:
    return value if dtype == tf.string else value.astype(dtype.as_numpy_dtype, copy=False)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()
