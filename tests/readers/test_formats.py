"""What each format of weights can hold, read back against the library that owns it."""

import shutil
import sys

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tests.support.weight_files import check, named, v1
from trainer.checkpoints import checkpoint
from trainer.errors import UserError
from trainer.readers import open_source


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001"])
def test_object_graph(files, model, suffix):
    source = open_source(str(files / "ck-1") + suffix)
    assert source.kind == "TF2 object-graph checkpoint"
    check(source, named(inner=""), model.get_weights())
    assert {"save_counter", "step", "optimizer/_iterations"} <= set(source.ignored)


def test_object_graph_of_modules(tmp_path):
    class Net(tf.Module):
        def __init__(self):
            super().__init__()
            self.blocks = [tf.Variable([1.0]), tf.Variable([2.0])]
            self.parts = {"a": tf.Variable(3.0)}
            self.random = tf.random.Generator.from_seed(1)
            self.dense = keras.layers.Dense(2)
            self.dense.build((None, 3))
            self.again = self.blocks

    net = Net()
    net.me = net  # a circle
    net.dense.set_weights([np.full((3, 2), 4.0), np.full(2, 5.0)])
    tf.train.Checkpoint(net=net).write(str(tmp_path / "c"))
    source = open_source(str(tmp_path / "c"))
    shapes = {"blocks/0": (1,), "blocks/1": (1,), "parts/a": ()}
    shapes |= {"dense/kernel": (3, 2), "dense/bias": (2,)}
    check(source, shapes, [[1.0], [2.0], 3.0, np.full((3, 2), 4.0), np.full(2, 5.0)])
    assert source.ignored == ("net/random/_state_var",)


@pytest.mark.parametrize("how", ["save", "export"])
def test_saved_model_variables_without_loading_it(model, tmp_path, how, monkeypatch):
    if how == "save":
        tf.saved_model.save(model, str(tmp_path / "m"))
    else:
        model.export(tmp_path / "m", verbose=False)
    monkeypatch.setattr(tf.saved_model, "load", None)
    source = open_source(str(tmp_path / "m"))
    assert source.kind == "SavedModel's variables"
    # An export keeps a flat list, whose names are Keras's paths.
    cell = "memory/lstm_cell/" if how == "export" else "memory/cell/"
    check(source, named(inner="", memory=cell), model.get_weights())
    (tmp_path / "m" / "saved_model.pb").write_bytes(b"not read")
    open_source(str(tmp_path / "m"))


def test_tf1(tf1):
    at, (w, b) = tf1
    source = open_source(str(at / "v2"))
    assert source.kind == "TF1 name-based checkpoint"
    check(source, {"net/fc/weights": (4, 3), "net/fc/biases": (3,)}, [w, b])
    assert {"beta1_power", "global_step", "net/fc/weights/Adam_1"} <= set(source.ignored)
    averaged = open_source(str(at / "v2"), "ema")
    start = np.arange(12).reshape(4, 3)
    np.testing.assert_allclose(averaged.read("net/fc/weights"), (start + w) / 2, rtol=1e-6)
    np.testing.assert_array_equal(averaged.read("net/fc/biases"), b)


def test_tf1_names_with_the_number_of_an_output(tmp_path):
    """As converters write them with SaveV2: `:0` at the end, and no graph that says what is a slot."""
    kernel = np.ones((2, 2), np.float32)
    arrays = {"a/kernel:0": kernel, "a/kernel/Adam:0": 0 * kernel, "a/kernel/Adam_1:0": 0 * kernel}
    arrays |= {"beta1_power:0": np.float32(0.9), "beta2_power:0": np.float32(0.9), "step:0": np.int32(7)}
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "c"),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=[tf.constant(v) for v in arrays.values()],
    )
    np.savez(tmp_path / "c.npz", **arrays)
    source = open_source(str(tmp_path / "c"))
    check(source, {"a/kernel": (2, 2)}, [kernel])
    assert set(source.ignored) == {name.removesuffix(":0") for name in arrays} - {"a/kernel"}
    assert list(open_source(str(tmp_path / "c.npz")).specs) == ["a/kernel:0"]


def test_a_weight_that_is_called_like_a_slot_is_none_without_its_owner(tmp_path):
    np.savez(tmp_path / "c.npz", **{"head/Adam": np.ones(2), "body/Momentum": np.ones(2), "body": np.ones(2)})
    source = open_source(str(tmp_path / "c.npz"))
    assert list(source.specs) == ["head/Adam", "body"] and source.ignored == ("body/Momentum",)


def test_tf1_partitioned_variable(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        parts = v1.fixed_size_partitioner(3)
        whole = v1.get_variable("table", (8, 2), partitioner=parts).as_tensor()
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "p"))
        check(open_source(str(tmp_path / "p")), {"table": (8, 2)}, [session.run(whole)])


@pytest.mark.parametrize("name", ["v1", "v1s"])
def test_tf1_v1_is_refused_by_name(tf1, name):
    with pytest.raises(UserError, match=r"V1.*SaverDef\.V2"):
        open_source(str(tf1[0] / name))


def test_our_checkpoints(tmp_path):
    def save(step, value):
        state = {
            "model/a.b/kernel": tf.Variable([value]),
            "model/dropout/seed_generator_state": tf.Variable([1, 2]),
            "ema/a.b/kernel": tf.Variable([-value]),
            "optimizer/a.b/kernel/momentum": tf.Variable([0.0]),
            "step": tf.Variable(step, dtype=tf.int64),
        }
        return checkpoint.save(tmp_path / "run" / "checkpoints", step, state, {})

    first, second = save(5, 1.0), save(40, 2.0)
    for path, value in (("", 2.0), ("checkpoints", 2.0), (f"checkpoints/{first.name}", 1.0)):
        source = open_source(str(tmp_path / "run" / path))
        check(source, {"a.b/kernel": (1,)}, [[value]])
        assert "step" in source.ignored and "dropout/seed" in " ".join(source.ignored)
    assert open_source(str(tmp_path / "run"), "ema").read("a.b/kernel") == -2.0
    copy = shutil.copytree(second, tmp_path / "elsewhere")
    assert open_source(str(copy)).read("a.b/kernel") == 2.0
    # The newest is damaged: the one before it counts, and the damaged one itself is refused.
    (second / "data.data-00000-of-00001").write_bytes(b"x" * 100)
    assert open_source(str(tmp_path / "run")).read("a.b/kernel") == 1.0
    with pytest.raises(UserError, match="whole"):
        open_source(str(second))


def test_safetensors(files):
    source = open_source(str(files / "t.safetensors"))
    assert source.specs["conv.weight"].dtype == "bfloat16"
    assert source.read("conv.weight").dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(source.read("x"), np.eye(4))


def test_safetensors_not_installed(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="pip install safetensors"):
        open_source(str(files / "t.safetensors"))


def test_npz(files, tmp_path):
    source = open_source(str(files / "n.npz"))
    check(source, {"conv/kernel": (2, 3)}, [np.arange(6.0).reshape(2, 3)])
    assert source.ignored == ("global_step",)
    np.savez_compressed(tmp_path / "z.npz", a=np.arange(4, dtype=">f4"))
    big = open_source(str(tmp_path / "z.npz"))
    assert big.specs["a"].dtype == "float32" and big.read("a").tolist() == [0, 1, 2, 3]


def test_packed_h5(tmp_path):
    with h5py.File(tmp_path / "p.h5", "w") as h5:
        group = h5.create_group("model_weights/d/d")
        data = np.arange(12, dtype=">f4").reshape(3, 4)
        group.create_dataset("kernel:0", data=data, chunks=(2, 2), compression="gzip", shuffle=True)
        group["bias:0"] = np.ones(4, np.float16)
    check(open_source(str(tmp_path / "p.h5")), {"d/kernel": (3, 4), "d/bias": (4,)}, [data, np.ones(4)])
