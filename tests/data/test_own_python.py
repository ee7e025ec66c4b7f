"""Functions and objects of Python as data, those of other packages among them."""

import re
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import trainer
from trainer.data.opening import Places, open_data, open_object
from trainer.data.records import load
from trainer.data.source import Split
from trainer.data.sources.arrays import Arrays
from trainer.errors import UserError

TABLE = "width,length,count,kind\n1.5,2,3,b\n2.5,4,5,a\n0.5,1,1,b\n"


def refused(text, bad="refuse"):
    with pytest.raises(UserError) as error:
        open_data(str(text), Places(), bad)
    return str(error.value)


# --- functions and objects -----------------------------------------------------------------------


class Pairs:
    """PyTorch-style: tuples."""

    def __init__(self, noise=0.0):
        self.noise = noise

    def __len__(self):
        return 20

    def __getitem__(self, i):
        if not 0 <= i < 20:
            raise IndexError(i)
        return np.full([3], i, np.float32) + self.noise * np.random.rand(), i


def test_tuples_need_names():
    with pytest.raises(UserError, match=r"is a tuple of 2.*names=\('image', 'label'\)"):
        open_object(Pairs(), "pairs")
    source = open_object({"train": Pairs(), "test": Pairs()}, "pairs", names=("x", "label"))
    assert source.spec() == {"x": tf.TensorSpec([3], tf.float32), "label": tf.TensorSpec([], tf.int64)}
    np.testing.assert_array_equal(load(Split(source, "train[5:7]"))["x"], [[5] * 3, [6] * 3])
    arrays = open_object((np.zeros([4, 2]), np.arange(4)), "pair", names=["x", "y"])
    assert set(arrays.spec()) == {"x", "y"}
    data = tf.data.Dataset.from_tensor_slices((np.zeros([4, 2]), np.arange(4)))
    assert set(open_object(data, "data", names=["x", "y"]).spec()) == {"x", "y"}
    with pytest.raises(UserError, match="tuples of 2"):
        open_object(data, "data")


def test_what_cannot_be_repeated_is_refused():
    with pytest.raises(UserError, match=r"x is another one when asked again.*preprocess"):
        open_object(Pairs(noise=1.0), "noisy", names=("x", "label"))
    data = tf.data.Dataset.range(100).shuffle(100).map(lambda i: {"x": i})
    with pytest.raises(UserError, match="reshuffle_each_iteration=False"):
        open_object(data, "shuffled")
    # With a fixed seed it comes the same when it is read again.
    drawn = tf.data.Dataset.range(20).map(
        lambda i: {"x": tf.cast(i, "float32") * tf.random.uniform([], seed=3)}
    )
    with pytest.raises(
        UserError, match=r"the pipeline of split train draws .*RandomUniform at .*test_own_py"
    ):
        open_object((drawn.batch(5).unbatch(), 20), "drawn")
    fixed = tf.data.Dataset.range(100).shuffle(100, 1, reshuffle_each_iteration=False).map(lambda i: {"x": i})
    assert open_object(fixed, "shuffled").sizes() == {"train": 100}
    with pytest.raises(UserError, match=r"Give \(dataset, size\)"):
        open_object(tf.data.Dataset.range(100).repeat().map(lambda i: {"x": i}), "endless")
    with pytest.raises(UserError, match="int, not a dictionary of arrays, anything with len"):
        open_object(3, "three")


def test_one_that_leaves_or_raises_is_refused_with_its_line():
    class Leaves(Pairs):
        def __getitem__(self, i):
            raise SystemExit(0)

    class Lost(Pairs):
        def __len__(self):
            raise KeyError("lost")

    with pytest.raises(
        UserError, match=r"asking split train for an example called sys.exit\(0\) at .*test_own"
    ):
        open_object(Leaves(), "leaves", names=("x", "label"))
    with pytest.raises(UserError, match=r"its len\(\) of split train raised KeyError at .*test_own"):
        open_object(Lost(), "lost", names=("x", "label"))


def test_an_example_unlike_the_others_is_named():
    class Odd(Pairs):
        def __getitem__(self, i):
            return {"x": np.zeros([4 if i == 9 else 3])}

    source = open_object(Odd(), "odd")
    with pytest.raises(UserError, match=r"split train, example 9: x has shape \[4\]"):
        load(Split(source, "train"))


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    code = """
    import numpy as np
    def make(size=4, path=""):
        return {"train": {"x": np.arange(float(size))}, "test": {"x": np.zeros(2)}}
    def file():
        return PATH
    def fails():
        raise ValueError("no such thing")
    def pair():
        return np.zeros([3, 2]), np.arange(3)
    table = {"x": np.arange(3.0)}
    """
    code = textwrap.dedent(code).replace("PATH", repr(str(tmp_path / "t.csv")))
    (tmp_path / "t.csv").write_text(TABLE)
    (tmp_path / "their_own.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    for text, sizes in {
        "their_own.make(size=7)": {"train": 7, "test": 2},
        "their_own": {"train": 4, "test": 2},
        "./their_own.py": {"train": 4, "test": 2},
        "./their_own.py.make(size=5)": {"train": 5, "test": 2},
        "their_own.file": {"train": 3},
        "their_own.table": {"train": 3},
        "their_own.pair(names=['x', 'y'])": {"train": 3},
    }.items():
        assert dict(open_data(text, Places()).sizes()) == sizes, text
    assert "there is no argument sise" in refused("their_own.make(sise=3)")
    assert re.search(r"raised ValueError at .*their_own.py:8: no such thing", refused("their_own.fails"))
    assert "2 arrays without names" in refused("their_own.pair")
    (tmp_path / "mnist").mkdir()
    np.save(tmp_path / "mnist/x.npy", np.zeros(3))
    said = refused("mnist")
    assert "more than one thing here" in said and "./mnist" in said
    assert open_data("./mnist", Places()).sizes() == {"train": 3}


def test_names_that_are_not_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text(TABLE)
    assert "Did you mean table.csv" in refused("tabel.csv")
    said = refused("mnits")
    assert "no such data set" in said and "Did you mean mnist" in said and "docs/data.md" in said
    assert "there is no package" in refused("nowhere.at_all") or "no such data set" in refused(
        "nowhere.at_all"
    )
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/x.txt").write_text("")
    assert "nothing in it that is known as data, only *.txt" in refused("./odd")


def test_data_of_ones_own_with_flags_for_tfds_only(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    with pytest.raises(UserError, match="--manual_dir=/x: is of use for sets of TFDS only"):
        open_data(str(tmp_path / "t.csv"), Places(manual_dir="/x"))


# --- packages of others --------------------------------------------------------------------------


def test_hugging_face_datasets():
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    if not hasattr(datasets, "DatasetDict"):  # without the package, the name is the folder of this repository
        pytest.skip("Hugging Face datasets is not installed")
    images = [Image.new("RGB", (4, 3), (i, i, i)) for i in range(12)]
    rows = {"image": images, "label": [i % 2 for i in range(12)], "text": [f"n{i}" for i in range(12)]}
    kinds = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b"]),
            "text": datasets.Value("string"),
        }
    )
    data = datasets.Dataset.from_dict(rows, features=kinds)
    source = open_object(datasets.DatasetDict({"train": data, "test": data.select(range(4))}), "hub")
    assert source.sizes() == {"train": 12, "test": 4}
    found = load(Split(source, "train"))
    np.testing.assert_array_equal(found["image"][:, 0, 0, 0], np.arange(12))
    assert found["text"].tolist() == [f"n{i}".encode() for i in range(12)]
    lists = datasets.Dataset.from_dict({"tokens": [[1, 2], [3], [4, 5, 6]]})
    assert open_object(lists, "hub").spec()["tokens"] == tf.TensorSpec([None], tf.int64)


def test_grain_sources():
    grain = pytest.importorskip("grain.python", reason="grain is not installed")
    data = grain.MapDataset.source(list(range(10))).map(lambda i: {"x": np.float32([i, -i])})
    found = load(Split(open_object(data, "grain"), "train"))
    np.testing.assert_array_equal(found["x"][:, 1], -np.arange(10))


def test_a_folder_called_datasets_hides_no_package(monkeypatch):
    """A regular package comes before a folder without `__init__.py`, wherever that stands on the path."""
    from trainer.data.sources.tfds_builders import LOCAL

    assert LOCAL.name == "datasets" and not (LOCAL / "__init__.py").exists()


@pytest.mark.slow
def test_python_may_pass_what_a_flag_names(monkeypatch):
    module = types.SimpleNamespace(
        build=lambda: keras.Sequential([keras.Input([3]), keras.layers.Dense(1, name="d")]),
        loss=lambda m, b, training: ((m(b["x"])[:, 0] - tf.cast(b["label"], tf.float32)) ** 2, {}),
    )
    shared = {
        "model": module,
        "group": [".* adam 1e-1"],
        "batch_size": 5,
        "train_for": 40,
        "eval_split": "train",
    }
    source = open_object(Pairs(), "pairs", names=("x", "label"))
    x = {"x": np.stack([Pairs()[i][0] for i in range(20)]), "label": np.arange(20)}
    data = tf.data.Dataset.from_tensor_slices(x)
    losses = [trainer.Run(dataset=d, **shared).train().metrics["loss"] for d in (source, x, Arrays(train=x))]
    assert losses[0] == losses[1] == losses[2] < 20
    other = trainer.Run(dataset=(data, 20), **shared).train().metrics["loss"]  # in its own order
    assert other < 20 and other != losses[0]
