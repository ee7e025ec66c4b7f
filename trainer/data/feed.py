"""Batches as a function of (seed, step): the protocol of a feed, and the order of the examples.

Which example stands where is a function of (seed, step) alone: interruptions, replicas and workers
change nothing. Positions count on over epoch ends; position p is row p % batch of step p // batch.
A feed is used in three places:

    chunk = feed.chunk(step, n)                  # on the host, for steps step .. step + n - 1
    drawn = feed.draw(chunk, i)                  # compiled, cross-replica: step number step + i
    batch = feed.take(drawn, replica, replicas)  # compiled, in a replica: its share of the rows

An evaluation feed has every example once, in order; its last batch is filled up with the first
example, and `batch[MASK]` is 1.0 for a row that counts, 0.0 for one that does not.
`resident.py` and `streaming.py` are the two ways to draw, `choice.py` chooses.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from trainer.errors import UserError

MASK = "__mask__"


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

    def fault(self, step: int, n: int) -> UserError | None:
        """What is wrong with the first bad example of steps `step` to `step + n - 1`; None for nothing."""

    def waited(self) -> float | None:
        """Seconds that steps have waited for their batches since it was asked last; None where none can."""

    def take(self, drawn: Any, part: int | tf.Tensor, parts: int) -> dict[str, Any]:
        """Rows part * batch / parts .. of a batch: decoded, not preprocessed, in a replica."""


@contextlib.contextmanager
def reading(feed: Feed, step: int, n: int) -> Iterator[None]:
    """What goes wrong in these steps becomes a message, where it is an example that cannot be read.

    Raises:
      UserError: names the example.
    """
    try:
        yield
    except tf.errors.OpError as error:
        refusal = feed.fault(step, n)
        if refusal is None:
            raise
        raise refusal from error


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


def part_of(value: tf.Tensor, part: int | tf.Tensor, parts: int) -> tf.Tensor:
    """Rows part * n / parts .. (part + 1) * n / parts of `value` [n, ...], of static shape."""
    rows, *rest = value.shape
    if rows % parts:
        raise ValueError(f"{rows} rows cannot be cut into {parts} equal parts")
    size = rows // parts
    return tf.slice(value, [part * size, *[0] * len(rest)], [size, *rest]) if parts > 1 else value
