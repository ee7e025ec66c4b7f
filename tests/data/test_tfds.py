"""Data sets of tensorflow-datasets: found, prepared, split and read."""

import gzip
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests

from trainer.data.records import load
from trainer.data.source import Split
from trainer.data.sources.tfds import open_dataset
from trainer.data.sources.tfds_builders import find_builder
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


MNIST = ROOT.parent / "shared/data/mnist"


def test_digits(digits):
    assert (Split(digits, "train").size(), Split(digits, "test").size()) == (1437, 360)
    assert Split(digits, "train[:50%]").size() in (718, 719)
    arrays = load(Split(digits, "train+test"))
    assert arrays["image"].shape == (1797, 28, 28, 1) and arrays["image"].dtype == np.uint8
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # of the published set
    assert np.bincount(arrays["label"]).tolist() == counts
    ink = arrays["image"][..., 0].astype(float)
    for axis in (1, 2):  # centred by mass, as MNIST is, where the edge allows it
        middle = (ink.sum(3 - axis) @ np.arange(28)) / ink.sum((1, 2))
        assert np.abs(middle - 13.5).max() < 1.6


def test_digits_are_enlarged_exactly():
    found = find_builder("digits", "", "--dataset")
    enlarge = sys.modules[type(found).__module__].enlarge
    flat = enlarge(np.full((8, 8), 16, np.uint8))[..., 0]
    assert flat.sum() == 255 * 400 and (flat[4:24, 4:24] == 255).all()
    scan = np.zeros((8, 8), np.uint8)
    scan[3, 4] = 16
    # Bilinear by hand: pixel i of 20 lies at (i + 0.5) / 2.5 - 0.5 of 8.
    weight = [np.maximum(0, 1 - np.abs((np.arange(20) + 0.5) / 2.5 - 0.5 - k)) for k in (3, 4)]
    expected = np.floor(np.outer(*weight) * 255 + 0.5 + 1e-9)
    got = enlarge(scan)[..., 0]
    rows, columns = np.nonzero(got)
    corner = got[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    r, c = np.nonzero(expected)
    np.testing.assert_array_equal(corner, expected[r.min() : r.max() + 1, c.min() : c.max() + 1])


def test_unknown_names(tmp_path):
    def message(*args, **kwargs):
        with pytest.raises(UserError) as error:
            open_dataset(*args, **kwargs)
        return str(error.value)

    where = str(tmp_path)
    assert "--dataset=mnits: no such data set. Did you mean mnist" in message("mnits", where)
    assert "Did you mean digits" in message("digit", where)
    assert "only: 1.0.0" in message("digits:7.0.0", where)
    assert "foo not found" in message("mnist/foo", where)
    assert "--fallback_dataset=nope" in message("digits", where, fallback="nope")
    assert "--manual_dir=/no/such" in message("digits", where, "/no/such")
    assert "--dataset=" in message("", where)


def test_bad_splits(digits):
    there = r"There is: (test \(360\), train \(1437\)|train \(1437\), test \(360\))"
    for split in ("tset", "train[:x]", ""):
        with pytest.raises(UserError, match="not a split of digits. " + there):
            Split(digits, split).size()
    with pytest.raises(UserError, match=r"--eval_split=test.5:5.: has no examples"):
        Split(digits, "test[5:5]", None, "--eval_split").size()


def test_dotted_path(tmp_path, monkeypatch):
    source = """
        import tensorflow as tf
        import tensorflow_datasets as tfds
        class Mine(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("2.0.0")
            def _info(self):
                kind = tfds.features.Scalar(tf.int64)
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"x": kind}))
            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}
            def _generate_examples(self):
                for i in range(3):
                    yield i, {"x": i}
    """
    (tmp_path / "their_data").mkdir()
    lines = [line[8:] for line in source.splitlines()]
    (tmp_path / "their_data/__init__.py").write_text("")
    (tmp_path / "their_data/numbers.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("their_data.numbers", "their_data.numbers.Mine", "their_data.numbers:2.0.0"):
        dataset = open_dataset(path, str(tmp_path / "out"))
        dataset.prepare()
        assert dataset.full_name == "mine/2.0.0" and Split(dataset, "train").size() == 3
    for path in ("their_data.letters", "their_data.numbers.Yours", "nowhere.at_all"):
        with pytest.raises(UserError, match=f"--dataset={path}: not a TFDS builder"):
            open_dataset(path, str(tmp_path / "out"))


class Answer:
    """What `requests.get` gives back."""

    def __init__(self, status_code):
        self.status_code, self.ok = status_code, status_code < 400

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def network(monkeypatch, result):
    def get(url, **options):
        if isinstance(result, Exception):
            raise result
        if callable(result):
            return result()
        return Answer(result)

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr("trainer.data.sources.tfds.PATIENCE", 0.3)


@pytest.mark.parametrize(
    "failure, reason",
    [
        (requests.ConnectionError("no route"), r"cannot be reached \(no route\)"),
        (503, "answers HTTP 503"),
        (lambda: time.sleep(2) or Answer(200), "does not answer"),
    ],
)
def test_mnist_that_cannot_be_had(tmp_path, monkeypatch, failure, reason):
    network(monkeypatch, failure)
    where = str(tmp_path / "data")
    with pytest.raises(UserError, match=reason) as error:
        open_dataset("mnist", where)
    text = str(error.value)
    assert "--manual_dir" in text and "--fallback_dataset=digits" in text
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(UserError, match=f"--manual_dir={tmp_path} lacks t10k-images"):
        open_dataset("mnist", where, str(tmp_path))
    stand_in = open_dataset("mnist", where, fallback="digits")
    assert stand_in.full_name == "digits/1.0.0" and stand_in.name == "digits"
    said = " ".join(stand_in.notes)
    assert "mnist could not be had" in said and "ANOTHER data set" in said
    assert "1,797 scanned" in said and "train-images-idx3-ubyte.gz" in said


@pytest.mark.parametrize("answer", [200, requests.ReadTimeout()])
def test_a_server_that_answers_is_used(tmp_path, monkeypatch, answer):
    network(monkeypatch, answer)
    dataset = open_dataset("mnist", str(tmp_path), fallback="digits")
    assert dataset.name == "mnist" and not dataset.notes and Split(dataset, "train").size() is None


def test_data_by_hand(tmp_path):
    with pytest.raises(UserError, match=r"fetched by hand.*--manual_dir is not given.*ILSVRC2012"):
        open_dataset("imagenet2012", str(tmp_path))


def test_prepared_data_need_no_network(digits, monkeypatch, tmp_path):
    network(monkeypatch, requests.ConnectionError())
    where = str(digits.builder.data_dir_root)
    again = open_dataset("digits", where, str(tmp_path))
    assert again.prepared and Split(again, "test").size() == 360
    assert f"--manual_dir={tmp_path} is not read" in again.notes[0]


def test_header_of_original_files(tmp_path, monkeypatch):
    network(monkeypatch, 200)
    for prefix, count in (("train", 120), ("t10k", 30)):
        with gzip.open(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(b"\0\0\x08\x01" + count.to_bytes(4, "big"))
    dataset = open_dataset("mnist", str(tmp_path / "out"), str(tmp_path))
    assert Split(dataset, "train").size() == 120 and Split(dataset, "test[:50%]").size() == 15
    with pytest.raises(UserError, match=r"There is: train \(120\), test \(30\)"):
        Split(dataset, "validation").size()


def test_damaged_original_files(tmp_path, monkeypatch):
    network(monkeypatch, requests.ConnectionError())
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(b"not MNIST"))
    dataset = open_dataset("mnist", str(tmp_path / "out"), str(tmp_path), fallback="digits")
    with pytest.raises(UserError, match=r"not the original one.*-ubyte\.gz"):
        dataset.prepare()
    assert not dataset.prepared


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason="the original MNIST files are not beside this tree")
def test_mnist_from_original_files(tmp_path, monkeypatch, capfd):
    network(monkeypatch, requests.ConnectionError())
    dataset = open_dataset("mnist", str(tmp_path), str(MNIST))
    assert (Split(dataset, "train").size(), Split(dataset, "test").size()) == (60000, 10000)
    random.seed(1)
    state = random.getstate()
    dataset.prepare()
    assert random.getstate() == state  # the model's start values do not depend on it
    said = "".join(capfd.readouterr())
    assert "\x1b" not in said and "\r" not in said
    arrays = load(Split(dataset, "test"))
    with gzip.open(MNIST / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read()[8:], np.uint8)
    assert np.bincount(arrays["label"]).tolist() == np.bincount(labels).tolist()
    with gzip.open(MNIST / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read()[16:], np.uint8)
    assert arrays["image"].sum(dtype=np.int64) == images.sum(dtype=np.int64)


def test_nothing_half_prepared_is_used(tmp_path, monkeypatch):
    dataset = open_dataset("digits", str(tmp_path))
    module = sys.modules[type(dataset.builder).__module__]
    calls = []

    def enlarge(scan):
        calls.append(scan)
        if len(calls) == 1500:
            raise OSError("No space left on device")
        return np.zeros((28, 28, 1), np.uint8)

    monkeypatch.setattr(module, "enlarge", enlarge)
    with pytest.raises(UserError, match=r"could not be prepared in .*No space left"):
        dataset.prepare()
    assert not dataset.prepared and not list(tmp_path.rglob("*.tfrecord*"))
    # What a killed process leaves behind.
    left = tmp_path / "digits/incomplete.ABCDEF_1.0.0"
    left.mkdir(parents=True)
    (left / "digits-train.tfrecord-00000-of-00001").write_bytes(b"half")
    monkeypatch.undo()
    again = open_dataset("digits", str(tmp_path))
    assert not again.prepared
    again.prepare()
    assert again.prepared and len(load(Split(again, "train"))["label"]) == 1437


@pytest.mark.slow
def test_two_processes_prepare_at_once(tmp_path):
    code = (
        "import random, sys; from trainer.data.source import Split;"
        "from trainer.data.sources.tfds import open_dataset; random.seed(0);"
        f"d = open_dataset('digits', {str(tmp_path)!r}); d.prepare();"
        "print(Split(d, 'train').size(), Split(d, 'test').size())"
    )
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    for process in running:
        said, errors = process.communicate(timeout=120)
        assert said.split() == ["1437", "360"], errors
    assert len(load(Split(open_dataset("digits", str(tmp_path)), "test"))["label"])
    assert not list(tmp_path.rglob("incomplete*"))
