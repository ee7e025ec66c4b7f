"""Every source is written by the library that owns the format and compared with what was written."""

import shutil

import keras
import numpy as np
import pytest

from tests.support.weight_files import check, functional, named, randomised
from trainer.readers import keras_names, open_source


@pytest.mark.parametrize("name", ["k.weights.h5", "k.keras"])
def test_keras_files(files, model, name):
    source = open_source(str(files / name))
    check(source, named(), model.get_weights())
    assert list(source.specs)[:2] == ["inner/stem/kernel", "inner/stem/bias"]
    assert source.ignored and all(n.startswith("optimizer/") for n in source.ignored)


def test_names_and_values_belong_together(files, model):
    source = open_source(str(files / "k.weights.h5"))
    bn = model.get_layer("inner").get_layer("bn1")
    np.testing.assert_array_equal(source.read("inner/bn1/moving_variance"), bn.moving_variance)
    np.testing.assert_array_equal(source.read("inner/bn1/beta"), bn.beta)
    cell = model.get_layer("memory").cell
    np.testing.assert_array_equal(source.read("memory/cell/recurrent_kernel"), cell.recurrent_kernel)


def test_legacy_h5(files, model):
    source = open_source(str(files / "k.h5"))
    assert source.kind == "legacy Keras .h5"
    check(source, named(memory="memory/lstm_cell/"), model.get_weights())
    assert all(n.startswith("optimizer_weights/") for n in source.ignored)


def test_recognised_by_content_not_by_suffix(files, tmp_path):
    for name, kind in {
        "k.weights.h5": "Keras .weights.h5",
        "k.keras": "Keras .keras file",
        "t.safetensors": "safetensors file",
        "n.npz": "NumPy .npz",
    }.items():
        shutil.copy(files / name, tmp_path / "weights.bin")
        assert open_source(str(tmp_path / "weights.bin")).kind == kind


def test_subclassed_keras_model(tmp_path):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [keras.layers.Dense(4, name=f"b{i}") for i in range(2)]
            self.att = keras.layers.MultiHeadAttention(2, 2)
            self.emb = keras.layers.Embedding(5, 4)
            self.norm = keras.layers.LayerNormalization()

        def call(self, x):
            x = self.norm(self.emb(x))
            x = self.att(x, x)
            for block in self.blocks:
                x = block(x)
            return x

    net = Net()
    net(np.zeros((1, 3), int))
    randomised(net)
    net.save_weights(tmp_path / "n.weights.h5")
    dense = {"kernel": (4, 2, 2), "bias": (2, 2)}
    shapes = {f"att/{q}_dense/{n}": s for q in ("query", "key", "value") for n, s in dense.items()}
    shapes |= {"att/output_dense/kernel": (2, 2, 4), "att/output_dense/bias": (4,)}
    shapes |= {f"blocks/b{i}/{n}": s for i in range(2) for n, s in (("kernel", (4, 4)), ("bias", (4,)))}
    shapes |= {"emb/embeddings": (5, 4)}
    # Keras files attributes that sort after `layers` under their class.
    shapes |= {"layer_normalization/gamma": (4,), "layer_normalization/beta": (4,)}
    check(open_source(str(tmp_path / "n.weights.h5")), shapes, net.get_weights())


@pytest.mark.parametrize(
    "shapes, hints, options, names",
    [
        ([(3, 3, 1, 2)], ["conv2d_4"], {}, ["kernel"]),
        ([(4,), (4,)], ["batch_normalization"], {}, ["moving_mean", "moving_variance"]),
        ([(4,)] * 3, ["batch_normalization"], {}, ["0", "moving_mean", "moving_variance"]),
        ([(4,)] * 3, ["batch_normalization"], {"scale": False}, ["beta", "moving_mean", "moving_variance"]),
        ([(4,)], ["layer_normalization"], {"center": False}, ["gamma"]),
        ([(4,)], ["layer_normalization_2"], {}, ["0"]),
        ([(4, 4), (4,)], ["my_layer"], {}, ["kernel", "bias"]),
        ([(1, 9, 4)], ["my_layer"], {}, ["0"]),
        ([(4, 4), (5,)], ["my_layer"], {}, ["0", "1"]),
    ],
)
def test_keras_variable_names(shapes, hints, options, names):
    assert keras_names.variables(shapes, hints, options) == names


@pytest.mark.slow
def test_older_keras(tmp_path):
    old = pytest.importorskip("tf_keras", reason="the Keras of TF 2.15 and before is not installed")
    model = randomised(functional(old.layers))
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((2, 8, 8, 1)), np.ones((2, 2)))
    legacy = named(memory="memory/lstm_cell/", depthwise="depthwise_kernel")
    model.save(tmp_path / "whole.h5")
    model.save_weights(tmp_path / "weights.h5")
    for name in ("whole.h5", "weights.h5"):
        source = open_source(str(tmp_path / name))
        assert source.kind == "legacy Keras .h5"
        check(source, legacy, model.get_weights())
    model.save(tmp_path / "new.keras")
    check(open_source(str(tmp_path / "new.keras")), named(), model.get_weights())
    # The nested model's own name is not in an object graph.
    graph = named(inner="", depthwise="depthwise_kernel")
    model.save(tmp_path / "saved")
    check(open_source(str(tmp_path / "saved")), graph, model.get_weights())
    model.save_weights(str(tmp_path / "tf"))
    check(open_source(str(tmp_path / "tf")), graph, model.get_weights())
