"""A small DCGAN (Radford et al. 2016): two networks, two losses, each of which moves its own.

Both losses are of one forward pass: the generator moves by what the discriminator said before its update.
Each evaluation draws a picture.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.model.classifier import Batch, check_sizes

CODE, SIDE = 32, 28  # numbers that an image is made of, and its height and width
SHOWN = 8  # images in a row and in a column of the picture


class Gan(keras.Model):
    """`generator` [B, 32] to images [B, 28, 28, 1] in [-1, 1], `discriminator` these to logits [B, 1]."""

    def __init__(self, width: int) -> None:
        """`width`: channels of the widest layer of each."""
        super().__init__(name="gan")
        narrow, layers = max(1, width // 2), keras.layers
        self.generator = keras.Sequential(
            [
                keras.Input((CODE,)),
                layers.Dense(7 * 7 * width, use_bias=False, name="dense"),
                layers.BatchNormalization(momentum=0.9, name="bn1"),
                layers.ReLU(name="relu1"),
                layers.Reshape((7, 7, width), name="grid"),
                layers.Conv2DTranspose(narrow, 5, strides=2, padding="same", use_bias=False, name="up1"),
                layers.BatchNormalization(momentum=0.9, name="bn2"),
                layers.ReLU(name="relu2"),
                layers.Conv2DTranspose(1, 5, strides=2, padding="same", activation="tanh", name="up2"),
            ],
            name="generator",
        )
        self.discriminator = keras.Sequential(
            [
                keras.Input((SIDE, SIDE, 1)),
                layers.Conv2D(narrow, 5, strides=2, padding="same", name="down1"),
                layers.LeakyReLU(0.2, name="leaky1"),
                layers.Dropout(0.3, name="drop1"),
                layers.Conv2D(width, 5, strides=2, padding="same", name="down2"),
                layers.LeakyReLU(0.2, name="leaky2"),
                layers.Dropout(0.3, name="drop2"),
                layers.Flatten(name="flatten"),
                layers.Dense(1, name="logit"),
            ],
            name="discriminator",
        )

    def call(self, code: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images of codes [B, 32]."""
        return self.generator(code, training=training)


def build(width: int = 64) -> keras.Model:
    """The two networks.

    Args:
      width: channels of the widest layer of each.
    """
    check_sizes(width=width)
    model = Gan(width)
    model(tf.zeros([1, CODE], keras.config.floatx()))
    return model


def check(model: Any, features: Any) -> None:
    """Refuses what is no data of grey images of 28x28."""
    if "image" not in features or tuple(features["image"].shape) != (SIDE, SIDE, 1):
        raise ValueError(f"the model makes images of {SIDE}x{SIDE}x1, and the data have no such `image`")


def preprocess(batch: Batch, training: bool, seed: tf.Tensor) -> Batch:
    """`image` to [-1, 1], and a `code` for each, in an evaluation the same each time."""
    dtype = keras.config.floatx()
    image = tf.cast(batch["image"], dtype) / 127.5 - 1
    return {"image": image, "code": tf.random.stateless_normal([tf.shape(image)[0], CODE], seed, dtype=dtype)}


def loss(model: Gan, batch: Batch, training: bool) -> tuple[dict[str, tf.Tensor], Batch]:
    """Of the discriminator, to tell images from what is made; of the generator, to be taken for them.

    The second is the one that does not saturate (Goodfellow et al. 2014, section 3). Metrics: how often the
    discriminator finds an image `real`, and how often it is `fooled`.
    """
    made = model(batch["code"], training=training)
    of_image, of_made = (_logit(model, x, training) for x in (batch["image"], made))
    discriminator = tf.nn.softplus(-of_image) + tf.nn.softplus(of_made)
    found = {"real": tf.cast(of_image > 0, tf.float32), "fooled": tf.cast(of_made > 0, tf.float32)}
    return {"discriminator": discriminator, "generator": tf.nn.softplus(-of_made)}, found


def _logit(model: Gan, image: tf.Tensor, training: bool) -> tf.Tensor:
    logit = model.discriminator(image, training=training)[:, 0]
    return tf.cast(logit, tf.float64 if logit.dtype == tf.float64 else tf.float32)


def outputs(model: Gan, batch: Batch) -> Batch:
    """What is made of each code."""
    return {"made": model(batch["code"])}


def metrics(rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """The first 64 as a picture, uint8 [224, 224, 1]."""
    made = np.zeros([SHOWN**2, SIDE, SIDE, 1])
    first = rows["made"][: SHOWN**2]
    made[: len(first)] = np.clip(np.nan_to_num(first + 1) * 127.5, 0, 255)
    grid = made.reshape(SHOWN, SHOWN, SIDE, SIDE).swapaxes(1, 2).reshape(SHOWN * SIDE, SHOWN * SIDE, 1)
    return {"made": grid.astype(np.uint8)}


def serve(model: Gan, batch: Batch) -> Batch:
    """How likely the discriminator takes an image for a real one [B]."""
    return {"real": tf.sigmoid(_logit(model, batch["image"], False))}
