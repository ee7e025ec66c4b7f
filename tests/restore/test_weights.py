"""Restoring without a run: one call, all or nothing, under a strategy or none."""

import doctest
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import UserError
from trainer.model.keras2 import refuse_keras_2
from trainer.model.names import walk
from trainer.restore import weights
from trainer.restore.weights import inspect_weights, restore_weights


def model(units=2):
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, name="body")(inputs)
    return keras.Model(inputs, keras.layers.Dense(units, name="head")(x))


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"trunk/body/kernel": (3, 4), "trunk/body/bias": (4,), "top/kernel": (4, 5), "top/bias": (5,)}
    np.savez(tmp_path / "w.npz", **{n: rng.normal(size=s).astype("f4") for n, s in shapes.items()})
    return tmp_path / "w.npz"


def test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(weights, optionflags=doctest.ELLIPSIS)
    assert not failed and tried > 8


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("replicas", [1, 2])
def test_chosen_layers(file, inside, replicas):
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        made = model()
    head = made.get_layer("head").kernel.numpy()
    rules = {"rename": r"(body/.*) -> trunk/\1", "only": ["body/.*"]}
    if inside:
        with strategy.scope():
            receipt = restore_weights(made, file, **rules)
    else:
        receipt = restore_weights(made, str(file), **rules)
    stored = np.load(file)
    for copy in strategy.experimental_local_results(made.get_layer("body").kernel.value):
        np.testing.assert_array_equal(copy, stored["trunk/body/kernel"])
    np.testing.assert_array_equal(made.get_layer("head").kernel, head)
    assert receipt.restored == {"body/kernel": "trunk/body/kernel", "body/bias": "trunk/body/bias"}
    assert set(receipt.left_alone) == {"head/kernel", "head/bias"}
    assert receipt.lines[0]["replicas"] == replicas
    text = str(receipt)
    assert "body/kernel" in text and "trunk/body/kernel" in text and "NumPy .npz" in text


def test_all_or_nothing(file):
    made = model()
    before = {v.name: v.value.numpy() for v in walk(made)}
    with pytest.raises(UserError, match=r"(?s)path=.*head/kernel.*trainer\.inspect_weights") as caught:
        restore_weights(made, file, rename=[r"body/(.*) -> trunk/body/\1", r"head/(.*) -> top/\1"])
    assert "float32[4, 2], the source has float32[4, 5]" in str(caught.value)
    for v in walk(made):
        np.testing.assert_array_equal(v.value, before[v.name])


def test_a_module_and_a_cast(tmp_path):
    net = tf.Module()
    net.w = tf.Variable(np.zeros((2, 2), np.float32))
    np.savez(tmp_path / "w.npz", w=np.ones((2, 2)))
    with pytest.raises(UserError, match="--init_cast"):
        restore_weights(net, tmp_path / "w.npz")
    assert restore_weights(net, tmp_path / "w.npz", cast=True).lines[0]["cast"] == "float64 -> float32"
    assert net.w.numpy().sum() == 4


def test_a_keras_file_by_position_and_its_receipt_on_disk(tmp_path):
    first, second = model(), model()
    first.save_weights(tmp_path / "m.weights.h5")
    receipt = restore_weights(second, tmp_path / "m.weights.h5")
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert {line["rule"] for line in receipt.lines} == {"by position, as Keras does"}
    body = json.loads(receipt.write(tmp_path).read_text())
    assert body["restored"] == 4 and body["left_over_in_source"] == []
    with pytest.raises(UserError, match="cannot be written"):
        receipt.write(tmp_path / "nowhere")


def test_a_long_receipt_folds(tmp_path):
    net = tf.Module()
    net.block = [tf.Module() for _ in range(100)]
    for block in net.block:
        block.a, block.b = tf.Variable(0.0), tf.Variable(0.0)
    np.savez(tmp_path / "w.npz", **{v.name: np.float32(1) for v in walk(net)})
    lines = str(restore_weights(net, tmp_path / "w.npz")).splitlines()
    assert len(lines) < 10 and any("block/*" in line and "200 variables" in line for line in lines)


def test_inspection(file):
    found = inspect_weights(file)
    assert found.names == ("trunk/body/kernel", "trunk/body/bias", "top/kernel", "top/bias")
    stored = np.load(file)["top/kernel"]
    row = found.rows[2]
    assert row[:3] == ("top/kernel", (4, 5), "float32")
    np.testing.assert_allclose(row[3:], [stored.mean(), stored.std(), stored.min(), stored.max()], rtol=1e-6)
    assert "top/kernel" in str(found) and found.proposal is None
    proposed = inspect_weights(file, model())
    assert not proposed.fits and proposed.proposal is not None
    assert r"--init_rename=(.*) -> trunk/\1" in str(proposed)
    assert "--init_skip=top/.*" in str(proposed)


def test_names_from_a_file_do_not_reach_the_terminal_raw(tmp_path):
    np.savez(tmp_path / "w.npz", **{"a\x1b[31m": np.float32(1)})
    assert "\x1b" not in str(inspect_weights(tmp_path / "w.npz"))


def test_models_of_keras_2_are_refused_and_their_files_are_not(tmp_path):
    old = pytest.importorskip("tf_keras", reason="the Keras of TF 2.15 and before is not installed")
    inputs = old.Input((3,))
    x = old.layers.Dense(4, name="body")(inputs)
    made = old.Model(inputs, old.layers.Dense(2, name="head")(x))
    with pytest.raises(UserError, match=r"of Keras 2 \(tf_keras\).*save_weights.*--init_from=old.h5"):
        refuse_keras_2(made, "--model=old")
    with pytest.raises(UserError, match="tf_keras"):
        restore_weights(made, tmp_path / "any")
    wrapped = tf.Module()
    wrapped.inner = made.get_layer("body")
    with pytest.raises(UserError, match="body is a Dense of Keras 2"):
        refuse_keras_2(wrapped, "--model=old")
    refuse_keras_2(model(), "--model=new")
    made.save_weights(str(tmp_path / "old.h5"))
    new = model()
    restore_weights(new, tmp_path / "old.h5")
    x = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(new(x), made(x), rtol=1e-6)
