"""A model that breaks the rules: its random numbers follow neither `seed` nor any saved state."""

from typing import Any

import numpy as np
import tensorflow as tf

from models import mnist_mlp
from models.mnist_cnn import loss
from models.mnist_cnn import preprocess as _preprocess

__all__ = ["build", "loss", "preprocess", "serve"]


def build(noise: float = 0.0) -> tf.Module:
    """A small perceptron; `noise` is added to what it serves."""
    model = mnist_mlp.build(hidden=4)
    model.noise = noise
    return model


def preprocess(batch: dict[str, Any], training: bool, seed: tf.Tensor) -> dict[str, Any]:
    """In training, noise that the host draws: no checkpoint holds its generator, and no trace shows it."""
    batch = _preprocess(batch, training, seed)
    if not training:
        return batch
    noise = tf.numpy_function(lambda: np.float32(np.random.normal(scale=0.1)), [], tf.float32)
    return {**batch, "image": batch["image"] + tf.cast(tf.ensure_shape(noise, []), batch["image"].dtype)}


def serve(model: Any, batch: dict[str, Any]) -> dict[str, tf.Tensor]:
    """Digits and their odds; `noise` makes the odds others each time."""
    odds = tf.nn.softmax(model(batch["image"])) + model.noise * tf.random.normal([])
    return {"digit": tf.argmax(odds, -1), "odds": odds}
