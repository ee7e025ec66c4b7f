"""Files of records that are read in a row: in order, or shuffled by block, as (seed, epoch) has it."""

import functools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

BLOCK_BYTES = 128 << 20  # undecoded records that are shuffled at a time
READ_AT_ONCE = 16  # files that are read side by side in training


@dataclass(frozen=True)
class Shards:
    """The records of a split, undecoded: strings.

    Attributes:
      names: paths of the files.
      skip: int, by file: records to leave out at its beginning.
      take: int, by file: records to read then; -1 for all.
      examples: how many records that is.
      bytes: how many bytes, about.
      keeps_order: never: they are shuffled.
    """

    names: tuple[str, ...]
    skip: tuple[int, ...]
    take: tuple[int, ...]
    examples: int
    bytes: int
    keeps_order: bool = False

    def ordered(self) -> tf.data.Dataset:
        """In the order of the files."""
        return _records(self._files(), at_once=1)

    def shuffled(self, seed: int, start: int) -> tf.data.Dataset:
        """From position `start` on, epoch after epoch, each shuffled anew.

        An epoch shuffles the files, reads some side by side, and shuffles block after block of their
        records. Only stateless random numbers keyed by (seed, epoch, block): `Dataset.shuffle` would
        depend on TensorFlow's global seed too.
        """
        files, size = self._files(), self.examples
        at_once = min(READ_AT_ONCE, len(self.names))
        block = min(size, max(1024, BLOCK_BYTES * size // max(self.bytes, 1)))

        def epoch(number: tf.Tensor) -> tf.data.Dataset:
            key = tf.stack([tf.constant(seed, tf.int64), number])
            chosen = _shuffle(tf.range(len(self.names)), key)
            some = _records({name: tf.gather(v, chosen) for name, v in files.items()}, at_once)
            return in_blocks(some, block, key)

        first, offset = divmod(start, size)
        epochs = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
        return epochs.flat_map(epoch).skip(offset)

    def _files(self) -> dict[str, tf.Tensor]:
        return {
            "name": tf.constant(self.names),
            "skip": tf.constant(self.skip, tf.int64),
            "take": tf.constant(self.take, tf.int64),
        }


_shuffle = functools.partial(tf.random.experimental.stateless_shuffle, alg="philox")


def in_blocks(elements: tf.data.Dataset, block: int, key: tf.Tensor) -> tf.data.Dataset:
    """The elements, `block` of them at a time shuffled as `key`, int64 [2], has it."""
    fold = tf.random.experimental.stateless_fold_in
    blocks = elements.batch(block).enumerate(start=1)

    def shuffle(i: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return _shuffle(b, fold(key, i))

    return blocks.map(shuffle).prefetch(1).unbatch()


def _records(files: dict[str, tf.Tensor], at_once: int) -> tf.data.Dataset:
    """Undecoded records, `at_once` files side by side."""

    def read(file: dict[str, tf.Tensor]) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(file["name"]).skip(file["skip"]).take(file["take"])

    return tf.data.Dataset.from_tensor_slices(files).interleave(
        read, at_once, block_length=16, num_parallel_calls=at_once, deterministic=True
    )
