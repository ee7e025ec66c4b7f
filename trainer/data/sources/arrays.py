"""Arrays in memory: `{split: {feature: array}}`."""

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.data.feed import order
from trainer.data.source import parts
from trainer.errors import UserError

_AT_ONCE = 8192  # row numbers that the order is asked for at a time


class Arrays:
    """A data set out of NumPy arrays, a keyword a split.

    float64 becomes `keras.config.floatx()`, as in Keras's `fit`; arrays of objects must hold strings.

    Args:
      name: what messages and the plan call it.
      splits: `{feature: array [examples, ...]}` for each split, such as `train` and `test`.

    Raises:
      UserError: a split that is no dictionary, is empty, or whose features differ in length.

    Example:
      >>> import numpy as np, trainer
      >>> x, y = np.zeros([100, 28, 28, 1], "uint8"), np.zeros([100], "int64")
      >>> train, test = {"image": x[:80], "label": y[:80]}, {"image": x[80:], "label": y[80:]}
      >>> data = trainer.Arrays(train=train, test=test)
      >>> data.sizes()
      {'train': 80, 'test': 20}
    """

    notes: tuple[str, ...] = ()
    remedy = "Give whole arrays."
    prepared = True

    def __init__(self, name: str = "arrays", /, **splits: Mapping[str, Any]) -> None:
        self.name = name
        if not splits:
            raise UserError(f"--dataset={name}: no split. Write trainer.Arrays(train={{'x': array}}).")
        self._splits = {split: self._checked(split, features) for split, features in splits.items()}

    def _checked(self, split: str, features: Any) -> dict[str, np.ndarray]:
        where = f"--dataset={self.name}: the split {split}"
        if not isinstance(features, Mapping) or not features:
            raise UserError(f"{where} is {type(features).__name__}, not a dictionary {{feature: array}}.")
        arrays = {str(name): np.asarray(array) for name, array in features.items()}
        for name, array in arrays.items():
            if array.ndim == 0:
                raise UserError(f"{where}: {name} is a single value, not an array of examples.")
            if array.dtype == object and not all(isinstance(x, str | bytes) for x in array.flat):
                raise UserError(f"{where}: {name} holds Python objects; give numbers or strings.")
        sizes = {len(array) for array in arrays.values()}
        if len(sizes) > 1:
            shown = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
            raise UserError(f"{where} has features of different lengths ({shown}).")
        return arrays

    @property
    def full_name(self) -> str:
        """Its name."""
        return self.name

    @property
    def features(self) -> dict[str, Any]:
        """As `spec`."""
        return self.spec()

    def prepare(self) -> None:
        """Nothing: arrays are there."""

    def check(self) -> None:
        """Nothing: arrays can be read."""

    def sizes(self) -> dict[str, int]:
        """`{split: examples}`."""
        return {split: len(next(iter(arrays.values()))) for split, arrays in self._splits.items()}

    def spec(self) -> dict[str, Any]:
        """Of the first split, which the others must equal.

        Raises:
          UserError: a split with other features, shapes or types.
        """
        specs = {split: self._spec(arrays) for split, arrays in self._splits.items()}
        first, *others = specs
        for split in others:
            if specs[split] != specs[first]:
                raise UserError(
                    f"--dataset={self.name}: the splits differ: {first} has {_shown(specs[first])}, "
                    f"{split} has {_shown(specs[split])}. Give them the same features."
                )
        return specs[first]

    def ordered(self, split: str) -> tf.data.Dataset:
        """Row numbers, in the order of the arrays."""
        rows = np.concatenate([np.arange(a, b) + self._offset(name) for name, a, b in self._parts(split)])
        return tf.data.Dataset.from_tensor_slices(rows)

    def shuffled(self, split: str, seed: int, start: int) -> tf.data.Dataset:
        """Row numbers in the order of a resident feed."""
        rows = np.concatenate([np.arange(a, b) + self._offset(name) for name, a, b in self._parts(split)])

        def numbers() -> Iterator[np.ndarray]:
            position = start
            while True:
                yield rows[order(seed, len(rows), position, _AT_ONCE)]
                position += _AT_ONCE

        spec = tf.TensorSpec([_AT_ONCE], tf.int64)
        return tf.data.Dataset.from_generator(numbers, output_signature=spec).unbatch()

    def example(self, element: tf.Tensor) -> dict[str, Any]:
        """The row of this number."""
        with tf.init_scope(), tf.device("CPU:0"):  # captured, not written into the graph
            columns = {name: tf.constant(array) for name, array in self._joined().items()}
        return {name: column[element] for name, column in columns.items()}

    def arrays(self, split: str) -> dict[str, np.ndarray]:
        """The arrays, or copies of their parts."""
        found = [
            {n: _stored(a[first:stop]) for n, a in self._splits[s].items()}
            for s, first, stop in self._parts(split)
        ]
        return found[0] if len(found) == 1 else {n: np.concatenate([f[n] for f in found]) for n in found[0]}

    def _parts(self, split: str) -> list[tuple[str, int, int]]:
        return parts(split, self.sizes())

    def _offset(self, split: str) -> int:
        """Where the rows of a split begin, all splits in a row."""
        sizes = self.sizes()
        return sum(sizes[name] for name in list(sizes)[: list(sizes).index(split)])

    def _joined(self) -> dict[str, np.ndarray]:
        features = next(iter(self._splits.values()))
        return {n: _stored(np.concatenate([arrays[n] for arrays in self._splits.values()])) for n in features}

    def _spec(self, arrays: Mapping[str, np.ndarray]) -> dict[str, tf.TensorSpec]:
        return {n: tf.TensorSpec(a.shape[1:], tf.as_dtype(_dtype(a))) for n, a in arrays.items()}


def _dtype(array: np.ndarray) -> Any:
    if array.dtype == np.float64:
        return keras.config.floatx()
    return tf.string if array.dtype.kind in "OSU" else array.dtype


def _stored(array: np.ndarray) -> np.ndarray:
    """The array in the type that a model gets it in."""
    kind = _dtype(array)
    return array.astype(object) if kind == tf.string else array.astype(kind, copy=False)


def _shown(spec: Mapping[str, tf.TensorSpec]) -> str:
    return ", ".join(f"{name} {s.dtype.name}{list(s.shape)}" for name, s in spec.items())
