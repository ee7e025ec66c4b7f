"""A small language model of characters (Radford et al. 2018), which ends in its embedding
(Press & Wolf 2017).

It reads bytes: text of any language, no vocabulary. Each evaluation writes a line.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from models.text_transformer import Block, Places
from trainer.model.classifier import Batch

LENGTH, BYTES = 96, 256  # bytes of a text that are read, and how many there are
START = "Returns the "  # what a line begins with
LINE, SHARPNESS = 60, 1.5  # bytes that are written, and the power that odds are raised to

better = {"perplexity": "min"}


def build(blocks: int = 2, width: int = 96, heads: int = 4, dropout: float = 0.0) -> keras.Model:
    """Embedded bytes with their places, `blocks` of attention to what came before, logits of the next byte.

    Args:
      blocks: of self-attention and two dense layers.
      width: of a byte's vector.
      heads: of attention; divide `width`.
      dropout: share dropped after each part of a block, in training.

    Returns:
      A functional model, `tokens` int32 [B, 96] to logits [B, 96, 256].
    """
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    embed = keras.layers.Embedding(
        BYTES, width, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.05), name="embed"
    )
    x = embed(tokens)
    x = keras.layers.Add(name="placed")([x, Places(name="places")(x)])
    for k in range(1, blocks + 1):
        x = Block(heads, dropout, causal=True, name=f"block{k}")(x)
    x = keras.layers.LayerNormalization(name="norm")(x)
    return keras.Model(tokens, Tied(embed, name="logits")(x), name="text_lm")


@keras.saving.register_keras_serializable("text_lm")
class Tied(keras.layers.Layer):
    """x [B, L, D] to logits [B, L, V] by the transposed table of an embedding, and a bias of its own."""

    def __init__(self, embed: Any, **options: Any) -> None:
        """`embed`: the embedding, built."""
        super().__init__(**options)
        self.embed = embed

    def build(self, shape: Any) -> None:
        """Makes `bias` [V]."""
        self.bias = self.add_weight(name="bias", shape=[self.embed.input_dim], initializer="zeros")

    def call(self, x: Any) -> Any:
        """The table is the embedding's own variable, not a copy."""
        return keras.ops.matmul(x, keras.ops.transpose(self.embed.embeddings)) + self.bias

    def get_config(self) -> dict[str, Any]:
        """For a `.keras` file."""
        return {**super().get_config(), "embed": keras.saving.serialize_keras_object(self.embed)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Tied":
        """As `get_config` has it."""
        return cls(keras.saving.deserialize_keras_object(config.pop("embed")), **config)


def decode(example: Batch) -> Batch:
    """`text` to `tokens` int32 [97], its bytes, 0 behind the last."""
    tokens = tf.cast(tf.io.decode_raw(example["text"], tf.uint8), tf.int32)[: LENGTH + 1]
    tokens = tf.pad(tokens, [[0, LENGTH + 1 - tf.size(tokens)]])
    return {"tokens": tf.ensure_shape(tokens, [LENGTH + 1])}


def _nats(model: Any, batch: Batch, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross entropy of each next byte [B, L], 0 behind the end of the text, and how many there are [B]."""
    tokens = batch["tokens"]
    logits = model(tokens[:, :-1], training=training)
    logits = tf.cast(logits, tf.float64 if logits.dtype == tf.float64 else tf.float32)
    real = tf.cast(tokens[:, 1:] > 0, logits.dtype)
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[:, 1:], logits) * real
    return nats, tf.reduce_sum(real, 1)


def loss(
    model: Any, batch: Batch, training: bool
) -> tuple[tuple[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """Each text's mean over its bytes, nats [B], by their number [B]: together the mean over all bytes."""
    nats, count = _nats(model, batch, training)
    return (tf.reduce_sum(nats, 1) / tf.maximum(count, 1), count), {}


def outputs(model: Any, batch: Batch) -> Batch:
    """Nats and bytes of each text [B], and the line that the model writes [B, 60], the same in every row."""
    nats, count = _nats(model, batch, False)
    line = generate(model, START, LINE)
    rows = tf.tile(line[tf.newaxis], [tf.shape(count)[0], 1])
    return {
        "nats": tf.reduce_sum(nats, 1),
        "bytes": count,
        "line": tf.ensure_shape(rows, [count.shape[0], LINE]),
    }


def metrics(rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """Perplexity of a byte over the whole split, and the line."""
    line = bytes(rows["line"][0].astype(np.uint8)).decode(errors="replace")
    return {"perplexity": np.exp(rows["nats"].sum() / rows["bytes"].sum()), "line": START + line}


def generate(model: Any, start: str, length: int, seed: int = 0) -> tf.Tensor:
    """The `length` bytes int32 that the model draws after `start`, the same for a seed."""
    begin = np.frombuffer(start.encode(), np.uint8).astype(np.int32)
    line = tf.zeros([1, LENGTH], tf.int32) + np.pad(begin, (0, LENGTH - len(begin)))

    def one(k: tf.Tensor, line: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = tf.cast(model(line, training=False)[0, k - 1], tf.float32)
        # Byte 0 stands behind a text and is none.
        logits = tf.concat([[-1e9], SHARPNESS * logits[1:]], 0)
        drawn = tf.random.stateless_categorical(
            logits[tf.newaxis], 1, seed=tf.stack([seed, k]), dtype=tf.int32
        )
        return k + 1, tf.tensor_scatter_nd_update(line, [[0, k]], drawn[0])

    end = len(begin) + length
    _, line = tf.while_loop(lambda k, _: k < end, one, (tf.constant(len(begin)), line))
    return line[0, len(begin) : end]


def serve(model: Any, batch: Batch) -> Batch:
    """Mean nats of a text's bytes [B]: how strange it is to the model."""
    nats, count = _nats(model, batch, False)
    return {"nats": tf.reduce_sum(nats, 1) / tf.maximum(count, 1)}
