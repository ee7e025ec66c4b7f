"""A perceptron for MNIST, 784-64-64-10, as a plain `tf.Module`: no Keras layers."""

from typing import Any

import keras
import tensorflow as tf

from trainer.model.classifier import check_images, check_sizes, loss, outputs, preprocess

__all__ = ["build", "check", "loss", "outputs", "preprocess"]


class Linear(tf.Module):
    """x [B, inputs] to x w + b [B, outputs]; `w` Glorot uniform, `b` zero."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Creates `w` and `b` in `keras.config.floatx()`."""
        super().__init__()
        # Keras initializers follow `keras.utils.set_random_seed`, call after call.
        initial = keras.initializers.GlorotUniform()((inputs, outputs))
        self.w = tf.Variable(initial, name="w")
        self.b = tf.Variable(tf.zeros([outputs], initial.dtype), name="b")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """[B, inputs] to [B, outputs]."""
        return x @ self.w + self.b


class Perceptron(tf.Module):
    """Images [B, 28, 28, 1] to logits [B, classes]."""

    def __init__(self, hidden: int, classes: int) -> None:
        """Creates the layers `hidden1`, `hidden2` and `logits`."""
        super().__init__()
        self.hidden1 = Linear(28 * 28, hidden)
        self.hidden2 = Linear(hidden, hidden)
        self.logits = Linear(hidden, classes)

    @property
    def output_shape(self) -> tuple[None, int]:
        """(None, classes), as Keras models have it."""
        return None, self.logits.w.shape[-1]

    def __call__(self, image: tf.Tensor, training: Any = False) -> tf.Tensor:
        """Float images [B, 28, 28, 1] to logits [B, classes]; the same in training."""
        del training
        x = tf.reshape(image, [-1, 28 * 28])
        x = tf.nn.relu(self.hidden1(x))
        x = tf.nn.relu(self.hidden2(x))
        return self.logits(x)


def build(hidden: int = 64, classes: int = 10) -> tf.Module:
    """The perceptron, variables named `hidden1/w`, `hidden1/b`, ... `logits/b`.

    Raises:
      ValueError: a size that no layer can have.
    """
    check_sizes(hidden=hidden, classes=classes)
    return Perceptron(hidden, classes)


def check(model: Any, features: Any) -> None:
    """Refuses data that are not images of 28x28x1 with a class label.

    Raises:
      ValueError: says what does not fit.
    """
    check_images(model, features, (28, 28, 1))
