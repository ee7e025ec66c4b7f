"""The whole decoded split on each device: no iterator, rows are gathered inside the compiled loop."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.feed import MASK, order, part_of, permutation
from trainer.data.padding import Pad, Permute, bucketed, mask_of, named
from trainer.data.records import load
from trainer.data.source import Split
from trainer.data.stored import Flat
from trainer.devices.replicas import Share

# What a GPU can gather; anything else travels as int64 words (int32 would stay on the host).
GATHERED = (tf.int64, tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.bool, tf.string)


def pack(array: np.ndarray) -> np.ndarray:
    """[n, ...] in a type that devices can gather rows of: as it is, or as int64 [n, words]."""
    if array.dtype.kind in "OSU" or tf.as_dtype(array.dtype) in GATHERED:
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
      arrays: what `pack` made of each part of an example, [examples, ...], a copy per replica; of a padded
        part all examples one after the other, and where each begins and how long it is.
      layout: the unbatched `tf.TensorSpec`s of an example.
      seed: of the training order; None for an evaluation feed.
      permute: `permutation`, remembering the last epochs.
      pads: by feature, how examples of different lengths are brought to one.
      lengths: by padded feature, int64 [examples], on the host.
    """

    arrays: list[Any]
    layout: Any
    examples: int
    batch: int
    seed: int | None
    permute: Callable[[int, int, int], np.ndarray] = permutation
    pads: Mapping[str, Pad] = dataclasses.field(default_factory=dict)
    lengths: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def steps(self) -> int | None:
        """Batches of one evaluation; None in training."""
        return None if self.seed is not None else -(-self.examples // self.batch)

    @property
    def spec(self) -> dict[str, tf.TensorSpec]:
        """Row numbers, the mask in evaluation, and the length of each step's padded features."""
        spec = {"rows": tf.TensorSpec([None, self.batch], tf.int32)}
        if self.seed is None:
            spec["mask"] = tf.TensorSpec([None, self.batch], tf.float32)
        return spec | {_length(name): tf.TensorSpec([None], tf.int32) for name in self.lengths}

    def chunk(self, step: int, n: int) -> dict[str, tf.Tensor]:
        """`rows` int32 [n, batch]; in evaluation also `mask` float32 [n, batch]; lengths int32 [n]."""
        start, shape = step * self.batch, (n, self.batch)
        if self.seed is not None:
            rows = order(self.seed, self.examples, start, n * self.batch, self.permute).reshape(shape)
            chunk = {"rows": tf.constant(rows, tf.int32)}
        else:
            rows = np.arange(start, start + n * self.batch).reshape(shape)
            real = rows < self.examples
            rows = np.where(real, rows, 0)
            chunk = {"rows": tf.constant(rows, tf.int32), "mask": tf.constant(real, tf.float32)}
        longest = {name: lengths[rows].max(1) for name, lengths in self.lengths.items()}
        return chunk | {_length(name): self.pads[name].length(most) for name, most in longest.items()}

    def draw(self, chunk: dict[str, tf.Tensor], i: tf.Tensor) -> dict[str, Any]:
        """Row numbers [batch] of step `i`, beside the arrays."""
        return {"arrays": self.arrays, **{name: rows[i] for name, rows in chunk.items()}}

    def take(self, drawn: dict[str, Any], part: int | tf.Tensor, parts: int) -> dict[str, Any]:
        """Gathers the rows of this part from the device's own copy."""
        rows = part_of(drawn["rows"], part, parts)
        values: list[Any] = []
        masks: dict[str, tf.Tensor] = {}
        names = [path for path, _ in named(self.layout)]
        for name, array, spec in zip(names, drawn["arrays"], tf.nest.flatten(self.layout), strict=True):
            if name in self.lengths:
                value, masks[mask_of(name)] = self._padded(array, rows, drawn[_length(name)], name, spec)
                values.append(value)
            else:
                values.append(unpack(tf.gather(array, rows), spec))
        batch = {**tf.nest.pack_sequence_as(self.layout, values), **masks}
        return {**batch, MASK: part_of(drawn["mask"], part, parts)} if "mask" in drawn else batch

    def fault(self, step: int, n: int) -> None:
        """None: every example has been read."""

    def waited(self) -> None:
        """None: nothing is waited for."""

    def _padded(
        self, stored: Any, rows: tf.Tensor, length: tf.Tensor, name: str, spec: tf.TensorSpec
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(examples [rows, length, ...], mask) out of those that lie one after the other."""
        flat, starts, lengths = stored
        place = tf.range(tf.cast(length, tf.int64))
        mask = place < tf.gather(lengths, rows)[:, None]
        items = tf.where(mask, tf.gather(starts, rows)[:, None] + place, 0)
        item = tf.TensorSpec(spec.shape[1:], spec.dtype)
        found = unpack(tf.gather(flat, tf.reshape(items, [-1])), item)
        found = tf.reshape(found, [rows.shape[0], length, *item.shape])
        shaped = tf.reshape(mask, [rows.shape[0], length, *[1] * len(item.shape)])
        fill = tf.constant("") if spec.dtype == tf.string else tf.cast(self.pads[name].value, spec.dtype)
        return tf.where(shaped, found, fill), mask


def resident(split: Split, share: Share, batch: int, seed: int | None) -> Resident:
    """Reads and decodes the split once and gives each replica its copy.

    Args:
      split: prepared.
      share: whose replicas take the batches.
      batch: rows of one `draw`, over all workers and replicas and accumulated batches.
      seed: of the training order; None for an evaluation feed.
    """
    stored = load(split)
    placed = [_placed(array, share) for array in tf.nest.flatten(stored)]
    lengths = {name: stored[name].lengths for name in split.padded}
    permute = functools.lru_cache(maxsize=2)(permutation_of(split, lengths, batch))
    return Resident(placed, split.layout(), split.examples, batch, seed, permute, split.pads, lengths)


def permutation_of(split: Split, lengths: Mapping[str, np.ndarray], batch: int) -> Permute:
    """The order of an epoch: `permutation`, by buckets of like length where a rule asks for them."""
    for name, pad in split.pads.items():
        if pad.bucket:
            return bucketed(permutation, lengths[name], batch, pad.bucket)
    return permutation


def _length(name: str) -> str:
    return f"{name}/length"


def _placed(array: Any, share: Share) -> Any:
    """A copy of one part of the examples on the device of each local replica."""
    if isinstance(array, Flat):
        parts = (pack(array.values), array.starts, array.lengths.astype(np.int64))
        # With nothing in it there would be nothing to gather for the padding.
        parts = (
            parts[0] if len(parts[0]) else np.zeros((1, *parts[0].shape[1:]), parts[0].dtype),
            *parts[1:],
        )
        return tuple(_place(part, share) for part in parts)
    return _place(pack(array), share)


def _place(array: np.ndarray, share: Share) -> Any:
    """A copy of `array` on the device of each local replica; strings stay on the host."""
    local = share.devices

    def copy(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        device = local[context.replica_id_in_sync_group % len(local)]
        with tf.device("CPU:0" if array.dtype.kind in "OSU" else device):
            return tf.constant(array)

    return share.strategy.experimental_distribute_values_from_function(copy)
