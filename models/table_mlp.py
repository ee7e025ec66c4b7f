"""A perceptron for tables: every column but the label, normalised, to a class."""

from typing import Any

import keras
import tensorflow as tf


def build(columns: int, classes: int, label: str = "label", hidden: int = 32) -> keras.Model:
    """Layers `normalize`, `hidden` and `logits`.

    Args:
      columns: how many columns the table has besides the label.
      classes: of the label.
      label: name of its column.
      hidden: units of the hidden layer.
    """
    table = keras.Input([columns])
    # Learns the mean and the deviation of each column as it trains; scales nothing of its own.
    x = keras.layers.BatchNormalization(scale=False, center=False, momentum=0.9, name="normalize")(table)
    x = keras.layers.Dense(hidden, activation="relu", name="hidden")(x)
    model = keras.Model(table, keras.layers.Dense(classes, name="logits")(x))
    model.label = label
    return model


def check(model: Any, features: Any) -> None:
    """Refuses a table of other columns.

    Raises:
      ValueError: the label is not there, or there are more or fewer columns.
    """
    if model.label not in features:
        raise ValueError(f"there is no column {model.label}; say which is the label, label='NAME'")
    columns = model.input_shape[-1]
    if len(features) - 1 != columns:
        raise ValueError(
            f"the table has {len(features) - 1} columns besides the label; give columns={len(features) - 1}"
        )


def loss(model: Any, batch: dict[str, tf.Tensor], training: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Softmax cross entropy [B], and accuracy."""
    label = batch[model.label]
    names = sorted(name for name in batch if name != model.label)
    table = tf.stack([tf.cast(batch[name], keras.config.floatx()) for name in names], 1)
    logits = model(table, training=training)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
    return losses, {"accuracy": tf.cast(tf.argmax(logits, -1) == tf.cast(label, tf.int64), tf.float32)}
