"""A small transformer encoder (Vaswani et al. 2017) that tells classes of texts apart."""

from typing import Any

import keras
import tensorflow as tf

from trainer.model.classifier import Batch, cross_entropy, hashed_words

LENGTH, BUCKETS = 64, 8192  # words of a text, and numbers that a word may be hashed to


def build(
    blocks: int = 2, width: int = 64, heads: int = 4, classes: int = 4, dropout: float = 0.1
) -> keras.Model:
    """Embedded words with their places, `blocks` of attention, the mean over the words, logits.

    Args:
      blocks: of self-attention and two dense layers, normalised before each (Xiong et al. 2020).
      width: of a word's vector.
      heads: of attention; divide `width`.
      classes: number of logits.
      dropout: share dropped after each part of a block, in training.

    Returns:
      A functional model, `tokens` int32 [B, 64] (0 is no word) to logits [B, classes].
    """
    layers = keras.layers
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    real = keras.ops.not_equal(tokens, 0)
    x = layers.Embedding(BUCKETS, width, name="embed")(tokens)
    x = layers.Add(name="placed")([x, Places(name="places")(x)])
    for k in range(1, blocks + 1):
        x = Block(heads, dropout, name=f"block{k}")(x, real)
    x = layers.LayerNormalization(name="norm")(x)
    x = Mean(name="mean")(x, real)
    return keras.Model(tokens, layers.Dense(classes, name="logits")(x), name="text_transformer")


@keras.saving.register_keras_serializable("text_transformer")
class Places(keras.layers.Layer):
    """A learnt vector for each place: x [B, L, D] to [1, L, D]."""

    def build(self, shape: Any) -> None:
        """Makes `places` [L, D]."""
        self.places = self.add_weight(name="places", shape=shape[1:], initializer="uniform")

    def call(self, x: Any) -> Any:
        """The same for all texts."""
        return self.places[None]


@keras.saving.register_keras_serializable("text_transformer")
class Mean(keras.layers.Layer):
    """x [B, L, D] to its mean [B, D] over the places of words."""

    def call(self, x: Any, real: Any) -> Any:
        """`real` [B, L] says where words are."""
        weight = keras.ops.cast(real, x.dtype)[..., None]
        return keras.ops.sum(x * weight, 1) / keras.ops.maximum(keras.ops.sum(weight, 1), 1)


@keras.saving.register_keras_serializable("text_transformer")
class Block(keras.layers.Layer):
    """Self-attention, then two dense layers, each added to what came in."""

    def __init__(self, heads: int, dropout: float, causal: bool = False, **options: Any) -> None:
        """`causal`: a place looks at those before it only."""
        super().__init__(**options)
        self.heads, self.rate, self.causal = heads, dropout, causal

    def build(self, x_shape: Any, real_shape: Any = None) -> None:
        """Makes the layers."""
        width, layers = x_shape[-1], keras.layers
        self.norm1 = layers.LayerNormalization()
        self.attention = layers.MultiHeadAttention(self.heads, width // self.heads)
        self.norm2 = layers.LayerNormalization()
        self.dense1 = layers.Dense(4 * width, activation="gelu")
        self.dense2 = layers.Dense(width)
        self.drop = layers.Dropout(self.rate)
        for layer, size in (
            (self.norm1, width),
            (self.norm2, width),
            (self.dense1, width),
            (self.dense2, 4 * width),
        ):
            layer.build((*x_shape[:-1], size))
        self.attention.build(x_shape, x_shape)

    def call(self, x: Any, real: Any = None, training: Any = None) -> Any:
        """x [B, L, D] to [B, L, D]; `real` [B, L] says which places may be looked at."""
        mask = None if real is None else real[:, None, :]
        normed = self.norm1(x)
        found = self.attention(
            normed, normed, attention_mask=mask, use_causal_mask=self.causal, training=training
        )
        x = x + self.drop(found, training=training)
        return x + self.drop(self.dense2(self.dense1(self.norm2(x))), training=training)

    def get_config(self) -> dict[str, Any]:
        """For a `.keras` file."""
        own = {"heads": self.heads, "dropout": self.rate, "causal": self.causal}
        return {**super().get_config(), **own}


def decode(example: Batch) -> Batch:
    """`text` to `tokens` int32 [64], words by their hash."""
    return hashed_words(example, LENGTH, BUCKETS)


def loss(model: Any, batch: Batch, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Softmax cross entropy in nats and accuracy, each [B]."""
    return cross_entropy(model(batch["tokens"], training=training), batch["label"])


def outputs(model: Any, batch: Batch) -> Batch:
    """`logits` [B, classes] and `labels` [B]."""
    return {"logits": model(batch["tokens"], training=False), "labels": batch["label"]}
