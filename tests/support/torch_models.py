"""Keras models that golden files of PyTorch's are restored into, channels last."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

L = keras.layers


def last(x: np.ndarray) -> np.ndarray:
    """[batch, channels, ...] as [batch, ..., channels]."""
    return np.moveaxis(x, 1, -1)


def kinds() -> dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]]:
    """`{name in the golden file: (layer, what its input and output go through)}`."""

    def same(x: np.ndarray) -> np.ndarray:
        return x

    sequence = {"return_sequences": True}
    return {
        "linear": (L.Dense(5), same),
        "plain": (L.Dense(6, use_bias=False), same),
        "conv1d": (L.Conv1D(4, 3), last),
        "conv2d": (L.Conv2D(6, (3, 2), strides=2, groups=2), last),
        "square": (L.Conv2D(3, 3, use_bias=False), last),
        "conv3d": (L.Conv3D(3, (2, 3, 2)), last),
        "depthwise1d": (L.DepthwiseConv1D(3, depth_multiplier=2), last),
        "depthwise2d": (L.DepthwiseConv2D(3, depth_multiplier=2), last),
        "up1d": (L.Conv1DTranspose(4, 3, strides=2), last),
        "up2d": (L.Conv2DTranspose(4, (3, 2), strides=2), last),
        "up3d": (L.Conv3DTranspose(3, 2), last),
        "batch_norm": (L.BatchNormalization(epsilon=1e-5), last),
        "layer_norm": (L.LayerNormalization(epsilon=1e-5), same),
        "group_norm": (L.GroupNormalization(2, epsilon=1e-5), last),
        "rms_norm": (L.RMSNormalization(epsilon=1e-6), same),
        "embedding": (L.Embedding(7, 4), same),
        "lstm": (L.LSTM(4, **sequence), same),
        "gru": (L.GRU(4, **sequence), same),
        "both_gru": (L.Bidirectional(L.GRU(4, **sequence)), same),
        "rnn": (L.SimpleRNN(4, **sequence), same),
        "attention": (L.MultiHeadAttention(2, 4), same),
        "cross": (L.MultiHeadAttention(2, 4, output_shape=8), same),
    }


class Deep(L.Layer):
    """Two bidirectional LSTMs, which PyTorch keeps as layers 0 and 1 of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = L.Bidirectional(L.LSTM(4, return_sequences=True))
        self.second = L.Bidirectional(L.LSTM(4, return_sequences=True))

    def call(self, x: Any) -> Any:
        """[batch, time, 3] to [batch, time, 8]."""
        return self.second(self.first(x))


def resnet18(width: int = 4) -> keras.Model:
    """A sixteenth as wide; layers named otherwise than torchvision's."""

    def convolution(x: Any, filters: int, size: int, stride: int, name: str) -> Any:
        x = L.ZeroPadding2D(size // 2)(x)
        x = L.Conv2D(filters, size, stride, use_bias=False, name=name)(x)
        return L.BatchNormalization(epsilon=1e-5, name=name.replace("conv", "bn"))(x)

    keras.backend.clear_session()
    image = keras.Input((48, 48, 3))
    x = L.ReLU()(convolution(image, width, 7, 2, "stem_conv"))
    x = L.MaxPooling2D(3, 2)(L.ZeroPadding2D(1)(x))
    for stage in range(1, 5):
        for block in range(2):
            wide, stride = width * 2 ** (stage - 1), 2 if stage > 1 and block == 0 else 1
            name, kept = f"stage{stage}_{block}_", x
            y = L.ReLU()(convolution(x, wide, 3, stride, f"{name}conv1"))
            y = convolution(y, wide, 3, 1, f"{name}conv2")
            kept = convolution(x, wide, 1, stride, f"{name}down_conv") if stride > 1 else kept
            x = L.ReLU()(L.Add()([y, kept]))
    return keras.Model(image, L.Dense(10, name="head")(L.GlobalAveragePooling2D()(x)))


class Block(L.Layer):
    """One layer of BERT, with Keras's own attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = L.MultiHeadAttention(heads, width // heads)
        self.attention_LayerNorm = L.LayerNormalization(epsilon=1e-12)
        self.intermediate_dense = L.Dense(2 * width)
        self.output_dense = L.Dense(width)
        self.output_LayerNorm = L.LayerNormalization(epsilon=1e-12)

    def call(self, x: Any) -> Any:
        """[batch, length, width] to the same."""
        x = self.attention_LayerNorm(self.attention(x, x) + x)
        wide = keras.activations.gelu(self.intermediate_dense(x), approximate=False)
        return self.output_LayerNorm(self.output_dense(wide) + x)


class Embeddings(L.Layer):
    """Words, places and types."""

    def __init__(self, width: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.word_embeddings = L.Embedding(vocabulary, width)
        self.position_embeddings = L.Embedding(length, width)
        self.token_type_embeddings = L.Embedding(2, width)
        self.LayerNorm = L.LayerNormalization(epsilon=1e-12)

    def call(self, words: Any, types: Any) -> Any:
        """[batch, length] twice to [batch, length, width]."""
        x = self.word_embeddings(words) + self.position_embeddings(keras.ops.arange(words.shape[1]))
        return self.LayerNorm(x + self.token_type_embeddings(types))


class Bert(keras.Model):
    """BERT of two small layers."""

    def __init__(self, width: int = 16, heads: int = 2, vocabulary: int = 40, length: int = 12) -> None:
        super().__init__()
        self.embeddings = Embeddings(width, vocabulary, length)
        self.blocks = [Block(width, heads) for _ in range(2)]
        self.pooler = L.Dense(width, activation="tanh")

    def call(self, given: Any) -> Any:
        """(words, types), each [batch, length], to [batch, width]."""
        x = self.embeddings(*given)
        for block in self.blocks:
            x = block(x)
        return self.pooler(x[:, 0])
