"""The convolutional network of `models/mnist_cnn.py` with augmentation: each image is shifted at random.

All randomness is from `seed`, which is another one in every step and on every replica, and the same after a
restart: a resumed run sees the very images that an uninterrupted one does.
"""

from typing import Any

import tensorflow as tf

from models import mnist_cnn
from models.mnist_cnn import build, check, loss

__all__ = ["build", "check", "loss", "preprocess"]

SHIFT = 2  # pixels, at most, in each direction


def preprocess(batch: dict[str, tf.Tensor], training: Any, seed: tf.Tensor) -> dict[str, tf.Tensor]:
    """Images [B, 28, 28, 1], in training cut out of a frame that is `SHIFT` pixels wider at each edge."""
    batch = mnist_cnn.preprocess(batch, training, seed)
    if not training:
        return batch
    image = batch["image"]
    rows, height, width, channels = image.shape
    wide = tf.pad(image, [[0, 0], [SHIFT, SHIFT], [SHIFT, SHIFT], [0, 0]])
    corners = tf.random.stateless_uniform([rows, 2], seed, 0, 2 * SHIFT + 1, tf.int32)

    def cut(one: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return tf.slice(one[0], [one[1][0], one[1][1], 0], [height, width, channels])

    shifted = tf.map_fn(
        cut, (wide, corners), fn_output_signature=tf.TensorSpec([height, width, channels], image.dtype)
    )
    return {**batch, "image": shifted}
