"""Lengths that differ from batch to batch: in the data, and cut by the model's own `preprocess`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.support import own_pipelines
from tests.support.harness import digits, make, mirrored
from trainer.errors import UserError


def build():
    image = keras.Input((None, 28), name="image")
    # Without a bias an empty row is 0 behind it, and changes no maximum: the cut is to change nothing.
    x = keras.layers.Dense(16, activation="relu", use_bias=False, name="d")(image)
    return keras.Model(image, keras.layers.Dense(10, name="head")(keras.layers.GlobalMaxPooling1D()(x)))


def cut(batch, training, seed):
    """Rows of the image up to the last that has anything in it: their number is known when it runs only."""
    rows = batch["image"][..., 0]
    used = tf.reduce_max(tf.where(tf.reduce_sum(rows, -1) > 0, tf.range(28), 0)) + 1
    return {**batch, "image": rows[:, :used]}


def loss(model, batch, training):
    logits = model(batch["image"], training=training)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits), {}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_rows_cut_by_preprocess_on_two_replicas(accumulate):
    arrays = digits(48)
    height = np.random.default_rng(0).integers(5, 28, 48)
    arrays["image"] = np.where(
        np.arange(28)[None, :, None, None] < height[:, None, None, None], arrays["image"], 0
    )
    ends = []
    for strategy in (None, mirrored(2)):
        made = make(
            build, loss, [".* adam 1e-2"], arrays, 6, strategy, preprocess=cut, accumulate=accumulate,
            precision="float64", clip_norm=1.0,
        )  # fmt: skip
        made.train(0, 6)
        ends.append(made.values())
    for name, value in ends[0].items():
        np.testing.assert_allclose(value, ends[1][name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_padded_lengths_under_xla():
    flags = {
        "model": own_pipelines, "dataset": own_pipelines.words(), "group": [".* adam 1e-2"], "batch_size": 8,
        "train_for": 10, "eval_split": "train",
    }  # fmt: skip
    pad = ["tokens multiple=16 max=32"]
    plain, compiled = (trainer.Run(pad=pad, jit_compile=jit, **flags).train() for jit in (False, True))
    assert compiled.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-5)
    with pytest.raises(UserError, match="--pad=tokens: --jit_compile compiles every length by itself"):
        trainer.Run(pad=["tokens"], jit_compile=True, **flags).train()
