"""Every source is written by the library that owns the format and compared with what was written."""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from tests.support import fuzz as damage
from trainer.checkpoints import checkpoint
from trainer.errors import UserError
from trainer.readers import buffers, hdf5, keras_names, npz, open_source

v1 = tf.compat.v1


def functional(layers=keras.layers):
    """Nested, with layers of every storage rule; weights are random, so no two arrays are alike."""
    x = inner_in = layers.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, name="stem")(x)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="dw")(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.5)(x)
    model = keras.Model if layers is keras.layers else sys.modules["tf_keras"].Model
    inner = model(inner_in, layers.Dense(10, name="mid")(x), name="inner")
    x = outer_in = layers.Input((8, 8, 1))
    x = layers.Reshape((2, 5))(inner(x))
    x = layers.LSTM(3, name="memory")(x)
    return model(outer_in, layers.Dense(2, name="head")(x))


def randomised(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.get_weights()])
    return model


# Names of `functional` below the nested model, and of its other layers.
INNER = {
    "stem/kernel": (3, 3, 1, 4),
    "stem/bias": (4,),
    "bn1/gamma": (4,),
    "bn1/beta": (4,),
    "bn1/moving_mean": (4,),
    "bn1/moving_variance": (4,),
    "dw/DEPTHWISE": (3, 3, 4, 1),
    "mid/kernel": (64, 10),
    "mid/bias": (10,),
}
CELL = {"kernel": (5, 12), "recurrent_kernel": (3, 12), "bias": (12,)}
HEAD = {"head/kernel": (3, 2), "head/bias": (2,)}


def named(inner="inner/", memory="memory/cell/", depthwise="kernel"):
    shapes = {inner + n.replace("DEPTHWISE", depthwise): s for n, s in INNER.items()}
    return shapes | {memory + n: s for n, s in CELL.items()} | HEAD


def check(source, shapes, arrays):
    """The names and shapes, and that the values are `arrays`, each used once."""
    assert {name: spec.shape for name, spec in source.specs.items()} == shapes
    rest = [np.asarray(a) for a in arrays]
    for name in source.specs:
        value = source.read(name)
        same = [i for i, a in enumerate(rest) if a.shape == value.shape and np.array_equal(a, value)]
        assert same, name
        rest.pop(same[0])
    assert not rest


@pytest.fixture(scope="module")
def model():
    keras.backend.clear_session()
    model = randomised(functional())
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((2, 8, 8, 1)), np.ones((2, 2)))
    return model


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """One small file of each format."""
    at = tmp_path_factory.mktemp("files")
    model.save_weights(at / "k.weights.h5")
    model.save(at / "k.keras")
    model.save(at / "k.h5")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer, step=tf.Variable(3)).save(str(at / "ck"))
    save_file({"conv.weight": np.ones((2, 3), ml_dtypes.bfloat16), "x": np.eye(4)}, at / "t.safetensors")
    np.savez(at / "n.npz", **{"conv/kernel": np.arange(6.0).reshape(2, 3), "global_step": np.int64(5)})
    return at


# Keras


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


# TensorFlow


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


@pytest.fixture(scope="module")
def tf1(tmp_path_factory):
    at = tmp_path_factory.mktemp("tf1")
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("net/fc"):
            w = v1.get_variable("weights", initializer=np.arange(12, dtype=np.float32).reshape(4, 3))
            b = v1.get_variable("biases", (3,))
        step = v1.train.get_or_create_global_step()
        train = v1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum(w * w + b), global_step=step)
        with tf.control_dependencies([train]):
            average = v1.train.ExponentialMovingAverage(0.5).apply([w])
        session.run(v1.global_variables_initializer())
        session.run(average)
        v1.train.Saver().save(session, str(at / "v2"))
        values = session.run([w, b])
        v1.train.Saver(write_version=v1.train.SaverDef.V1).save(session, str(at / "v1"))
        v1.train.Saver(write_version=v1.train.SaverDef.V1, sharded=True).save(session, str(at / "v1s"))
    return at, values


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


# The others


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


# Refusals


def test_nothing_there(files):
    with pytest.raises(UserError, match=r"--init_from=.*k\.kera.*no such file.*k\.keras"):
        open_source(str(files / "k.kera"))
    with pytest.raises(UserError, match="holds no 'hed'"):
        open_source(str(files / "k.keras")).read("hed")


def test_directories(files, tmp_path):
    with pytest.raises(UserError, match="is a directory without"):
        open_source(str(tmp_path))
    for end in (".index", ".data-00000-of-00001"):
        shutil.copy(str(files / "ck-1") + end, tmp_path / ("one" + end))
    assert open_source(str(tmp_path)).specs
    shutil.copy(str(files / "ck-1.index"), tmp_path / "two.index")
    with pytest.raises(UserError, match="several checkpoints; name one of them: one, two"):
        open_source(str(tmp_path))
    with pytest.raises(UserError, match=r"no two\.data"):
        open_source(str(tmp_path / "two.index"))


def test_no_average(files):
    for name in ("ck-1", "k.keras", "n.npz"):
        with pytest.raises(UserError, match="--init_weights=ema"):
            open_source(str(files / name), "ema")


def hostile_h5(path, make):
    with h5py.File(path, "w") as h5:
        make(h5.create_group("model_weights/d"))


HOSTILE = {
    "link out": lambda g: g.__setitem__("kernel:0", h5py.ExternalLink("/etc/hostname", "x")),
    "link within": lambda g: g.__setitem__("kernel:0", h5py.SoftLink("/model_weights")),
    "data elsewhere": lambda g: g.create_dataset(
        "kernel:0", shape=(4,), dtype="u1", external=[("/etc/hostname", 0, 4)]
    ),
    "huge": lambda g: g.create_dataset("k", shape=(1 << 40,), chunks=(1 << 10,), compression="gzip"),
    "text": lambda g: g.__setitem__("kernel:0", np.array(["a"], object)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_h5(tmp_path, what):
    hostile_h5(tmp_path / "x.h5", HOSTILE[what])
    with pytest.raises(UserError, match="cannot be read"):
        open_source(str(tmp_path / "x.h5"))


def test_circle_in_h5(tmp_path):
    def make(group):
        group["again"] = group.parent
        group["kernel:0"] = np.ones(3)

    hostile_h5(tmp_path / "x.h5", make)
    assert list(open_source(str(tmp_path / "x.h5")).specs) == ["d/kernel"]


def test_h5_library_that_hangs(files, monkeypatch):
    monkeypatch.setattr(hdf5, "_SECONDS", 0.01)
    with pytest.raises(UserError, match="did not come to an end"):
        open_source(str(files / "k.h5"))


def test_hostile_npz(tmp_path, monkeypatch):
    np.savez(tmp_path / "o.npz", a=np.array([{}], object))
    with pytest.raises(UserError, match="objects"):
        open_source(str(tmp_path / "o.npz"))
    with zipfile.ZipFile(tmp_path / "h.npz", "w") as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"shape": (1 << 50,), "fortran_order": False, "descr": "<f8"}
        )
        archive.writestr("a.npy", header.getvalue())
    with pytest.raises(UserError, match="announces"):
        open_source(str(tmp_path / "h.npz"))
    monkeypatch.setattr(npz, "_FREE", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(1 << 22))
    with pytest.raises(UserError, match="would unpack"):
        open_source(str(tmp_path / "bomb.npz"))


def test_hostile_safetensors(tmp_path):
    (tmp_path / "h.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b'{"a":')
    with pytest.raises(UserError):
        open_source(str(tmp_path / "h.safetensors"))
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (tmp_path / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="cannot be read"):
        open_source(str(tmp_path / "b.safetensors"))


def test_keras_archive_writes_nowhere(files, tmp_path):
    with zipfile.ZipFile(files / "k.keras") as archive, zipfile.ZipFile(tmp_path / "e.keras", "w") as out:
        out.writestr("../../escaped", b"x")
        out.writestr("config.json", b'{"config": {"layers": [{"class_name": 3}, 7, {"config": []}]}}')
        out.writestr("model.weights.h5", archive.read("model.weights.h5"))
    open_source(str(tmp_path / "e.keras"))
    assert not list(tmp_path.parent.parent.glob("escaped")) and len(list(tmp_path.iterdir())) == 1


def test_code_is_never_run(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code of the file was run",))

    (tmp_path / "a.pt").write_bytes(pickle.dumps(Bomb()))
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(UserError, match="pickle"):
            open_source(str(tmp_path / name))


@pytest.mark.parametrize("name, times", [("ck-1", 150), ("n.npz", 300), ("t.safetensors", 300)])
def test_fuzz(files, tmp_path, name, times):
    fuzz(files, tmp_path, name, times)


@pytest.mark.parametrize("name, times", [("k.weights.h5", 14), ("k.h5", 14), ("k.keras", 60)])
def test_fuzz_h5(files, tmp_path, monkeypatch, name, times):
    monkeypatch.setattr(hdf5, "_SECONDS", 3)
    fuzz(files, tmp_path, name, times)


def fuzz(files, tmp_path, name, times):
    originals = {p.name: p.read_bytes() for p in files.iterdir() if p.name.startswith(name)}
    damage.fuzz(originals, name, tmp_path, times)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sealed(block):
    """A block of an index with its compression byte and TensorFlow's masked CRC."""
    crc = crc32c(block + b"\0")
    return block + b"\0" + ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def test_hostile_index_with_right_checksums(tmp_path):
    """TensorFlow's own reader aborts the process on some of these."""
    tf.train.Checkpoint(a=tf.Variable(np.ones((2, 3), np.float32))).write(str(tmp_path / "c"))
    index = (tmp_path / "c.index").read_bytes()
    # One data block; the block of metadata behind it is empty (8 bytes).
    size = next(n for n in range(8, len(index)) if sealed(index[:n]) == index[: n + 5])
    rng = np.random.default_rng(5)
    for _ in range(200):
        block = bytearray(index[:size])
        for place in rng.integers(size, size=rng.integers(1, 4)):
            block[place] = rng.choice([0, 255, block[place] ^ (1 << rng.integers(8))])
        (tmp_path / "c.index").write_bytes(sealed(bytes(block)) + index[size + 5 :])
        try:
            source = open_source(str(tmp_path / "c"))
            for name in source.specs:
                source.read(name)
        except UserError:
            continue
    (tmp_path / "c.index").write_bytes(index)
    assert open_source(str(tmp_path / "c")).read("a").shape == (2, 3)


def test_lazy(files, monkeypatch):
    read: list[Path] = []
    real = buffers.part
    monkeypatch.setattr(buffers, "part", lambda file, *a: read.append(file) or real(file, *a))
    source = open_source(str(files / "k.weights.h5"))
    assert not read
    source.read("head/bias")
    assert len(read) == 1
