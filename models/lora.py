"""A BERT of KerasHub with low-rank adapters (Hu et al. 2022) and a head; `pip install keras-hub`.

Freeze the rest: its weights stay as they are, to the bit, and what is learnt is a few per cent of them.

    --group=.*lora.*   adamw(weight_decay=1e-2)  cosine(1e-3)
    --group=head/.*    adamw(weight_decay=1e-2)  cosine(1e-3)
    --group=.*         frozen
"""

from typing import Any

import keras
import tensorflow as tf

from trainer.model.classifier import Batch, cross_entropy, hashed_words

LENGTH, VOCABULARY = 64, 30522  # of a text in tokens, and of BERT's own


def build(
    rank: int = 4, layers: int = 2, width: int = 64, heads: int = 2, classes: int = 4, adapted: bool = True
) -> keras.Model:
    """The backbone on tokens, its first place to logits.

    Args:
      rank: of the adapters of every attention's query and value.
      layers: of the backbone; BERT base has 12.
      width: of the backbone; 768.
      heads: of its attention; 12.
      classes: number of logits.
      adapted: with adapters; without them it is what the backbone itself is trained as.

    Returns:
      A functional model, `tokens` int32 [B, 64] (0 is padding) to logits [B, classes]; variables are
      `backbone/...` and `head/...`.

    Raises:
      ImportError: keras-hub is not installed.
    """
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=max(LENGTH, 512),
        name="backbone",
    )
    if adapted:
        backbone.enable_lora(rank)
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    inputs = {
        "token_ids": tokens,
        "segment_ids": keras.ops.zeros_like(tokens),
        "padding_mask": keras.ops.cast(keras.ops.not_equal(tokens, 0), "int32"),
    }
    x = backbone(inputs)["pooled_output"]
    return keras.Model(tokens, keras.layers.Dense(classes, name="head")(x), name="lora")


def decode(example: Batch) -> Batch:
    """`tokens` int32 [64]: the example's own, of BERT's tokenizer, else words of its `text` by their hash."""
    if "tokens" in example:
        return example
    return hashed_words(example, LENGTH, VOCABULARY)


def loss(model: Any, batch: Batch, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Softmax cross entropy in nats and accuracy, each [B]."""
    return cross_entropy(model(batch["tokens"], training=training), batch["label"])


def outputs(model: Any, batch: Batch) -> Batch:
    """`logits` [B, classes] and `labels` [B]."""
    return {"logits": model(batch["tokens"], training=False), "labels": batch["label"]}
