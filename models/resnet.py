"""A small residual network with BatchNormalization (He et al. 2016), for images of any fixed size."""

from typing import Any

import keras

from trainer.model.classifier import check_images, loss, outputs, preprocess

__all__ = ["build", "check", "loss", "outputs", "preprocess"]


def build(
    blocks: int = 1, width: int = 16, classes: int = 10, side: int = 28, channels: int = 1
) -> keras.Model:
    """A convolution, three stages of `blocks` residual blocks, logits.

    Args:
      blocks: of a stage; the first of the second and third stage halves the image.
      width: channels of the first stage; the second has twice, the third four times as many.
      classes: number of logits.
      side: height and width of an image.
      channels: of an image.

    Returns:
      A functional model, float images [B, side, side, channels] in [0, 1] to logits [B, classes].
    """
    image = keras.Input((side, side, channels), name="image")
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name="stem_conv")(image)
    x = keras.layers.ReLU(name="stem_relu")(keras.layers.BatchNormalization(momentum=0.9, name="stem_bn")(x))
    for stage in range(3):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            x = _residual(x, width * 2**stage, stride, f"stage{stage + 1}_block{block + 1}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(classes, name="logits")(x), name="resnet")


def _residual(x: Any, channels: int, stride: int, name: str) -> Any:
    """Two 3x3 convolutions beside the way straight through, which a 1x1 one fits where the shape changes."""

    # Of the last ten batches or so: with Keras's 0.99 a run of some hundred steps has no statistics to go by.
    def conv(x: Any, size: int, stride: int, part: str) -> Any:
        options = {"strides": stride, "padding": "same", "use_bias": False}
        x = keras.layers.Conv2D(channels, size, name=f"{name}_conv{part}", **options)(x)
        return keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_bn{part}")(x)

    straight = x
    if stride != 1 or x.shape[-1] != channels:
        straight = conv(x, 1, stride, "0")
    x = keras.layers.ReLU(name=f"{name}_relu1")(conv(x, 3, stride, "1"))
    x = keras.layers.Add(name=f"{name}_add")([conv(x, 3, 1, "2"), straight])
    return keras.layers.ReLU(name=f"{name}_relu2")(x)


def check(model: Any, features: Any) -> None:
    """Refuses data that are not images of the model's size with a class label.

    Raises:
      ValueError: says what does not fit.
    """
    check_images(model, features, tuple(model.input_shape[1:]))
