"""The open log window: sums and weights of the loss and of each metric, in one vector.

`[sum, weight]` of the loss comes first, then of each loss that is a mean of its own (`Means.apart`), then of
each metric, in the order of their names. The first pair holds what is a mean over examples: the loss itself,
or, where all of it stands apart, what the model adds to it. A batch's part of it, the run's window and an
evaluation's total are all such.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.model.returns import Means, Term, some_losses


def size(means: Means) -> int:
    """Numbers in a window."""
    return 2 * (1 + len(means.apart) + len(means.metrics))


def of_batch(
    terms: Mapping[str, Term], metrics: Mapping[str, Any], means: Means, mask: tf.Tensor, added: Any
) -> tf.Tensor:
    """The window of one batch, in the dtype of the losses.

    Args:
      terms: losses [B] and weights [B] by name.
      metrics: `{name: value [B] or (value [B], weight [B])}`.
      means: what they are.
      mask: [B], 0 for rows that count nothing, whatever their value.
      added: scalar, what the model adds to the sum of the losses (`model.losses`).
    """
    losses = some_losses(terms)
    first = losses if not means.apart else tf.zeros_like(losses)
    pairs = [(first, None), *(terms[name] for name in means.apart)]
    for name in means.metrics:
        value = metrics[name]
        pairs.append(value if isinstance(value, tuple) else (value, None))
    parts = []
    for value, weight in pairs:
        weight = tf.ones_like(losses) if weight is None else weight
        weight = tf.cast(weight, losses.dtype) * tf.cast(mask, losses.dtype)
        value = tf.where(weight > 0, tf.cast(value, losses.dtype), 0)
        parts += [tf.reduce_sum(value * weight), tf.reduce_sum(weight)]
    parts[0] += tf.cast(added, losses.dtype)
    return tf.stack(parts)


def loss_sum(window: Any, means: Means) -> Any:
    """A number that is finite where all losses are: their sum."""
    return sum((window[2 * k] for k, _ in enumerate(means.apart, 1)), start=window[0])


def weights(window: tf.Tensor, means: Means) -> dict[str, tf.Tensor]:
    """By the name of each loss that has weights, their sum."""
    return {name: window[2 * k + 1] for k, name in enumerate(means.apart, 1) if name in means.weighted}


def examples(window: np.ndarray) -> int:
    """How many examples there were."""
    return int(window[1])


def weightless(window: np.ndarray, means: Means) -> list[str]:
    """What no example of the window gave a weight, in words: such have no mean."""
    what = [f"loss {name}".rstrip() for name in means.apart] + [f"metric {name}" for name in means.metrics]
    found = np.asarray(window).reshape(-1, 2)[1:, 1]
    return [name for name, weight in zip(what, found, strict=True) if weight == 0]


def means_of(window: np.ndarray, means: Means) -> dict[str, float]:
    """`{"loss": mean, "loss/NAME": mean, metric: mean}`; NaN where the weight is 0."""
    pairs = np.asarray(window).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        values = pairs[:, 0] / pairs[:, 1]
    first = 1 + len(means.apart)
    named = [value for name, value in zip(means.apart, values[1:first], strict=True) if name]
    numbers = [values[:first].sum(), *named, *values[first:]]
    return dict(zip(means.names, map(float, numbers), strict=True))
