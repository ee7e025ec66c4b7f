"""The whole decoded split on each device: no iterator, rows are gathered inside the compiled loop."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.feed import MASK, order, part_of, permutation
from trainer.data.records import load
from trainer.data.source import Split
from trainer.devices.strategy import Share

# What a GPU can gather; anything else travels as int64 words (int32 would stay on the host).
GATHERED = (tf.int64, tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.bool, tf.string)


def pack(array: np.ndarray) -> np.ndarray:
    """[n, ...] in a type that devices can gather rows of: as it is, or as int64 [n, words]."""
    if array.dtype == object or tf.as_dtype(array.dtype) in GATHERED:
        return array
    flat = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8))) if flat.shape[1] % 8 else flat
    return flat.view(np.int64)


def unpack(rows: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """Rows of what `pack` made, as examples of `spec`: [b, *spec.shape]."""
    if spec.dtype in GATHERED:
        return rows
    flat = tf.reshape(tf.bitcast(rows, spec.dtype), [rows.shape[0], -1])
    return tf.reshape(flat[:, : spec.shape.num_elements()], [rows.shape[0], *spec.shape])


@dataclasses.dataclass
class Resident:
    """The whole decoded split on each device; rows are gathered there.

    Attributes:
      arrays: what `pack` made of each part of an example, [examples, ...], a copy per replica.
      layout: the unbatched `tf.TensorSpec`s of an example.
      seed: of the training order; None for an evaluation feed.
      permute: `permutation`, remembering the last epochs.
    """

    arrays: list[Any]
    layout: Any
    examples: int
    batch: int
    seed: int | None
    permute: Callable[[int, int, int], np.ndarray] = permutation

    @property
    def steps(self) -> int | None:
        """Batches of one evaluation; None in training."""
        return None if self.seed is not None else -(-self.examples // self.batch)

    @property
    def waited(self) -> float:
        """Nothing: the rows are on the device."""
        return 0.0

    @property
    def spec(self) -> dict[str, tf.TensorSpec]:
        """Row numbers, and the mask in evaluation."""
        spec = {"rows": tf.TensorSpec([None, self.batch], tf.int32)}
        if self.seed is None:
            spec["mask"] = tf.TensorSpec([None, self.batch], tf.float32)
        return spec

    def chunk(self, step: int, n: int) -> dict[str, tf.Tensor]:
        """`rows` int32 [n, batch]; in evaluation also `mask` float32 [n, batch]."""
        start, shape = step * self.batch, (n, self.batch)
        if self.seed is not None:
            rows = order(self.seed, self.examples, start, n * self.batch, self.permute)
            return {"rows": tf.constant(rows.reshape(shape), tf.int32)}
        rows = np.arange(start, start + n * self.batch).reshape(shape)
        real = rows < self.examples
        return {
            "rows": tf.constant(np.where(real, rows, 0), tf.int32),
            "mask": tf.constant(real, tf.float32),
        }

    def draw(self, chunk: dict[str, tf.Tensor], i: tf.Tensor) -> dict[str, Any]:
        """Row numbers [batch] of step `i`, beside the arrays."""
        return {"arrays": self.arrays, **{name: rows[i] for name, rows in chunk.items()}}

    def take(self, drawn: dict[str, Any], part: int | tf.Tensor, parts: int) -> dict[str, Any]:
        """Gathers the rows of this part from the device's own copy."""
        specs = tf.nest.flatten(self.layout)
        rows = part_of(drawn["rows"], part, parts)
        values = [unpack(tf.gather(a, rows), s) for a, s in zip(drawn["arrays"], specs, strict=True)]
        batch = tf.nest.pack_sequence_as(self.layout, values)
        return {**batch, MASK: part_of(drawn["mask"], part, parts)} if "mask" in drawn else batch


def resident(split: Split, share: Share, batch: int, seed: int | None) -> Resident:
    """Reads and decodes the split once and gives each replica its copy.

    Args:
      split: prepared.
      share: whose replicas take the batches.
      batch: rows of one `draw`, over all workers and replicas and accumulated batches.
      seed: of the training order; None for an evaluation feed.
    """
    placed = [_place(pack(array), share) for array in tf.nest.flatten(load(split))]
    remember = functools.lru_cache(maxsize=2)(permutation)
    return Resident(placed, split.spec(), split.examples, batch, seed, remember)


def _place(array: np.ndarray, share: Share) -> Any:
    """A copy of `array` on the device of each local replica; strings stay on the host."""
    local = share.devices

    def copy(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        device = local[context.replica_id_in_sync_group % len(local)]
        with tf.device("CPU:0" if array.dtype == object else device):
            return tf.constant(array)

    return share.strategy.experimental_distribute_values_from_function(copy)
