"""The small convolutional network for MNIST: two convolutions, two dense layers, 10 classes."""

from typing import Any

import keras
import tensorflow as tf

Batch = dict[str, tf.Tensor]


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


def check_sizes(**sizes: Any) -> None:
    """Refuses what is no size of a layer.

    Raises:
      ValueError: not a whole number from 1 to 65,536; names the argument.

    Example:
      >>> check_sizes(dense=64, classes=10)
    """
    for name, value in sizes.items():
        if type(value) is not int or not 1 <= value <= 65_536:
            raise ValueError(f"{name}={value!r}: must be a whole number from 1 to 65,536")


def preprocess(batch: Batch, training: bool, seed: tf.Tensor) -> Batch:
    """Images uint8 [B, 28, 28, 1] to floats in [0, 1]; nothing here is random."""
    del training, seed
    return {**batch, "image": tf.cast(batch["image"], keras.config.floatx()) / 255}


def loss(model: Any, batch: Batch, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Softmax cross entropy in nats and accuracy (0 or 1), each [B], in float32 or float64."""
    logits = model(batch["image"], training=training)
    if logits.dtype != tf.float64:  # half precision is too coarse for a loss
        logits = tf.cast(logits, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
    hits = tf.argmax(logits, axis=-1, output_type=batch["label"].dtype) == batch["label"]
    return losses, {"accuracy": tf.cast(hits, losses.dtype)}


def check(model: Any, features: Any) -> None:
    """Refuses a data set (its `tfds.features.FeaturesDict`) that this network cannot take.

    Raises:
      ValueError: no image of 28x28x1, no class label, or more classes than the model has.
    """
    if not {"image", "label"} <= set(features):
        raise ValueError(f"the model reads image and label, the data has {', '.join(features)}")
    if tuple(features["image"].shape) != (28, 28, 1):
        raise ValueError(f"the model reads images of 28x28x1, not {features['image'].shape}")
    labels = getattr(features["label"], "num_classes", None)
    classes = model.output_shape[-1]
    if labels is None:
        raise ValueError(f"the model reads one class label, not {features['label']}")
    if labels > classes:
        raise ValueError(
            f"the labels run from 0 to {labels - 1} but the model has {classes} classes; "
            f"give the model classes={labels}"
        )
