"""Object-graph checkpoints by their edges, as TensorFlow itself restores them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import UserError
from trainer.model.names import walk
from trainer.readers import open_source
from trainer.restore.match import load, match
from trainer.restore.rules import parse

L = keras.layers


def model(*names):
    """Dense layers of one shape, used in the order of their names."""
    x = inputs = keras.Input((3,))
    for name in names:
        x = L.Dense(3, name=name)(x)
    made = keras.Model(inputs, x)
    rng = np.random.default_rng(abs(hash(names)) % 1000)
    made.set_weights([rng.normal(size=w.shape).astype("f4") for w in made.get_weights()])
    return made


def restored(made, source, **rules):
    matched = match(walk(made), source, parse(**rules), made)
    arrays = load(matched)
    for entry in matched.entries:
        if entry.sources:
            entry.variable.value.assign(arrays[entry.variable.name])
    return {e.rule for e in matched.entries}


@pytest.mark.parametrize("root", [False, True])
def test_other_names_go_by_edges_as_tensorflow_does(tmp_path, root):
    first, ours, theirs = model("a", "b", "c"), model("x", "y", "z"), model("x", "y", "z")

    def checkpoint(of):
        return tf.train.Checkpoint(of) if root else tf.train.Checkpoint(model=of, step=tf.Variable(1))

    path = checkpoint(first).write(str(tmp_path / "c"))
    checkpoint(theirs).read(path).assert_existing_objects_matched().expect_partial()
    rules = restored(ours, open_source(path))
    assert rules == {"by its edges, as TensorFlow does"}
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_equal_names_in_equal_order_are_equal_names(tmp_path):
    first, ours = model("a", "b"), model("a", "b")
    path = tf.train.Checkpoint(model=first).write(str(tmp_path / "c"))
    assert restored(ours, open_source(path)) == {"same name"}
    np.testing.assert_array_equal(ours.get_layer("b").kernel, first.get_layer("b").kernel)


def test_equal_names_in_another_order_are_asked_for(tmp_path):
    first, ours = model("a", "b"), model("b", "a")
    path = tf.train.Checkpoint(model=first).write(str(tmp_path / "c"))
    with pytest.raises(
        UserError, match=r"a/kernel: by name it starts from a/kernel, by its edge .* from b/kernel"
    ):
        restored(ours, open_source(path))
    restored(ours, open_source(path), rename=[r"(.*) -> \1"])
    np.testing.assert_array_equal(ours.get_layer("a").kernel, first.get_layer("a").kernel)


def test_another_number_of_layers_needs_names(tmp_path):
    path = tf.train.Checkpoint(model=model("a", "b")).write(str(tmp_path / "c"))
    with pytest.raises(UserError, match="x/kernel: not in the source"):
        restored(model("x", "y", "z"), open_source(path))
    ours = model("a", "b", "z")
    restored(ours, open_source(path), only=["[ab]/.*"])


def test_modules_and_attributes(tmp_path):
    def module(value):
        made = tf.Module()
        made.parts = [tf.Variable([value, 0.0]), tf.Variable([value, 1.0])]
        made.inner = tf.Module()
        made.inner.w = tf.Variable([value, 2.0])
        return made

    path = tf.train.Checkpoint(net=module(5.0)).write(str(tmp_path / "c"))
    ours = module(0.0)
    restored(ours, open_source(path))
    assert [v.value.numpy()[0] for v in walk(ours)] == [5, 5, 5]
