"""Batches as they go: read, shuffled and decoded beside the training, or gathered from the host's memory."""

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from trainer.data.feed import part_of
from trainer.data.padding import Pad, longer, mask_of
from trainer.errors import UserError

NUMBERS = 8192  # row numbers that the order is asked for at a time
AHEAD = 2  # batches that are ready before they are asked for


@dataclasses.dataclass
class Streaming:
    """Batches from a `tf.data` pipeline that can start at any step.

    Attributes:
      batches: step -> the batches from that step on; of each only the rows of this worker.
      element_spec: the type of such a batch.
      workers: (index, count) of the processes that share each batch.
      accumulate: each batch is this many batches in a row, and each of those is shared.
      pads: by feature, how examples of different lengths are brought to one.
      find_fault: (step, n) -> what is wrong with the first bad example of these steps; None for nothing.
      clock: float64, seconds that steps waited for their batches since it was last set to 0.
      strategy: through which workers tell each other how long their examples are.
    """

    batches: Callable[[int], tf.data.Dataset]
    element_spec: Any
    examples: int
    batch: int
    steps: int | None = None
    workers: tuple[int, int] = (0, 1)
    accumulate: int = 1
    pads: Mapping[str, Pad] = dataclasses.field(default_factory=dict)
    find_fault: Callable[[int, int], UserError | None] = lambda step, n: None
    clock: tf.Variable | None = None
    strategy: tf.distribute.Strategy | None = None
    _iterators: list[Any] = dataclasses.field(default_factory=list)
    _position: int = -1

    def __post_init__(self) -> None:
        """A pipeline that calls Python must end before the interpreter does, or the process hangs."""
        weakref.finalize(self, self._iterators.clear)

    @property
    def spec(self) -> tf.data.IteratorSpec:
        """An iterator over batches."""
        return tf.data.IteratorSpec(self.element_spec)

    def chunk(self, step: int, n: int) -> Iterator[Any]:
        """The iterator, standing at `step`; made anew only where it does not stand there."""
        if self._position != step:
            self._iterators.clear()
            with tf.device("CPU:0"):
                self._iterators.append(iter(self.batches(step)))
        self._position = step + n
        return self._iterators[0]

    def draw(self, chunk: Any, i: tf.Tensor) -> dict[str, Any]:
        """The next batch, on the host: [batch, ...], with several workers this one's rows of it."""
        del i
        drawn = self._next(chunk)
        return self._of_one_length(drawn) if self.workers[1] > 1 and self.pads else drawn

    def _next(self, chunk: Any) -> dict[str, Any]:
        """The next batch; the time that it took to come is added up."""
        if self.clock is None:
            return chunk.get_next()
        with tf.device("CPU:0"):
            asked = tf.timestamp()
            with tf.control_dependencies([asked]):
                drawn = chunk.get_next()
            with tf.control_dependencies(tf.nest.flatten(drawn)[:1]):
                self.clock.assign_add(tf.timestamp() - asked)
        return drawn

    def take(self, drawn: dict[str, Any], part: int | tf.Tensor, parts: int) -> dict[str, Any]:
        """Cuts this part out on the host, so that no device is sent more than its rows."""
        worker, workers = self.workers
        if workers > 1:  # it has `here` of the parts of each accumulated batch, side by side
            here = parts // self.accumulate // workers
            part = part // (here * workers) * here + part % (here * workers) - worker * here
            parts //= workers
        with tf.device("CPU:0"):
            return tf.nest.map_structure(lambda value: _part_of(value, part, parts), drawn)

    def fault(self, step: int, n: int) -> UserError | None:
        """What is wrong with the first bad example of these steps, and of those that are read ahead."""
        self._position = -1  # the pipeline is broken
        return self.find_fault(step, n)

    def waited(self) -> float | None:
        """Seconds that steps have waited for their batches since it was asked last."""
        if self.clock is None:
            return None
        seconds = float(self.clock.numpy())
        self.clock.assign(0.0)
        return seconds

    def _of_one_length(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """Each padded feature as long as on the worker that has the longest, whose length all must learn."""
        names = list(self.pads)
        own = tf.stack([tf.cast(tf.shape(drawn[name])[1], tf.int64) for name in names])

        def own_row() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            here = tf.range(context.num_replicas_in_sync) == context.replica_id_in_sync_group
            return tf.where(here[:, None], own, 0)

        assert self.strategy is not None
        every = self.strategy.reduce("SUM", self.strategy.run(own_row), axis=None)
        longest = tf.unstack(tf.cast(tf.reduce_max(every, 0), tf.int32))
        for name, length in zip(names, longest, strict=True):
            mask = longer(drawn[mask_of(name)], length, False)
            drawn = {**drawn, name: longer(drawn[name], length, self.pads[name].value), mask_of(name): mask}
        return drawn


def _part_of(value: tf.Tensor, part: int | tf.Tensor, parts: int) -> tf.Tensor:
    """As `part_of`, of a value whose second dimension may differ from batch to batch."""
    if value.shape.is_fully_defined():
        return part_of(value, part, parts)
    if value.shape[0] % parts:
        raise ValueError(f"{value.shape[0]} rows cannot be cut into {parts} equal parts")
    size = value.shape[0] // parts
    return tf.ensure_shape(value[part * size : (part + 1) * size], [size, *value.shape[1:]])
