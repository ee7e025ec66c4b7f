"""Data that a function returns, for runs through flags; and a model of words."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from examples.own_data import arrays


def shuffled() -> dict[str, tf.data.Dataset]:
    """The digits as `tf.data.Dataset`s."""
    return {split: tf.data.Dataset.from_tensor_slices(parts) for split, parts in arrays().items()}


def words() -> dict[str, Any]:
    """Examples of different lengths."""
    random = np.random.default_rng(0)
    # Long words, where they count, are hard: a mean over too few or too many tokens would show.
    return {"tokens": [random.integers(0, 9, n) for n in random.integers(1, 30, 200)]}


def build() -> keras.Model:
    tokens = keras.Input([None], dtype="int64", name="tokens")
    return keras.Model(
        tokens, keras.layers.Dense(9, name="head")(keras.layers.Embedding(9, 4, name="embed")(tokens))
    )


def loss(model: Any, batch: Any, training: bool) -> Any:
    real = tf.cast(batch["tokens_mask"], keras.config.floatx())
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["tokens"], model(batch["tokens"]))
    return tf.reduce_sum(each * real, 1) / tf.reduce_sum(real, 1), {}
