r"""A small student that learns from a frozen teacher (Hinton et al. 2015), both of digits.

--model=distill --init_from=runs/mnist --init_only=teacher/.* --init_rename=teacher/(.*) -> \1
--group=teacher/.* frozen
"""

from typing import Any

import keras
import tensorflow as tf

from models import mnist_cnn
from trainer.model.classifier import Batch, check_images, cross_entropy, preprocess

__all__ = ["build", "check", "loss", "outputs", "preprocess", "serve"]

TEMPERATURE, TRUST = 4.0, 0.9  # that soften both's odds, and the share of the teacher in the loss


def build(filters: int = 32, hidden: int = 32, classes: int = 10) -> keras.Model:
    """A two-convolution network as the teacher, a perceptron as the student.

    Args:
      filters: of the teacher's first convolution, as of `mnist_cnn`.
      hidden: width of the student's one layer.
      classes: number of logits.

    Returns:
      A functional model, float images [B, 28, 28, 1] in [0, 1] to [student's, teacher's] logits [B, classes];
      variables are `teacher/...` and `student/...`.
    """
    teacher = mnist_cnn.build(filters=filters, classes=classes)
    teacher.name = "teacher"
    x = inside = keras.Input((28, 28, 1), name="image")
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(hidden, activation="relu", name="hidden")(x)
    student = keras.Model(inside, keras.layers.Dense(classes, name="logits")(x), name="student")
    image = keras.Input((28, 28, 1), name="image")
    return keras.Model(image, [student(image), teacher(image)], name="distill")


def loss(model: Any, batch: Batch, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """The student's cross entropy to the labels and its divergence from the teacher, [B], in nats."""
    student, teacher = model(batch["image"], training=training)
    losses, metrics = cross_entropy(student, batch["label"])
    # The gradient shrinks with the square of the temperature.
    soft = TEMPERATURE**2 * keras.losses.kl_divergence(_odds(tf.stop_gradient(teacher)), _odds(student))
    agreed = tf.cast(tf.argmax(student, -1) == tf.argmax(teacher, -1), losses.dtype)
    taught = TRUST * tf.cast(soft, losses.dtype) + (1 - TRUST) * losses
    return taught, {**metrics, "agreement": agreed}


def _odds(logits: tf.Tensor) -> tf.Tensor:
    return tf.nn.softmax(logits / TEMPERATURE)


def outputs(model: Any, batch: Batch) -> Batch:
    """The student's `logits` [B, classes], and `labels` [B]."""
    return {"logits": model(batch["image"], training=False)[0], "labels": batch["label"]}


def serve(model: Any, batch: Batch) -> tf.Tensor:
    """The student's logits [B, classes]."""
    return model(batch["image"], training=False)[0]


def check(model: Any, features: Any) -> None:
    """Refuses data that are not images of 28x28x1 with a class label.

    Raises:
      ValueError: says what does not fit.
    """
    check_images(_Student(model), features, (28, 28, 1))


class _Student:
    """What `check_images` asks of a model."""

    def __init__(self, model: Any) -> None:
        self.output_shape = model.output_shape[0]
