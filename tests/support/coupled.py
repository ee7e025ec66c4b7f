"""A perceptron whose loss looks at the whole batch of its replica, as it must not."""

from typing import Any

import keras
import tensorflow as tf

from models import mnist_mlp
from models.mnist_cnn import loss as _loss
from models.mnist_cnn import preprocess

__all__ = ["build", "loss", "preprocess"]


def build(coupling: str = "none", narrow: bool = False) -> Any:
    """`coupling` says how the loss is wrong; a `narrow` model is float32 whatever is asked for."""
    if narrow:
        keras.config.set_floatx("float32")
    model = mnist_mlp.build(hidden=8)
    model.coupling = coupling
    return model


def loss(model: Any, batch: dict[str, Any], training: bool) -> Any:
    """The perceptron's, and what the coupling makes of it."""
    losses, metrics = _loss(model, batch, training)
    mean = tf.reduce_mean(losses)
    coupled = {
        "none": lambda: losses,
        "mean": lambda: tf.fill(tf.shape(losses), mean),  # right in the sum: only an example's loss is wrong
        "variance": lambda: losses + tf.square(losses - mean),
        # The values are right and the gradients are not.
        "gradient": lambda: tf.stop_gradient(losses) + (mean - tf.stop_gradient(mean)) * tf.square(mean),
    }
    return coupled[model.coupling](), metrics
