"""Each kind of data of one's own: what comes out, compared with who knows it, and what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from trainer.data.opening import Places, open_data, open_object
from trainer.data.records import load
from trainer.data.source import Split
from trainer.errors import UserError


def refused(text, bad="refuse"):
    with pytest.raises(UserError) as error:
        open_data(str(text), Places(), bad)
    return str(error.value)


# --- arrays --------------------------------------------------------------------------------------


def test_npz_with_and_without_splits(tmp_path):
    x = np.random.default_rng(0).normal(size=[6, 2])
    np.savez(tmp_path / "one.npz", x=x, text=np.array(["a", "bc", "", "d", "e", "f"]))
    np.savez(tmp_path / "two.npz", **{"train/x": x, "test/x": x[:2]})
    source = open_data(str(tmp_path / "one.npz"), Places())
    assert source.sizes() == {"train": 6}
    assert source.spec() == {"x": tf.TensorSpec([2], tf.float32), "text": tf.TensorSpec([], tf.string)}
    np.testing.assert_array_equal(load(Split(source, "train"))["x"], x.astype(np.float32))
    assert open_data(str(tmp_path / "two.npz"), Places()).sizes() == {"train": 6, "test": 2}
    assert "x float64[2]" in source.notes[0]  # float64 becomes floatx, and the plan's notes show what it was


def test_array_files_that_are_refused(tmp_path):
    np.savez(tmp_path / "pickled.npz", x=np.array([{}, {}], object))
    assert "Python objects, which are never unpickled" in refused(tmp_path / "pickled.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4 and no more")
    assert "cannot be read as .npz" in refused(tmp_path / "torn.npz")
    (tmp_path / "npy").mkdir()
    (tmp_path / "npy/x.npy").write_bytes(b"no")
    assert "cannot be read as .npy" in refused(tmp_path / "npy")
    np.savez(tmp_path / "odd.npz", x=np.zeros(3), y=np.zeros(4))
    assert "different lengths (x 3, y 4)" in refused(tmp_path / "odd.npz")


def test_arrays_with_values_that_cannot_be_used():
    x, label = np.arange(8.0), np.array([0, 1, 2, -1, 1, 0, 0, 1])
    with pytest.raises(
        UserError, match=r"split train, example 3 of 8 .*feature label: -1 \(the label is missing"
    ):
        open_object({"x": x, "label": label}, "arrays")
    bad = np.where(np.arange(8) % 5 == 4, np.nan, x)
    with pytest.raises(UserError, match=r"split test, example 4 of 8 .*feature x: nan"):
        open_object({"train": {"x": x}, "test": {"x": bad}}, "arrays")
    kept = open_object({"x": bad, "label": label}, "arrays", "skip")
    assert kept.sizes() == {"train": 6} and "2 of 8 examples of train are left out" in kept.notes[0]
    np.testing.assert_array_equal(kept.arrays("train")["x"], x[[0, 1, 2, 5, 6, 7]])
    assert open_object({"x": bad, "label": label}, "arrays", "keep").sizes() == {"train": 8}
    open_object({"label": np.array([-1, 1, -1, 1])}, "arrays")  # a margin's classes
    with pytest.raises(UserError, match=r"train: x holds Python objects"):
        open_object({"x": np.array([{}, 1], object)}, "arrays")
    with pytest.raises(UserError, match=r"no split|is empty|not a dictionary"):
        open_object({}, "arrays")


# --- tables --------------------------------------------------------------------------------------

TABLE = "width,length,count,kind\n1.5,2,3,b\n2.5,4,5,a\n0.5,1,1,b\n"


def test_a_table_as_pandas_would_have_it(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    source = open_data(f"{tmp_path}/t.csv(label='kind')", Places())
    assert source.sizes() == {"train": 3}
    found = load(Split(source, "train"))
    np.testing.assert_array_equal(found["kind"], [1, 0, 1])
    np.testing.assert_array_equal(found["width"], np.float32([1.5, 2.5, 0.5]))
    assert found["count"].dtype == np.int64 and found["kind"].dtype == np.int64
    assert source.features["kind"].names == ("a", "b") and source.features["kind"].num_classes == 2
    said = " ".join(source.notes)
    assert "width float64, length int64, count int64, kind text" in said and "0 a, 1 b" in said
    text = open_data(f"{tmp_path}/t.csv(features=['kind', 'count'])", Places())
    assert list(load(Split(text, "train"))["kind"]) == [b"b", b"a", b"b"] and set(text.spec()) == {
        "kind",
        "count",
    }


def test_parquet_with_lists_and_text(tmp_path):
    columns = {"tokens": [[1, 2], [], [3]], "text": ["é", "", "long " * 9], "y": [True, False, True]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = open_data(str(tmp_path / "t.parquet"), Places())
    assert source.spec()["tokens"] == tf.TensorSpec([None], tf.int64)
    found = source.examples(tf.constant([2, 0], tf.int64))
    assert found["tokens"].to_list() == [[3], [1, 2]]
    assert found["text"].numpy().tolist() == [("long " * 9).encode(), "é".encode()]
    assert found["y"].numpy().tolist() == [True, True]


@pytest.mark.parametrize(
    "text, arguments, words",
    [
        ("a,b\n1,2\n", "(label='c')", "label='c': .* has no such column"),
        ("a,widht\n1,2\n", "(features=['width'])", "Did you mean widht"),
        ("a,b\n1,x\n2,\n,y\n", "", "split train, example 2 of 3 .*feature a: no value"),
        ("a,b\n1,2\n3\n", "", "cannot be read"),
        ("", "", "cannot be read"),
        ("a,a\n1,2\n", "", "two columns of one name: a"),
        ("k\nCat\ncat \n", "(label='k')", "'Cat' and 'cat ' differ by case or blanks only"),
        ("d\n2024-01-02\n", "", "column d is (date|timestamp)"),
        ("a\nnan\n1\n", "", "example 0 of 2 .*feature a: no value"),
        ("a,b\n", "", "has no examples"),
        ("a,b\n1,\n2,\n", "", "column b has no value in any row"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, arguments, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        source = open_data(f"{tmp_path}/t.csv{arguments}", Places())
        Split(source, "train").size()
        load(Split(source, "train"))


# --- tfrecords -----------------------------------------------------------------------------------


def feature(value):
    kinds = {bytes: "bytes_list", float: "float_list", int: "int64_list"}
    lists = {
        "bytes_list": tf.train.BytesList,
        "float_list": tf.train.FloatList,
        "int64_list": tf.train.Int64List,
    }
    kind = kinds[type(value[0])]
    return tf.train.Feature(**{kind: lists[kind](value=value)})


def test_tfrecords_with_a_stated_spec(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
    with tf.io.TFRecordWriter(str(tmp_path / "mine.tfrecord")) as writer:
        for i, image in enumerate(images):
            parts = {
                "image": feature([tf.io.encode_png(image).numpy()]),
                "tokens": feature([*range(i + 1)]),
                "box": feature([0.5, 1.0, 1.5, float(i)]),
                "flag": feature([i % 2]),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=parts)).SerializeToString())
    stated = "image: png[6,4,3], tokens: int64[None], box: float32[2,2], flag: bool"
    source = open_data(f"{tmp_path}/mine.tfrecord(features='{stated}')", Places())
    assert source.sizes() == {"train": 5}
    found = source.examples(next(iter(source.elements("train").ordered().batch(5))))
    np.testing.assert_array_equal(found["image"], images)
    assert found["tokens"].to_list() == [[*range(i + 1)] for i in range(5)]
    np.testing.assert_array_equal(found["box"][3], [[0.5, 1.0], [1.5, 3.0]])
    assert found["flag"].numpy().tolist() == [False, True, False, True, False]
    said = refused(tmp_path / "mine.tfrecord")
    assert "Say it" in said and "tokens: int64" in said and "box: float32" in said
    assert "Did you mean int64" in refused(f"{tmp_path}/mine.tfrecord(features='flag: int46')")
    wrong = open_data(f"{tmp_path}/mine.tfrecord(features='box: float32[3]')", Places())
    with pytest.raises(UserError, match=r"split train, example 0, cannot be read: .*box"):
        load(Split(wrong, "train"))
    data = (tmp_path / "mine.tfrecord").read_bytes()
    (tmp_path / "mine.tfrecord").write_bytes(data[:-9])
    assert "ends within record 5" in refused(f"{tmp_path}/mine.tfrecord(features='flag: int64')")
