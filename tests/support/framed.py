"""A classifier of images of any size, which `decode` brings to one; for the tests of exports."""

from typing import Any

import keras
import tensorflow as tf

SIDE = 12


def build() -> keras.Model:
    """Images [B, 12, 12, 3] in [0, 1] to logits [B, 2]."""
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = keras.layers.Flatten(name="flatten")(keras.layers.AveragePooling2D(3, name="pool")(image))
    return keras.Model(image, keras.layers.Dense(2, name="head")(x), name="framed")


def decode(example: dict[str, Any]) -> dict[str, Any]:
    """The image at one size, still uint8."""
    image = tf.image.resize(example["image"], [SIDE, SIDE])
    return {"image": tf.cast(tf.round(image), tf.uint8), "label": example["label"]}


def preprocess(batch: dict[str, Any], training: bool, seed: tf.Tensor) -> dict[str, Any]:
    """Images to floats in [0, 1]."""
    return {**batch, "image": tf.cast(batch["image"], tf.float32) / 255}


def loss(model: Any, batch: dict[str, Any], training: bool) -> Any:
    """Cross entropy [B]."""
    logits = model(batch["image"], training=training)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits), {}
