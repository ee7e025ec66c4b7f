"""Layers that compute with copies of their variables: right after a restore, an evaluation, a resume."""

import keras
import numpy as np
import pytest

import trainer

X = np.random.default_rng(0).normal(5, 3, (40, 2)).astype(np.float32)
DATA = {"x": X, "word": np.arange(40, dtype=np.int64) % 5, "y": np.zeros(40, np.float32)}
IDF = np.float32([0.5, 1, 2, 4])  # of words unknown, 1, 2, 3


def build(weights=(1.0, 1.0, 1.0)):
    """Neither the statistics nor the weights of the words are those of the data."""
    keras.backend.clear_session()
    x, word = keras.Input((2,), name="x"), keras.Input((1,), dtype="int64", name="word")
    scaled = keras.layers.Normalization(name="scale")(x)
    lookup = keras.layers.IntegerLookup
    counted = lookup(vocabulary=[1, 2, 3], idf_weights=weights, output_mode="tf_idf", name="words")(word)
    head = keras.layers.Dense(1, kernel_initializer="ones", name="head")
    return keras.Model([x, word], head(keras.layers.Concatenate()([scaled, counted])))


def loss(model, batch, training):
    return model([batch["x"], batch["word"][:, None]])[:, 0], {}


def by_hand(kernel):
    """The mean output: standardised numbers, the weight of the word, a Dense layer without bias."""
    scaled = (X - X.mean(0)) / X.std(0)
    word = np.where(DATA["word"] < 4, DATA["word"], 0)
    counted = np.eye(4, dtype=np.float32)[word] * IDF
    return float(np.mean(np.concatenate([scaled, counted], 1) @ kernel))


@pytest.fixture
def source(tmp_path):
    model = build()
    arrays = {name: v.numpy() for name, v in trainer.named_variables(model).items()}
    arrays |= {"scale/mean": X.mean(0), "scale/variance": X.var(0), "words/idf_weights": IDF}
    np.savez(tmp_path / "adapted.npz", **arrays)
    return str(tmp_path / "adapted.npz")


def run(workdir, steps, **flags):
    module = trainer.ModelModule(build=build, loss=loss)
    rules = ["head/kernel sgd 0.1", ".* frozen"]
    flags |= {"group": rules, "batch_size": 8, "train_for": steps, "eval_split": "train", "seed": 1}
    return trainer.Run(model=module, dataset=DATA, workdir=str(workdir), save_every=2, **flags)


@pytest.mark.slow(but=3)
@pytest.mark.parametrize("suffix", [".npz", ".weights.h5", ".keras"])
def test_in_a_model_of_ones_own(source, tmp_path, suffix):
    wanted = by_hand(np.ones((6, 1)))
    if suffix != ".npz":
        adapted = build((1.0, 2.0, 4.0))
        adapted.get_layer("scale").adapt(X)
        source = tmp_path / f"m{suffix}"
        adapted.save_weights(source) if suffix == ".weights.h5" else adapted.save(source)
        wanted = adapted([X, DATA["word"][:, None]]).numpy().mean()
    model = build()
    trainer.restore_weights(model, source)
    got = model([X, DATA["word"][:, None]]).numpy()
    np.testing.assert_allclose(got.mean(), wanted, rtol=1e-5)


@pytest.mark.slow
def test_after_a_restore_an_evaluation_and_a_resume(source, tmp_path):
    whole = run(tmp_path / "whole", 4, init_from=source)
    trained = whole.train().metrics["loss"]
    kernel = whole.weights()["head/kernel"]
    np.testing.assert_allclose(trained, by_hand(kernel), rtol=1e-4)
    # A model built anew, its values from the checkpoint.
    np.testing.assert_allclose(run(tmp_path / "whole", 4).evaluate()["loss"], trained, rtol=1e-6)
    run(tmp_path / "halves", 2, init_from=source).train()
    resumed = run(tmp_path / "halves", 4, accept_plan_change=True)
    np.testing.assert_allclose(resumed.train().metrics["loss"], trained, rtol=1e-6)
    np.testing.assert_array_equal(resumed.weights()["head/kernel"], kernel)
