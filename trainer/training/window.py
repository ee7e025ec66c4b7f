"""The open log window: sums and weights of the loss and of each metric, in one vector.

`[sum, weight]` of the loss comes first, then `[sum, weight]` of each metric in the order of their names:
shape [2 * (1 + metrics)]. A batch's part of it, the run's window and an evaluation's total are all such.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def size(metrics: Sequence[str]) -> int:
    """Numbers in a window."""
    return 2 * (1 + len(metrics))


def of_batch(
    losses: tf.Tensor, metrics: Mapping[str, Any], names: Sequence[str], mask: tf.Tensor, added: Any
) -> tf.Tensor:
    """The window of one batch, in the dtype of `losses`.

    Args:
      losses: [B].
      metrics: `{name: value [B] or (value [B], weight [B])}`.
      names: of the metrics, in order.
      mask: [B], 0 for rows that count nothing, whatever their value.
      added: scalar, what the model adds to the sum of the losses (`model.losses`).
    """
    pairs = [(losses, tf.ones_like(losses))]
    for name in names:
        value = metrics[name]
        pairs.append(value if isinstance(value, tuple) else (value, tf.ones_like(losses)))
    parts = []
    for value, weight in pairs:
        weight = tf.cast(weight, losses.dtype) * tf.cast(mask, losses.dtype)
        value = tf.where(weight > 0, tf.cast(value, losses.dtype), 0)
        parts += [tf.reduce_sum(value * weight), tf.reduce_sum(weight)]
    parts[0] += tf.cast(added, losses.dtype)
    return tf.stack(parts)


def loss_sum(window: tf.Tensor) -> tf.Tensor:
    """The sum of the losses."""
    return window[0]


def examples(window: np.ndarray) -> int:
    """How many examples the loss was summed over."""
    return int(window[1])


def weightless(window: np.ndarray, names: Sequence[str]) -> list[str]:
    """Names of the metrics to which no example of the window gave a weight: they have no mean."""
    weights = np.asarray(window).reshape(-1, 2)[1:, 1]
    return [name for name, weight in zip(names, weights, strict=True) if weight == 0]


def means(window: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """`{"loss": mean, metric: mean}`; NaN where the weight is 0."""
    pairs = np.asarray(window).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        values = pairs[:, 0] / pairs[:, 1]
    return dict(zip(("loss", *names), map(float, values), strict=True))
