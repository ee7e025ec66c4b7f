"""What the replicas and the workers of a run take of a batch, in one process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from trainer.data.feed import Feed
from trainer.devices.replicas import Share


@dataclass(frozen=True)
class Worker(Share):
    """The share of one of several workers, in one process."""

    index: int = 0
    count: int = 1

    worker = property(lambda self: self.index)
    workers = property(lambda self: self.count)


def drawing(feed: Feed, strategy: tf.distribute.Strategy) -> Callable[[Any, Any], dict[str, tf.Tensor]]:
    """`(chunk, i) -> batch`: a whole batch, put together again from what the replicas took."""

    @tf.function
    def draw(chunk, i):
        def part(rows):
            context = tf.distribute.get_replica_context()
            return feed.take(rows, context.replica_id_in_sync_group, context.num_replicas_in_sync)

        parts = strategy.run(part, args=(feed.draw(chunk, i),))
        return tf.nest.map_structure(lambda v: tf.concat(strategy.experimental_local_results(v), 0), parts)

    return draw
