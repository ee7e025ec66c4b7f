r"""Any network of `keras.applications` as a trunk, with a head of one's own.

    --model=pretrained(trunk="MobileNetV2", classes=5, size=96)
    --init_from=mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5
    --init_only=trunk/.*
    --init_rename=trunk/(.*) -> \1

The weights come from a file that you have, such as one that `keras.applications` has downloaded: nothing is
fetched.
"""

import sys
from typing import Any

import keras
import tensorflow as tf

from trainer.model.classifier import Batch, cross_entropy


def build(
    trunk: str = "MobileNetV2", classes: int = 10, size: int = 96, dropout: float = 0.2, alpha: float = 0.0
) -> keras.Model:
    """The trunk without its top, the mean over the image, dropout, logits.

    Args:
      trunk: name of a function of `keras.applications`, such as ResNet50V2 or EfficientNetB0.
      classes: number of logits.
      size: height and width that images are brought to.
      dropout: share dropped before the head, in training.
      alpha: width of a MobileNet, such as 0.35; 0 leaves it at its own.

    Returns:
      A functional model, uint8 or float images [B, size, size, 3] of 0 to 255 to logits [B, classes]; the
      trunk's variables are `trunk/...`, the head's `head/...`.

    Raises:
      ValueError: there is no such trunk.
    """
    make = getattr(keras.applications, trunk, None)
    if not callable(make) or not trunk[:1].isupper():
        names = [name for name in dir(keras.applications) if name[:1].isupper()]
        raise ValueError(f"trunk={trunk!r} is not in keras.applications; there is {', '.join(names)}")
    options = {"alpha": alpha} if alpha else {}
    body = make(include_top=False, weights=None, input_shape=(size, size, 3), name="trunk", **options)
    image = keras.Input((size, size, 3), name="image")
    x = body(Prepared(trunk, name="prepared")(image))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(image, keras.layers.Dense(classes, name="head")(x), name="pretrained")


@keras.saving.register_keras_serializable("pretrained")
class Prepared(keras.layers.Layer):
    """Images of 0 to 255 as a trunk's own `preprocess_input` makes them."""

    def __init__(self, trunk: str, **options: Any) -> None:
        """`trunk`: name of a function of `keras.applications`."""
        super().__init__(**options)
        self.trunk = trunk

    def call(self, x: Any) -> Any:
        """[B, H, W, 3] to the same shape."""
        return sys.modules[getattr(keras.applications, self.trunk).__module__].preprocess_input(x)

    def get_config(self) -> dict[str, Any]:
        """For a `.keras` file."""
        return {**super().get_config(), "trunk": self.trunk}


def preprocess(batch: Batch, training: bool, seed: tf.Tensor) -> Batch:
    """Images to floats of three channels, still 0 to 255; nothing here is random."""
    del training, seed
    image = tf.cast(batch["image"], keras.config.floatx())
    return {**batch, "image": tf.image.grayscale_to_rgb(image) if image.shape[-1] == 1 else image}


def loss(model: Any, batch: Batch, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Softmax cross entropy in nats and accuracy, each [B]."""
    return cross_entropy(model(_sized(model, batch["image"]), training=training), batch["label"])


def outputs(model: Any, batch: Batch) -> Batch:
    """`logits` [B, classes] and `labels` [B]."""
    return {"logits": model(_sized(model, batch["image"]), training=False), "labels": batch["label"]}


def serve(model: Any, batch: Batch) -> tf.Tensor:
    """Logits [B, classes]."""
    return model(_sized(model, batch["image"]), training=False)


def _sized(model: Any, image: tf.Tensor) -> tf.Tensor:
    """The images as large as the model takes them."""
    size = model.input_shape[1:3]
    return image if tuple(image.shape[1:3]) == size else tf.image.resize(image, size)
