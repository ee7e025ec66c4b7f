"""Rows of named tensors over all batches of a split, in the split's order, and the metrics of all of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.devices.agreement import text_from_first
from trainer.devices.replicas import is_chief, worker
from trainer.model.outputs import Outputs, check_names


@dataclass(frozen=True)
class Rows:
    """What each example of a split gives, collected on the host over the batches of a compiled loop.

    Attributes:
      strategy: whose replicas share a batch.
      specs: `{name: spec of one row}`.
    """

    strategy: tf.distribute.Strategy
    specs: Mapping[str, tf.TensorSpec]

    def start(self, n: tf.Tensor) -> tuple[tf.TensorArray, ...]:
        """Room for n batches."""
        with tf.device("CPU:0"):
            return tuple(tf.TensorArray(s.dtype, n) for s in self.specs.values())

    def write(
        self, arrays: Sequence[tf.TensorArray], i: tf.Tensor, values: Mapping[str, Any]
    ) -> tuple[tf.TensorArray, ...]:
        """Batch i, of whose rows each replica holds its share, in order."""
        with tf.device("CPU:0"):
            pairs = zip(arrays, self.specs, strict=True)
            return tuple(array.write(i, self._whole(values[name])) for array, name in pairs)

    def stack(self, arrays: Sequence[tf.TensorArray]) -> dict[str, tf.Tensor]:
        """`{name: [batches, batch, ...]}`."""
        with tf.device("CPU:0"):
            return {name: array.stack() for name, array in zip(self.specs, arrays, strict=True)}

    def _whole(self, value: Any) -> tf.Tensor:
        if worker(self.strategy)[1] > 1:
            return self.strategy.gather(value, axis=0)
        return tf.concat(self.strategy.experimental_local_results(value), 0)


def flat(rows: Mapping[str, tf.Tensor], examples: int) -> dict[str, np.ndarray]:
    """`{name: array [examples, ...]}` of `Rows.stack`'s, what fills up the last batch left out."""
    arrays = {name: value.numpy() for name, value in rows.items()}
    return {name: a.reshape(-1, *a.shape[2:])[:examples] for name, a in arrays.items()}


def of_split(
    strategy: tf.distribute.Strategy, outputs: Outputs, rows: Mapping[str, np.ndarray], others: Sequence[str]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """(numbers, arrays) that `metrics` gives: the first worker computes, and tells the others the numbers.

    Raises:
      UserError: `metrics` raised, returned something else, or a name that is one of `others`.
    """
    arrays: dict[str, np.ndarray] = {}

    def compute() -> str:
        numbers, found = outputs.of_split(rows)
        check_names({**numbers, **found}, others)
        arrays.update(found)
        return json.dumps(numbers)

    return json.loads(text_from_first(strategy, compute)), arrays if is_chief(strategy) else {}
