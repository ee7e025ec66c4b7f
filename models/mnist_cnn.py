"""The small convolutional network for MNIST: two convolutions, two dense layers, 10 classes."""

from typing import Any

import keras

from trainer.model.classifier import check_images, check_sizes, loss, outputs, preprocess

__all__ = ["build", "check", "loss", "outputs", "preprocess"]


def build(
    filters: int = 32,
    dense: int = 64,
    classes: int = 10,
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> keras.Model:
    """Conv `filters` 3x3, pool, conv 2 `filters` 3x3, pool, flatten, dense, logits.

    Args:
      filters: channels of `conv1`; `conv2` has twice as many.
      dense: width of `dense1`.
      classes: number of logits.
      dropout: share of `dense1`'s outputs dropped in training; 0 leaves the layer out.
      batch_norm: normalise after each convolution (`bn1`, `bn2`), before its ReLU.

    Raises:
      ValueError: an argument that no such network can have.

    Returns:
      A functional model, float images [B, 28, 28, 1] in [0, 1] to logits [B, classes].
    """

    check_sizes(filters=filters, dense=dense, classes=classes)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r}: must be a number from 0 to less than 1")
    if not isinstance(batch_norm, bool):
        raise ValueError(f"batch_norm={batch_norm!r}: must be True or False")

    def conv(x: Any, channels: int, index: int) -> Any:
        activation = None if batch_norm else "relu"
        x = keras.layers.Conv2D(channels, 3, activation=activation, name=f"conv{index}")(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(name=f"bn{index}")(x)
            x = keras.layers.ReLU(name=f"relu{index}")(x)
        return keras.layers.MaxPooling2D(name=f"pool{index}")(x)

    image = keras.Input((28, 28, 1), name="image")
    x = conv(conv(image, filters, 1), 2 * filters, 2)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(dense, activation="relu", name="dense1")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(image, keras.layers.Dense(classes, name="logits")(x), name="mnist_cnn")


def check(model: Any, features: Any) -> None:
    """Refuses data that are not images of 28x28x1 with a class label.

    Raises:
      ValueError: says what does not fit.
    """
    check_images(model, features, (28, 28, 1))
