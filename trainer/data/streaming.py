"""Batches from files as they go: read, shuffled and decoded beside the training."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.feed import MASK, part_of
from trainer.data.records import GROUP, decoder
from trainer.data.source import Split
from trainer.devices.strategy import Share


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
    _waited: tf.Variable = dataclasses.field(default_factory=lambda: _clock())

    @property
    def waited(self) -> float:
        """Seconds spent in `get_next` so far."""
        return float(self._waited.numpy())

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
        with tf.device("CPU:0"):
            began = tf.timestamp()
            with tf.control_dependencies([began]):
                batch = chunk.get_next()
            with tf.control_dependencies(tf.nest.flatten(batch)):
                self._waited.assign_add(tf.timestamp() - began)
        return batch

    def take(self, drawn: dict[str, Any], part: int | tf.Tensor, parts: int) -> dict[str, Any]:
        """Cuts this part out on the host, so that no device is sent more than its rows."""
        worker, workers = self.workers
        if workers > 1:  # it has `here` of the parts of each accumulated batch, side by side
            here = parts // self.accumulate // workers
            part = part // (here * workers) * here + part % (here * workers) - worker * here
            parts //= workers
        with tf.device("CPU:0"):
            return tf.nest.map_structure(lambda value: part_of(value, part, parts), drawn)


def _clock() -> tf.Variable:
    with tf.device("CPU:0"):
        return tf.Variable(tf.zeros([], tf.float64), trainable=False)


def streaming(split: Split, share: Share, batch: int, seed: int | None) -> Streaming:
    """Batches out of a split's elements; arguments as of `resident.resident`."""
    if seed is not None:
        return _streaming(split, share, batch, None, lambda start: split.shuffled(seed, start))
    examples = split.examples
    steps = -(-examples // batch)

    def elements(start: int) -> tf.data.Dataset:
        once = split.ordered()
        filled = once.concatenate(once.take(1).repeat(steps * batch - examples))
        real = tf.data.Dataset.range(steps * batch).map(lambda p: tf.cast(p < examples, tf.float32))
        return tf.data.Dataset.zip((filled, real)).skip(start)

    return _streaming(split, dataclasses.replace(share, accumulate=1), batch, steps, elements)


def _streaming(
    split: Split,
    share: Share,
    batch: int,
    steps: int | None,
    elements: Callable[[int], tf.data.Dataset],
) -> Streaming:
    """Batches of `elements(start)`: undecoded, or with the mask as a second part."""
    # This worker's rows of a batch: of each accumulated batch in it, one share.
    own = np.arange(batch).reshape(share.accumulate, share.workers, -1)[:, share.worker].ravel()
    decode_group = decoder(split)

    def mine(*parts: Any) -> tuple[Any, ...]:
        return tf.nest.map_structure(lambda part: tf.gather(part, own), parts)

    def decoded(group: Any, *real: tf.Tensor) -> dict[str, Any]:
        examples = decode_group(group)
        return {**examples, MASK: real[0]} if real else examples

    def batches(step: int) -> tf.data.Dataset:
        source = elements(step * batch)
        if share.workers > 1:  # before decoding, which is the work
            source = source.batch(batch, drop_remainder=True).map(mine).unbatch()
        groups = source.batch(GROUP).map(decoded, tf.data.AUTOTUNE, deterministic=True)
        return groups.rebatch(len(own), drop_remainder=True).prefetch(2)

    spec = batches(0).element_spec
    workers = share.worker, share.workers
    return Streaming(batches, spec, split.examples, batch, steps, workers, share.accumulate)
