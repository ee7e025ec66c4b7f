"""The two ways to draw batches: resident (arrays on each device) and streaming (files as they go).

Which example stands where is a function of (seed, step) alone: interruptions, replicas and workers
change nothing. Positions count on over epoch ends; position p is row p % batch of step p // batch.
A feed is used in three places:

    chunk = feed.chunk(step, n)                  # on the host, for steps step .. step + n - 1
    drawn = feed.draw(chunk, i)                  # compiled, cross-replica: step number step + i
    batch = feed.take(drawn, replica, replicas)  # compiled, in a replica: its share of the rows

An evaluation feed has every example once, in order; its last batch is filled up with the first
example, and `batch[MASK]` is 1.0 for a row that counts, 0.0 for one that does not.
`trainer/data/streaming.py` makes feeds from data sets.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

MASK = "__mask__"
# What a GPU can gather; anything else travels as int64 words (int32 would stay on the host).
GATHERED = (tf.int64, tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.bool, tf.string)


class Feed(Protocol):
    """Batches of `batch` rows out of `examples`."""

    examples: int
    batch: int

    @property
    def steps(self) -> int | None:
        """Batches of one evaluation; None in training, which has no end."""

    @property
    def spec(self) -> Any:
        """Type of a chunk of any length, for the signature of the compiled function."""

    def chunk(self, step: int, n: int) -> Any:
        """What the compiled function needs for steps `step` to `step + n - 1`; on the host."""

    def draw(self, chunk: Any, i: tf.Tensor) -> Any:
        """The whole batch of step `i` of the chunk, to be passed to `strategy.run`."""

    def take(self, drawn: Any, part: int | tf.Tensor, parts: int) -> dict[str, Any]:
        """Rows part * batch / parts .. of a batch: decoded, not preprocessed, in a replica."""


def permutation(seed: int, examples: int, epoch: int) -> np.ndarray:
    """The order of one epoch, int64 [examples], keyed by (seed, epoch).

    Sorts raw Philox numbers (Salmon et al. 2011): NumPy keeps those the same for ever, which it
    does not promise of `Generator.permutation`.
    """
    key = np.array([seed, epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(examples), kind="stable")


def order(
    seed: int,
    examples: int,
    start: int,
    count: int,
    permute: Callable[[int, int, int], np.ndarray] = permutation,
) -> np.ndarray:
    """Examples at positions start .. start + count - 1 of the endless stream: int64 [count]."""
    parts, position = [np.empty(0, np.int64)], start
    while position < start + count:
        epoch, offset = divmod(position, examples)
        part = permute(seed, examples, epoch)[offset : offset + start + count - position]
        parts.append(part)
        position += len(part)
    return np.concatenate(parts)


def _slice(value: tf.Tensor, part: int | tf.Tensor, parts: int) -> tf.Tensor:
    """Rows part * n / parts .. (part + 1) * n / parts of `value` [n, ...], of static shape."""
    rows, *rest = value.shape
    if rows % parts:
        raise ValueError(f"{rows} rows cannot be cut into {parts} equal parts")
    size = rows // parts
    return tf.slice(value, [part * size, *[0] * len(rest)], [size, *rest]) if parts > 1 else value


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
        rows = _slice(drawn["rows"], part, parts)
        values = [unpack(tf.gather(a, rows), s) for a, s in zip(drawn["arrays"], specs, strict=True)]
        batch = tf.nest.pack_sequence_as(self.layout, values)
        return {**batch, MASK: _slice(drawn["mask"], part, parts)} if "mask" in drawn else batch


@dataclasses.dataclass
class Streaming:
    """Batches from a `tf.data` pipeline that can start at any step.

    Attributes:
      batches: step -> the batches from that step on; of each only the rows of this worker.
      element_spec: the type of such a batch.
      workers: (index, count) of the processes that share each batch.
      accumulate: each batch is this many batches in a row, and each of those is shared.
    """

    batches: Callable[[int], tf.data.Dataset]
    element_spec: Any
    examples: int
    batch: int
    steps: int | None = None
    workers: tuple[int, int] = (0, 1)
    accumulate: int = 1
    _iterator: Any = None
    _position: int = -1

    @property
    def spec(self) -> tf.data.IteratorSpec:
        """An iterator over batches."""
        return tf.data.IteratorSpec(self.element_spec)

    def chunk(self, step: int, n: int) -> Iterator[Any]:
        """The iterator, standing at `step`; made anew only where it does not stand there."""
        if self._position != step:
            with tf.device("CPU:0"):
                self._iterator = iter(self.batches(step))
        self._position = step + n
        return self._iterator

    def draw(self, chunk: Any, i: tf.Tensor) -> dict[str, Any]:
        """The next batch, on the host: [batch, ...], with several workers this one's rows of it."""
        del i
        return chunk.get_next()

    def take(self, drawn: dict[str, Any], part: int | tf.Tensor, parts: int) -> dict[str, Any]:
        """Cuts this part out on the host, so that no device is sent more than its rows."""
        worker, workers = self.workers
        if workers > 1:  # it has `here` of the parts of each accumulated batch, side by side
            here = parts // self.accumulate // workers
            part = part // (here * workers) * here + part % (here * workers) - worker * here
            parts //= workers
        with tf.device("CPU:0"):
            return tf.nest.map_structure(lambda value: _slice(value, part, parts), drawn)
