"""A small model with everything that could come out different after a restart; for the tests of resuming."""

from typing import Any

import keras
import tensorflow as tf

from models.mnist_cnn import loss

__all__ = ["build", "loss", "preprocess"]


def build(width: int = 8) -> keras.Model:
    """Images [B, 28, 28, 1] to logits [B, 10]: pooled, dense, normalised, dropout, dense."""
    image = keras.Input((28, 28, 1), name="image")
    x = keras.layers.Flatten(name="flatten")(keras.layers.AveragePooling2D(4, name="pool")(image))
    x = keras.layers.Dense(width, name="enc", kernel_regularizer=keras.regularizers.L2(1e-4))(x)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.Dropout(0.3, name="drop")(keras.layers.ReLU(name="relu")(x))
    return keras.Model(image, keras.layers.Dense(10, name="logits")(x), name="noisy")


def preprocess(batch: dict[str, Any], training: bool, seed: tf.Tensor) -> dict[str, Any]:
    """Images uint8 to floats in [0, 1]; in training, noise drawn from `seed`."""
    image = tf.cast(batch["image"], keras.config.floatx()) / 255
    if training:
        image += 0.1 * tf.random.stateless_normal(tf.shape(image), seed, dtype=image.dtype)
    return {**batch, "image": image}
