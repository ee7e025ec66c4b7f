"""A `tf.data.Dataset` by split: read in its own order, or shuffled block after block."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.fingerprints import fingerprint, of_array
from trainer.data.padding import signature
from trainer.data.shards import in_blocks
from trainer.data.source import parts
from trainer.errors import UserError
from trainer.model.graphs import check_draws

PROBED = 16  # examples that are read beforehand, twice


class Datasets:
    """A data set out of `tf.data.Dataset`s of single examples; an element is a whole example, serialized.

    Args:
      name: value of --dataset.
      splits: `{split: (dataset, examples)}`.
      shuffle: examples that are shuffled at a time, by (seed, epoch); 0 keeps the order.

    Raises:
      UserError: examples that are no dictionaries, or an order that changes.
    """

    remedy = "Mend the tf.data pipeline."
    prepared = True
    in_memory = False

    def __init__(
        self, name: str, splits: Mapping[str, tuple[tf.data.Dataset, int]], shuffle: int = 0
    ) -> None:
        self.name, self._splits, self._shuffle = name, dict(splits), shuffle
        specs = {split: data.element_spec for split, (data, _) in splits.items()}
        self._spec = next(iter(specs.values()))
        for split, spec in specs.items():
            if not isinstance(spec, dict):
                raise UserError(
                    f"--dataset={name}: an example of split {split} is {spec}, not a dictionary of "
                    "tensors. Name "
                    "its parts, names=('image', 'label'), or map them to a dictionary."
                )
            if spec != self._spec:
                raise UserError(f"--dataset={name}: the splits differ: {self._spec} and {spec}.")
        for split, (data, _) in splits.items():
            for graph in _graphs(data):
                check_draws(graph, f"--dataset={name}: the pipeline of split {split}")
        self._digests = {split: self._probe(split) for split in splits}

    @property
    def full_name(self) -> str:
        """Its name."""
        return self.name

    @property
    def notes(self) -> tuple[str, ...]:
        """In which order they come."""
        if self._shuffle:
            how = f"shuffled {self._shuffle} at a time, by the seed and the epoch"
        else:
            how = (
                "in the order that it has, the same in every epoch; shuffle=10000 shuffles so many at a time"
            )
        return (f"{self.name}: a tf.data.Dataset is read {how}. A resume reads past what was done.",)

    @property
    def features(self) -> dict[str, Any]:
        """As `spec`."""
        return self.spec()

    def prepare(self) -> None:
        """Nothing: it is read as it goes."""

    def fingerprint(self) -> str:
        """Of sizes, types and the first 16 examples."""
        sizes, spec = self.sizes(), {name: str(part) for name, part in self._spec.items()}
        return fingerprint(sizes, spec, self._digests, self._shuffle)

    def sizes(self) -> dict[str, int]:
        """As stated."""
        return {split: size for split, (_, size) in self._splits.items()}

    def spec(self) -> dict[str, Any]:
        """As the data set has it."""
        return self._spec

    def elements(self, split: str) -> "_Rows":
        """The examples of a split."""
        data = None
        for name, first, stop in parts(split, self.sizes()):
            part = self._splits[name][0].skip(first).take(stop - first)
            data = part if data is None else data.concatenate(part)
        assert data is not None
        return _Rows(
            data.map(self._serialized), self._shuffle, sum(b - a for _, a, b in parts(split, self.sizes()))
        )

    def example(self, element: tf.Tensor) -> dict[str, Any]:
        """One element, taken apart."""
        leaves = tf.nest.flatten(self._spec)
        values = [tf.io.parse_tensor(element[i], part.dtype) for i, part in enumerate(leaves)]
        shaped = [tf.ensure_shape(value, part.shape) for value, part in zip(values, leaves, strict=True)]
        return tf.nest.pack_sequence_as(self._spec, shaped)

    def examples(self, elements: tf.Tensor) -> dict[str, Any]:
        """Elements, taken apart."""
        return tf.map_fn(
            self.example, elements, fn_output_signature=signature(self._spec), parallel_iterations=1
        )

    def arrays(self, split: str) -> None:
        """None: it is read as it goes."""

    def _serialized(self, example: Any) -> tf.Tensor:
        """A string for each part of an example: examples of any shape can be batched so."""
        return tf.stack([tf.io.serialize_tensor(part) for part in tf.nest.flatten(example)])

    def _probe(self, split: str) -> list[list[str]]:
        """What the first examples are, read twice."""
        data = self._splits[split][0].take(PROBED)
        try:
            one, other = ([_digests(example) for example in data] for _ in range(2))
        except tf.errors.OpError as error:
            raise UserError(
                f"--dataset={self.name}: split {split} cannot be read: "
                f"{' '.join(error.message.split())[:400]}"
            ) from error
        if one != other:
            raise UserError(
                f"--dataset={self.name}: split {split} comes in another order, or as other examples, when "
                "it is "
                "read again, so that no run could be repeated or resumed. Give its shuffle "
                "reshuffle_each_iteration=False and a seed, or leave the order to shuffle=10000 and "
                "augmentation to "
                "the model module's preprocess."
            )
        if not one:
            raise UserError(f"--dataset={self.name}: split {split} has no examples.")
        return one


class _Rows:
    """Serialized examples in a row."""

    keeps_order = True

    def __init__(self, data: tf.data.Dataset, block: int, examples: int) -> None:
        self._data, self._block, self._examples = data, block, examples

    def ordered(self) -> tf.data.Dataset:
        """In their own order."""
        return self._data

    def shuffled(self, seed: int, start: int) -> tf.data.Dataset:
        """Epoch after epoch from position `start` on."""

        def epoch(number: tf.Tensor) -> tf.data.Dataset:
            key = tf.stack([tf.constant(seed, tf.int64), number])
            return in_blocks(self._data, self._block, key) if self._block else self._data

        first, offset = divmod(start, self._examples)
        return tf.data.Dataset.range(first, np.iinfo(np.int64).max).flat_map(epoch).skip(offset)


def _graphs(data: tf.data.Dataset) -> Iterator[Any]:
    """Of the functions that a pipeline maps or filters with, as far as TensorFlow shows them."""
    rest = [data]
    while rest:
        stage = rest.pop()
        for function in getattr(stage, "_functions", list)():
            if graph := getattr(getattr(function, "function", None), "graph", None):
                yield graph
        rest += getattr(stage, "_inputs", list)()


def _digests(example: Any) -> list[str]:
    return [of_array(np.atleast_1d(part.numpy())) for part in tf.nest.flatten(example)]
