"""Labels that the model has no output for: found in the data, of whatever kind, before a step is compiled."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.support.toys import Toy
from trainer.data.bad import refuse_classes
from trainer.data.stored import Flat
from trainer.errors import UserError

layers = keras.layers


def classifier(classes=3, activation=None):
    def build():
        x = keras.Input((2,))
        return keras.Model(x, layers.Dense(classes, activation=activation, name="head")(x))

    return build


def plain(model, batch, training):
    logits = model(batch["x"], training=training)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits), {}


def of_keras(model, batch, training):
    return keras.losses.sparse_categorical_crossentropy(batch["label"][:, None], model(batch["x"])), {}


def masked(model, batch, training):
    labels = tf.minimum(batch["label"], 2)
    return plain(model, {**batch, "label": labels}, training)


def arrays(labels=(0, 1, 2, 3, 0, 1, 2, 9), dtype="int64"):
    return {"x": np.ones([len(labels), 2], "float32"), "label": np.array(labels, dtype)}


class Rows:
    """With `len()` and `[i]`."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {name: value[i] for name, value in arrays().items()}


def run(dataset, loss=plain, build=None, preprocess=None, decode=None, **flags):
    parts = {"preprocess": preprocess, "decode": decode}
    module = trainer.ModelModule(build=build or classifier(), loss=loss, **parts)
    flags = {"group": ".* sgd 0.1", "batch_size": 4, "train_for": 1, "eval_split": "none", **flags}
    return trainer.Run(model=module, dataset=dataset, **flags)


def refusal(dataset, **options):
    with pytest.raises(UserError) as error:
        run(dataset, **options).train()
    return str(error.value)


WORDS = "split train, example 3 (counted from 0): label is 3, and the model has outputs for 0 to 2 (2 such)"


@pytest.mark.slow(but=3)
@pytest.mark.parametrize("kind", ["arrays", "csv", "npz", "rows", "decoded", "host"])
def test_labels_of_data_of_every_kind(kind, tmp_path):
    dataset, options = arrays(), {}
    if kind == "csv":
        lines = [f"{i % 2},{label}" for i, label in enumerate(arrays()["label"])]
        (tmp_path / "train.csv").write_text("\n".join(["a,label", *lines]))
        dataset, options["decode"] = str(tmp_path / "train.csv"), with_x
    elif kind == "npz":
        np.savez(tmp_path / "data.npz", **arrays(dtype="uint8"))
        dataset = str(tmp_path / "data.npz")
        options["preprocess"] = lambda b, training, seed: {**b, "label": tf.cast(b["label"], tf.int32)}
    elif kind == "rows":
        dataset = Rows()
    elif kind == "decoded":
        options["decode"] = lambda example: example
    elif kind == "host":
        options["data_residency"] = "host"
    assert WORDS in refusal(dataset, **options)


def with_x(example):
    return {"x": tf.stack([tf.cast(example["a"], tf.float32)] * 2), "label": example["label"]}


def test_of_a_set_of_tfds(tmp_path):
    builder = Toy(data_dir=tmp_path)
    builder.download_and_prepare()

    def loss(model, batch, training):
        logits = model(batch["pair"], training=training)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["number"], logits), {}

    folder = str(builder.data_path)
    message = refusal(folder, loss=loss, build=classifier(100))
    assert "number is 10" in message and "outputs for 0 to 99 (3 such)" in message
    run(folder, loss=loss, build=classifier(103)).train()


@pytest.mark.slow
def test_whatever_the_loss_is_made_of():
    for soft in (None, "softmax"):
        assert "label is 3" in refusal(arrays(), loss=of_keras, build=classifier(3, soft))
    assert "label is -2" in refusal(arrays([0, 1, -2, 2]))
    # Which labels count may depend on the values, which nothing but a run then tells.
    assert run(arrays(), loss=masked).train().step == 1
    assert run(arrays([0, 1, 2, 0])).train().step == 1


def test_a_plan_refuses_what_training_does_and_the_evaluation_split_counts():
    with pytest.raises(UserError, match="label is 3"):
        run(arrays()).plan()
    both = {"train": arrays([0, 1, 2, 2]), "test": arrays([0, 1, 2, 4])}
    assert "split test, example 3" in refusal(both, eval_split="test")


def test_of_examples_of_different_lengths_the_example_is_named():
    words = Flat(np.array([1, 2, 3, 4, 9, 6]), np.array([2, 1, 3]))
    with pytest.raises(UserError, match=r"example 2 \(counted from 0\): words is 9"):
        refuse_classes({"words": words}, {"words": 7}, "own", "train")
    refuse_classes({"words": words}, {"words": 10}, "own", "train")
    grid = np.zeros([3, 2, 2], np.int64)
    grid[1, 0, 1] = 5
    with pytest.raises(UserError, match=r"example 1 \(counted from 0\): grid is 5"):
        refuse_classes({"grid": grid}, {"grid": 5}, "own", "train")
