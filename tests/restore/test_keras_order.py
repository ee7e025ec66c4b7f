"""What Keras itself would load from its files is what is loaded here: to the bit, or refused by both."""

import h5py
import keras
import numpy as np
import pytest

from tests.support import keras_order
from trainer.errors import UserError
from trainer.model.names import walk
from trainer.readers import open_source
from trainer.restore.match import load, match
from trainer.restore.rules import parse

layers = keras.layers


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("first", range(0, 18, 6))
def test_positions_as_keras(tmp_path, first):
    outcomes = [o for seed in range(first, first + 6) for o in keras_order.positions(keras, seed, tmp_path)]
    assert {"equal", "refused"} <= set(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 118, 6))
def test_positions_of_older_keras(tmp_path, first):
    old = pytest.importorskip("tf_keras", reason="the Keras of TF 2.15 and before is not installed")
    outcomes = [o for seed in range(first, first + 6) for o in keras_order.positions(old, seed, tmp_path)]
    assert {"equal", "refused"} <= set(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_names_of_legacy_files_as_keras_by_name(tmp_path, old):
    writer = pytest.importorskip("tf_keras") if old else keras
    outcomes = [o for seed in range(200, 208) for o in keras_order.names(writer, seed, tmp_path)]
    assert {"equal", "refused"} <= set(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_names_of_keras_archives(tmp_path, old):
    writer = pytest.importorskip("tf_keras") if old else keras
    outcomes = [o for seed in range(300, 308) for o in keras_order.archives(writer, seed, tmp_path)]
    assert {"equal", "refused"} <= set(outcomes)


def two_dense(order=(0, 1)):
    """Two layers of one shape, made in the order of use or not: Keras numbers them as they are made."""
    keras.backend.clear_session()
    made = [layers.Dense(4), layers.Dense(4)]
    inputs = keras.Input((4,))
    return keras.Model(inputs, made[order[1]](made[order[0]](inputs)))


def folders(path, values, parent="layers/"):
    """A `.weights.h5` of Dense layers, each filled with a number."""
    with h5py.File(path, "w") as h5:
        for folder, value in values.items():
            group = h5.create_group(f"{parent}{folder}").create_group("vars")
            group["0"], group["1"] = np.full((4, 4), value, "f4"), np.full(4, value, "f4")
    return open_source(str(path))


def restored(model, source, **rules):
    matched = match(walk(model), source, parse(**rules), model)
    arrays = load(matched)
    for name, variable in ((e.variable.name, e.variable) for e in matched.entries if e.sources):
        variable.value.assign(arrays[name])
    return {v.name: float(v.value.numpy().flat[0]) for v in walk(model) if not v.random}, matched


def test_a_folder_is_a_class_and_a_count_not_a_name(tmp_path):
    source = folders(tmp_path / "f.weights.h5", {"dense": 1, "dense_1": 2})
    model = two_dense((1, 0))  # the one that is used first is called dense_1
    values, matched = restored(model, source)
    assert values == {"dense_1/kernel": 1, "dense_1/bias": 1, "dense/kernel": 2, "dense/bias": 2}
    assert {e.rule for e in matched.entries} == {"by position, as Keras does"}
    model.load_weights(tmp_path / "f.weights.h5")
    assert model.get_layer("dense_1").bias[0] == 1


def test_folders_made_on_windows(tmp_path):
    source = folders(
        tmp_path / "w.weights.h5", {"dense": 1, "dense_1": 2}, "_layer_checkpoint_dependencies\\"
    )
    assert list(source.specs) == ["dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"]
    values, _ = restored(two_dense(), source)
    assert (values["dense/kernel"], values["dense_1/bias"]) == (1, 2)


def test_what_keras_refuses_needs_a_rename_for_each_variable(tmp_path):
    source = folders(tmp_path / "f.weights.h5", {"dense": 1, "dense_2": 2})
    with pytest.raises(UserError, match=r"positions and no names.*refuses.*Without a rule: dense/"):
        restored(two_dense(), source)
    # Names in the file do not count of themselves, not even beside a rule.
    with pytest.raises(UserError, match=r"Without a rule: dense/kernel, dense/bias\."):
        restored(two_dense(), source, rename=[r"dense_1/(.*) -> dense_2/\1"])
    rename = [r"dense_1/(.*) -> dense_2/\1", r"(.*) -> \1"]
    values, _ = restored(two_dense(), source, rename=rename)
    assert (values["dense/kernel"], values["dense_1/kernel"]) == (1, 2)


def test_chosen_layers_by_position(tmp_path):
    source = folders(tmp_path / "f.weights.h5", {"dense": 1, "dense_1": 2})
    model = two_dense((1, 0))
    before = model.get_layer("dense").kernel.numpy().flat[0]
    values, _ = restored(model, source, only=["dense_1/.*"])
    assert values["dense_1/kernel"] == 1 and values["dense/kernel"] == before


def test_what_keras_leaves_over_is_shown(tmp_path):
    source = folders(tmp_path / "f.weights.h5", {"dense": 1, "dense_1": 2, "dense_2": 3})
    values, matched = restored(two_dense(), source)
    assert values["dense_1/bias"] == 2
    assert matched.leftover == ("dense_2/kernel", "dense_2/bias")
    with pytest.raises(UserError, match=r"dense_2/bias.*nothing takes it"):
        restored(two_dense(), source, rename=[r"(.*) -> \1"])


def test_a_module_that_is_no_keras_model_needs_renames(tmp_path):
    import tensorflow as tf

    source = folders(tmp_path / "f.weights.h5", {"dense": 1})
    net = tf.Module()
    net.dense = layers.Dense(4)
    net.dense.build((None, 4))
    with pytest.raises(UserError, match="that of a Keras model, and this is none"):
        restored(net, source)
    assert restored(net, source, rename=[r"(.*) -> \1"])[0] == {"dense/kernel": 1, "dense/bias": 1}


class Swapped(layers.Layer):
    """Makes its offset before its scale, and is called like a layer that does it the other way round."""

    def build(self, shape):
        self.beta = self.add_weight(shape=shape[-1:], name="beta")
        self.gamma = self.add_weight(shape=shape[-1:], name="gamma")

    def call(self, x):
        return x * self.gamma + self.beta


def test_variables_of_a_named_layer_go_by_its_own_order(tmp_path):
    def make():
        inputs = keras.Input((3,))
        return keras.Model(inputs, Swapped(name="layer_normalization")(inputs))

    model = make()
    model.set_weights([np.full(3, 1.0), np.full(3, 2.0)])
    model.save(tmp_path / "m.keras")
    values, _ = restored(make(), open_source(str(tmp_path / "m.keras")))
    assert values == {"layer_normalization/beta": 1, "layer_normalization/gamma": 2}


@pytest.mark.slow(but=3)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
@pytest.mark.parametrize("suffix", [".h5", ".keras", ".weights.h5", ".tf", ""])
def test_recurrent_layers_of_older_keras_keep_their_layers_name(tmp_path, kind, suffix):
    old = pytest.importorskip("tf_keras", reason="the Keras of TF 2.15 and before is not installed")

    def make(keras):
        x = inputs = keras.layers.Input((5, 2))
        x = keras.layers.Bidirectional(getattr(keras.layers, kind)(3, return_sequences=True), name="both")(x)
        return keras.Model(inputs, getattr(keras.layers, kind)(4, name="memory")(x))

    model = make(old)
    path = tmp_path / f"m{suffix}"
    model.save(path) if suffix in (".keras", "") else model.save_weights(path)
    new = make(keras)
    _, matched = restored(new, open_source(str(path)))
    x = np.random.default_rng(0).normal(size=(2, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(new(x), model(x), atol=1e-6)
    if suffix != ".weights.h5":
        assert all(e.sources[0].startswith(("memory/", "both/")) for e in matched.entries if e.sources)


def test_an_adapted_normalization_computes_with_what_was_restored(tmp_path):
    import tensorflow as tf

    from trainer.restore import receipt

    def make():
        inputs = keras.Input((2,))
        return keras.Model(inputs, layers.Normalization(name="scale")(inputs))

    model = make()
    model.get_layer("scale").adapt(np.float32([[1, 2], [3, 6]]))
    x = np.float32([[5, 5]])
    for name in ("m.weights.h5", "m.keras"):
        model.save_weights(tmp_path / name) if "weights" in name else model.save(tmp_path / name)
        new = make()
        new(x)
        source = open_source(str(tmp_path / name))
        matched = match(walk(new), source, parse(), new)
        np.testing.assert_allclose(new(x), x)  # matching leaves the model as it is
        receipt.assign(tf.distribute.get_strategy(), matched, load(matched))
        np.testing.assert_allclose(new(x), model(x))
