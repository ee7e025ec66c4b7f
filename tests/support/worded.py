"""A classifier of texts by the words in them, which come in raw; for the tests of predictions and exports."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

WORDS = ["bad", "good", "dull", "fine", "poor", "great"]


def build() -> keras.Model:
    """Text [B] to logits [B, 2]: words, their embeddings, the mean."""
    text = keras.Input((), dtype="string", name="text")
    tokens = keras.layers.TextVectorization(vocabulary=WORDS, output_sequence_length=6, name="words")(text)
    x = keras.layers.Embedding(len(WORDS) + 2, 4, name="embed")(tokens)
    x = keras.layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(text, keras.layers.Dense(2, name="head")(x), name="worded")


def decode(example: dict[str, Any]) -> dict[str, Any]:
    """Text without its blanks, and the label."""
    return {"text": tf.strings.strip(example["text"]), "label": example["label"]}


def preprocess(batch: dict[str, Any], training: bool, seed: tf.Tensor) -> dict[str, Any]:
    """Reads the label, as many do, on which no output depends."""
    return {**batch, "odd": tf.one_hot(batch["label"], 2)}


def loss(model: Any, batch: dict[str, Any], training: bool) -> Any:
    """Cross entropy [B] and accuracy."""
    logits = model(batch["text"], training=training)
    logits = tf.ensure_shape(logits, [batch["label"].shape[0], 2])
    hits = tf.cast(tf.argmax(logits, -1) == batch["label"], tf.float32)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits), {"accuracy": hits}


def serve(model: Any, batch: dict[str, Any]) -> dict[str, tf.Tensor]:
    """Odds, and the class by its name."""
    odds = tf.nn.softmax(model(batch["text"], training=False))
    return {"odds": odds, "class": tf.gather(tf.constant(["no", "yes"]), tf.argmax(odds, -1))}


def arrays(count: int = 40) -> dict[str, np.ndarray]:
    """Texts with blanks around them, labels, and an id each."""
    random = np.random.default_rng(0)
    words = random.integers(0, 6, [count, 3])
    return {
        "text": np.array([" " + " ".join(WORDS[w] for w in row) + "  " for row in words], object),
        "label": (words % 2).mean(1).round().astype("int64"),
        "id": np.array([f"example {k}" for k in range(count)], object),
    }
