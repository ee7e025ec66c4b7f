"""The pipelines behind a streaming feed: examples by number or in a row, decoded, or gathered on the host."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.feed import MASK, order, permutation
from trainer.data.padding import Permute, dense, mask_of
from trainer.data.records import GROUP, checking, decoder, fault, load
from trainer.data.resident import pack, permutation_of, unpack
from trainer.data.source import InOrder, Split
from trainer.data.stored import Flat
from trainer.data.streaming import Streaming
from trainer.devices.replicas import Share
from trainer.errors import UserError

NUMBERS = 8192  # row numbers that the order is asked for at a time
AHEAD = 2  # batches that are ready before they are asked for


def streaming(split: Split, share: Share, batch: int, seed: int | None) -> Streaming:
    """Batches out of a split's elements, decoded as they go; arguments as of `resident.resident`."""
    _refuse_buckets(split)
    elements, decode = split.elements(), decoder(split, checking(split))
    if not isinstance(elements, np.ndarray):
        return _Pipeline(split, share, batch, seed, decode).in_order(elements)
    return _Pipeline(split, share, batch, seed, decode).by_number(permutation, elements)


def hosted(split: Split, share: Share, batch: int, seed: int | None) -> Streaming:
    """Batches gathered from the decoded split in the host's memory; arguments as of `resident.resident`."""
    stored = load(split)
    lengths = {name: stored[name].lengths for name in split.padded}
    gather = _gather(stored, split.layout())
    pipeline = _Pipeline(split, share, batch, seed, gather, group=False)
    return pipeline.by_number(permutation_of(split, lengths, batch), np.arange(split.examples))


@dataclasses.dataclass(frozen=True)
class _Pipeline:
    """Batches of one worker's rows, by `fetch`, which makes examples of a group of elements."""

    split: Split
    share: Share
    batch: int
    seed: int | None
    fetch: Callable[[Any], dict[str, Any]]
    group: bool = True

    @property
    def steps(self) -> int | None:
        """Batches of one evaluation; None in training."""
        return None if self.seed is not None else -(-self.split.examples // self.batch)

    @property
    def own(self) -> np.ndarray:
        """This worker's rows of a batch: of each accumulated batch in it, one share."""
        accumulate = self.share.accumulate if self.seed is not None else 1
        return np.arange(self.batch).reshape(accumulate, self.share.workers, -1)[:, self.share.worker].ravel()

    def by_number(self, permute: Permute, elements: np.ndarray) -> Streaming:
        """Elements that can be had at any time: their numbers, in the order of the split."""
        permute, own, examples = functools.lru_cache(maxsize=2)(permute), self.own, self.split.examples
        together = max(1, NUMBERS // self.batch)  # batches

        def places(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            start, count = int(number) * together * self.batch, together * self.batch
            if self.seed is not None:
                at = order(self.seed, examples, start, count, permute).reshape(together, self.batch)[:, own]
                return elements[at], np.ones(at.shape, np.float32)
            at = np.arange(start, start + count).reshape(together, self.batch)[:, own]
            return elements[np.where(at < examples, at, 0)], (at < examples).astype(np.float32)

        def numbers(step: int) -> tf.data.Dataset:
            some = tf.data.Dataset.range(step // together, np.iinfo(np.int64).max)
            shape = [together, len(own)]

            def ask(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                rows, real = tf.numpy_function(places, [number], [tf.int64, tf.float32], stateful=False)
                return tf.ensure_shape(rows, shape), tf.ensure_shape(real, shape)

            found = some.map(ask).prefetch(1).unbatch().skip(step % together)
            return found if self.steps is None else found.take(max(self.steps - step, 0))

        return self._streaming(
            lambda step: self._decoded(numbers(step)), lambda step, n: numbers(step).take(n)
        )

    def in_order(self, elements: InOrder) -> Streaming:
        """Elements that are read in a row; what is not this worker's is read and not decoded."""
        own, batch, steps = self.own, self.batch, self.steps

        def from_step(step: int) -> tf.data.Dataset:
            if self.seed is not None:
                rows = elements.shuffled(self.seed, step * batch).batch(batch, drop_remainder=True)
                return rows.map(lambda group: (tf.gather(group, own), tf.ones([len(own)])))
            assert steps is not None
            once, examples = elements.ordered(), self.split.examples
            filled = once.concatenate(once.take(1).repeat(steps * batch - examples))
            real = tf.data.Dataset.range(steps * batch).map(lambda p: tf.cast(p < examples, tf.float32))
            rows = tf.data.Dataset.zip((filled, real)).batch(batch, drop_remainder=True).skip(step)
            return rows.map(lambda group, real: (tf.gather(group, own), tf.gather(real, own)))

        return self._streaming(
            lambda step: self._decoded(from_step(step)), lambda step, n: from_step(step).take(n)
        )

    def _decoded(self, rows: tf.data.Dataset) -> tf.data.Dataset:
        """Examples of batches of elements, decoded some at a time, as many at once as there are cores."""
        split, count = self.split, len(self.own)

        def decoded(group: Any, real: tf.Tensor) -> dict[str, Any]:
            examples = self.fetch(group)
            return examples if self.seed is not None else {**examples, MASK: real}

        if split.padded:  # the length is that of the longest in the batch

            def padded(group: Any, real: tf.Tensor) -> dict[str, Any]:
                examples = decoded(group, real)
                for name in split.padded:
                    value, mask = dense(examples[name], split.pads[name], split.layout()[name])
                    examples = {**examples, name: value, mask_of(name): mask}
                return examples

            return rows.map(padded, tf.data.AUTOTUNE, deterministic=True)
        if self.group and count != GROUP:
            rows = rows.rebatch(GROUP)
            return rows.map(decoded, tf.data.AUTOTUNE, deterministic=True).rebatch(count, drop_remainder=True)
        return rows.map(decoded, tf.data.AUTOTUNE, deterministic=True)

    def _streaming(
        self, batches: Callable[[int], tf.data.Dataset], elements: Callable[[int, int], tf.data.Dataset]
    ) -> Streaming:
        count, share = len(self.own), self.share

        def shaped(batch: dict[str, Any]) -> dict[str, Any]:
            return tf.nest.map_structure(lambda v: tf.ensure_shape(v, [count, *v.shape[1:]]), batch)

        def ready(step: int) -> tf.data.Dataset:
            return batches(step).map(shaped).prefetch(AHEAD)

        def find_fault(step: int, n: int) -> UserError | None:
            some = n + AHEAD + GROUP // count + 1  # what is decoded together may reach behind these steps
            return fault(self.split, elements(step, some).map(lambda rows, real: rows).unbatch())

        with tf.device("CPU:0"):
            waited = tf.Variable(0.0, trainable=False, dtype=tf.float64)
        return Streaming(
            ready,
            ready(0).element_spec,
            self.split.examples,
            self.batch,
            self.steps,
            (share.worker, share.workers),
            share.accumulate if self.seed is not None else 1,
            {name: self.split.pads[name] for name in self.split.padded},
            find_fault,
            waited,
            share.strategy,
        )


def _gather(stored: Any, layout: Any) -> Callable[[tf.Tensor], dict[str, Any]]:
    """Places [group] -> examples, out of arrays on the host."""

    def kept(array: Any) -> Any:
        with tf.device("CPU:0"):
            if isinstance(array, Flat):
                return tuple(map(tf.constant, (pack(array.values), array.starts, array.lengths)))
            return tf.constant(array)

    tensors = [kept(array) for array in tf.nest.flatten(stored)]

    def one(array: Any, spec: tf.TensorSpec, places: tf.Tensor) -> Any:
        if not isinstance(array, tuple):
            return tf.gather(array, places)
        values, starts, lengths = array
        own = tf.gather(lengths, places)
        items = tf.ragged.range(tf.gather(starts, places), tf.gather(starts, places) + own)
        found = unpack(tf.gather(values, items.flat_values), tf.TensorSpec(spec.shape[1:], spec.dtype))
        return items.with_flat_values(found)

    def gather(places: tf.Tensor) -> dict[str, Any]:
        pairs = zip(tensors, tf.nest.flatten(layout), strict=True)
        return tf.nest.pack_sequence_as(layout, [one(array, spec, places) for array, spec in pairs])

    return gather


def _refuse_buckets(split: Split) -> None:
    """Sorting by length needs the lengths, which are not known of examples that are read as they go."""
    for pad in split.pads.values():
        if pad.bucket:
            raise UserError(
                f"--pad={pad.text}: bucket= needs the lengths of all examples, which "
                "--data_residency=streaming "
                "does not know. Give --data_residency=host, or leave bucket= out."
            )
