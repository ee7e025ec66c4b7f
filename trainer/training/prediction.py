"""The outputs of a model for every example of a feed, in order: compiled, and a few batches at a time."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.data.feed import MASK, Feed
from trainer.training.split_metrics import Rows

VISIT = 1.0  # seconds between two visits of the host


def predictor(
    strategy: tf.distribute.Strategy,
    function: Callable[[dict[str, Any]], dict[str, tf.Tensor]],
    specs: Mapping[str, tf.TensorSpec],
    feed: Feed,
) -> Callable[[Any, tf.Tensor], dict[str, tf.Tensor]]:
    """`(chunk, n) -> {name: [n, batch, ...]}` of what `function` makes of n batches.

    Args:
      strategy: whose replicas share a batch; of one process.
      function: `{feature: [b, ...]} -> {name: [b, ...]}`, in a replica.
      specs: of a row of what it returns.
      feed: an evaluation feed.
    """
    rows, staged = Rows(strategy, specs), tf.function(function)

    def one(drawn: Any) -> dict[str, tf.Tensor]:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        batch = dict(feed.take(drawn, replica, strategy.num_replicas_in_sync))
        batch.pop(MASK)
        with keras.StatelessScope():
            return staged(batch)

    @tf.function(input_signature=[feed.spec, tf.TensorSpec([], tf.int32)], autograph=False)
    def predict(chunk: Any, n: tf.Tensor) -> dict[str, tf.Tensor]:
        def batch(i: tf.Tensor, kept: Any) -> tuple[tf.Tensor, Any]:
            return i + 1, rows.write(kept, i, strategy.run(one, args=(feed.draw(chunk, i),)))

        _, kept = tf.while_loop(lambda i, _: i < n, batch, (tf.constant(0), rows.start(n)))
        return rows.stack(kept)

    return predict


def predicted(function: Any, feed: Feed) -> Iterator[dict[str, np.ndarray]]:
    """`{name: [rows, ...]}` of the next examples, about a second's work at a time, each example once.

    Args:
      function: a `predictor` of this feed.
      feed: an evaluation feed.
    """
    assert feed.steps is not None
    step, n = 0, 1
    while step < feed.steps:
        n = min(n, feed.steps - step)
        began = time.perf_counter()
        rows = {k: v.numpy() for k, v in function(feed.chunk(step, n), tf.constant(n)).items()}
        real = min(n * feed.batch, feed.examples - step * feed.batch)
        yield {name: a.reshape(-1, *a.shape[2:])[:real] for name, a in rows.items()}
        seconds, first = time.perf_counter() - began, step == 0
        step += n
        n = 1 if first else max(1, min(4 * n, int(n / seconds * VISIT)))  # the first call compiles
