"""What classifiers share: their loss and outputs; of images their input too, and the check of their data."""

from typing import Any

import keras
import tensorflow as tf

Batch = dict[str, tf.Tensor]


def preprocess(batch: Batch, training: bool, seed: tf.Tensor) -> Batch:
    """Images uint8 [B, ...] to floats in [0, 1]; nothing here is random."""
    del training, seed
    return {**batch, "image": tf.cast(batch["image"], keras.config.floatx()) / 255}


def loss(model: Any, batch: Batch, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Softmax cross entropy in nats and accuracy (0 or 1), each [B], in float32 or float64."""
    return cross_entropy(model(batch["image"], training=training), batch["label"])


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Softmax cross entropy in nats and accuracy (0 or 1), each [B], of logits [B, C] and labels [B]."""
    if logits.dtype != tf.float64:  # half precision is too coarse for a loss
        logits = tf.cast(logits, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    hits = tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels
    return losses, {"accuracy": tf.cast(hits, losses.dtype)}


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


def outputs(model: Any, batch: Batch) -> Batch:
    """`logits` [B, classes] and `labels` [B]: for a confusion matrix and a table of the classes."""
    return {"logits": model(batch["image"], training=False), "labels": batch["label"]}


def hashed_words(example: Batch, length: int, buckets: int) -> Batch:
    """An example whose `text`, scalar, is `tokens` int32 [length]: words by a hash from 1 on, 0 behind them.

    Words are runs of letters and digits and single other signs, in lower case. Hashing needs no vocabulary
    to be kept (Weinberger et al. 2009); what else the example holds is passed on.
    """
    spaced = tf.strings.regex_replace(tf.strings.lower(example["text"]), r"([^a-z0-9\s])", r" \1 ")
    words = tf.strings.split(spaced)[:length]
    tokens = tf.strings.to_hash_bucket_fast(words, buckets - 1) + 1
    tokens = tf.pad(tokens, [[0, length - tf.size(tokens)]])
    rest = {name: value for name, value in example.items() if name != "text"}
    return {**rest, "tokens": tf.ensure_shape(tf.cast(tokens, tf.int32), [length])}


def check_images(model: Any, features: Any, shape: tuple[int, ...]) -> None:
    """Refuses a data set that a classifier of images of this shape cannot take.

    Args:
      model: with an `output_shape` [B, classes].
      features: of the data set: `image` and `label`, each with a shape and a dtype.
      shape: of one image.

    Raises:
      ValueError: no image of this shape, no class label, or more classes than the model has.
    """
    if not {"image", "label"} <= set(features):
        raise ValueError(f"the model reads image and label, the data has {', '.join(features)}")
    if tuple(features["image"].shape) != shape:
        size = "x".join(map(str, shape))
        raise ValueError(f"the model reads images of {size}, not {features['image'].shape}")
    label, classes = features["label"], model.output_shape[-1]
    labels = getattr(label, "num_classes", None)
    if labels is None and not (tuple(label.shape) == () and tf.as_dtype(label.dtype).is_integer):
        raise ValueError(f"the model reads one class label, not {label}")
    if labels is not None and labels > classes:
        raise ValueError(
            f"the labels run from 0 to {labels - 1} but the model has {classes} classes; "
            f"give the model classes={labels}"
        )
