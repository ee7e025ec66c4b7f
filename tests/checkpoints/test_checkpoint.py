"""None"""

import hashlib
import json
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tests.support.checkpoints import content, names, state
from trainer.checkpoints import checkpoint, manifest


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    kinds = ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint32", "uint64"]
    arrays = {k: np.frombuffer(rng.bytes(96), dtype=k).reshape(2, -1) for k in kinds}
    arrays["bfloat16"] = np.frombuffer(rng.bytes(96), dtype=ml_dtypes.bfloat16)
    arrays["bool"] = np.array([True, False, True])
    arrays["scalar"] = np.float32(-0.0)
    arrays["special"] = np.array([np.nan, np.inf, -np.inf, 1e-45, -0.0], np.float32)
    arrays["empty"] = np.zeros((0, 3), np.float32)
    arrays["a name.with/dots..and .Sé"] = np.array([1], np.int64)
    written = {name: tf.Variable(a, dtype=a.dtype) for name, a in arrays.items()}
    path = checkpoint.save(tmp_path, 7, written, {})
    entry, notes = checkpoint.newest(tmp_path)
    assert (entry.path, entry.step, notes) == (path, 7, [])
    read = {name: tf.Variable(tf.zeros_like(v)) for name, v in written.items()}
    checkpoint.load(entry, read)
    for name, array in arrays.items():
        value = read[name].numpy()
        assert value.dtype == array.dtype and value.shape == array.shape
        assert value.tobytes() == array.tobytes(), name


def test_plain_tensorflow_reads_the_data(tmp_path):
    path = checkpoint.save(tmp_path, 1, state(5.0), {})
    read = state()
    tf.train.Checkpoint(v=read).read(str(path / "data")).assert_consumed()
    assert {n: v.numpy().tolist() for n, v in read.items()} == {
        n: v.numpy().tolist() for n, v in state(5.0).items()
    }


def test_manifest_names_variables_files_and_meta(tmp_path):
    meta = {"metrics": {"loss": math.nan, "best": -math.inf}, "plan": {"rows": [1, "a"]}}
    path = checkpoint.save(tmp_path / "a" / "checkpoints", 12, state(), meta)
    assert path.name == "step-000000012"
    assert names(path) == ["data.data-00000-of-00001", "data.index", "manifest.json"]
    assert names(path.parent) == ["step-000000012"]

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    body = json.loads((path / "manifest.json").read_text(), parse_constant=refuse)
    assert body["variables"]["step"] == {"shape": [], "dtype": "int64"}
    assert body["variables"]["model/dense.a/kernel"] == {"shape": [3, 2], "dtype": "float32"}
    for name, file in body["files"].items():
        data = (path / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert body["meta"]["metrics"] == {"loss": "NaN", "best": "-Infinity"}
    assert checkpoint.scan(path.parent)[0].meta["plan"] == {"rows": [1, "a"]}


def test_everything_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    events = []
    real_sync, real_rename = os.fsync, Path.rename
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), real_sync(fd)),
    )
    monkeypatch.setattr(Path, "rename", lambda self, to: (events.append("rename"), real_rename(self, to)))
    checkpoint.save(tmp_path, 3, state(), {})
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert {Path(e).name for e in before[:3]} == {
        "manifest.json",
        "data.index",
        "data.data-00000-of-00001",
    }
    assert Path(before[3]).name.startswith(".tmp-") and after == [str(tmp_path)]


def test_one_variable_under_two_names_is_an_error(tmp_path):
    variable = tf.Variable(1.0)
    with pytest.raises(ValueError, match="does not hold"):
        checkpoint.save(tmp_path, 1, {"a": variable, "b": variable}, {})
    assert names(tmp_path) == []


def test_mirrored_variables_are_saved_once_and_loaded_into_every_replica(tmp_path):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        variable = tf.Variable([1.0, 2.0])
        other = tf.Variable([0.0, 0.0])
    checkpoint.save(tmp_path, 1, {"model/w": variable}, {})
    entry, _ = checkpoint.newest(tmp_path)
    assert entry.variables == {"model/w": ((2,), "float32")}
    for replica in other.values:
        replica.assign([9.0, float(replica.device[-1])])
    checkpoint.load(entry, {"model/w": other})
    assert [v.numpy().tolist() for v in other.values] == [[1.0, 2.0]] * 2
    variable.assign([5.0, 5.0])
    with strategy.scope():
        checkpoint.load(entry, {"model/w": variable})
    assert [v.numpy().tolist() for v in variable.values] == [[1.0, 2.0]] * 2
    assert checkpoint.read(entry, ["model/w"])["model/w"].tolist() == [1.0, 2.0]
    single = tf.Variable([0.0, 0.0])
    checkpoint.load(entry, {"model/w": single})
    assert single.numpy().tolist() == [1.0, 2.0]


def test_the_same_step_again_keeps_what_is_there(tmp_path):
    first = checkpoint.save(tmp_path, 5, state(1.0), {"a": 1})
    before = content(tmp_path)
    assert checkpoint.save(tmp_path, 5, state(1.0), {"a": 1}) == first
    assert content(tmp_path) == before


@pytest.mark.parametrize("other", ["values", "meta"])
def test_other_content_of_the_same_step_stands_beside_it_and_is_newer(tmp_path, other):
    first = checkpoint.save(tmp_path, 5, state(1.0), {"a": 1})
    before = content(first)
    values, meta = (state(2.0), {"a": 1}) if other == "values" else (state(1.0), {"a": 2})
    second = checkpoint.save(tmp_path, 5, values, meta)
    assert second.name == "step-000000005-2" and content(first) == before
    assert checkpoint.newest(tmp_path)[0].path == second
    assert checkpoint.save(tmp_path, 5, state(3.0), meta).name == "step-000000005-3"
    assert manifest.at(tmp_path, 5).path.name == "step-000000005-3"


def test_a_damaged_one_of_the_same_step_is_set_aside(tmp_path):
    path = checkpoint.save(tmp_path, 5, state(1.0), {})
    data = path / "data.data-00000-of-00001"
    data.write_bytes(bytes(len(data.read_bytes())))
    assert checkpoint.save(tmp_path, 5, state(1.0), {}) == path
    assert names(tmp_path) == ["damaged-step-000000005", "step-000000005"]
    assert checkpoint.newest(tmp_path)[0].path == path
