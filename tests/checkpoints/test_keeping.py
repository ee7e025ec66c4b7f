"""Which checkpoints are kept, which go, and in which order."""

import math
import os
from pathlib import Path

import pytest
import tensorflow as tf

from tests.support.checkpoints import flip, names, saved, state
from trainer.checkpoints import checkpoint, manifest
from trainer.errors import UserError
from trainer.flags.criteria import criterion


def tree(directory):
    return sorted(str(p.relative_to(directory)) for p in Path(directory).rglob("*"))


def test_all_differences_are_listed_before_anything_is_assigned(tmp_path):
    path = checkpoint.save(tmp_path, 1, state(1.0), {})
    entry = checkpoint.scan(tmp_path)[0]
    other = {
        "model/dense.a/kernel": tf.Variable(tf.zeros([2, 3])),
        "step": tf.Variable(0, dtype=tf.int32),
        "ema/x": tf.Variable(0.0),
    }
    differences = checkpoint.compare(entry, other)
    assert differences.missing == ["ema/x"]
    assert differences.extra == ["optimizer/dense.a/kernel/momentum"]
    assert differences.changed == {
        "model/dense.a/kernel": (((3, 2), "float32"), ((2, 3), "float32")),
        "step": (((), "int64"), ((), "int32")),
    }
    with pytest.raises(UserError) as error:
        checkpoint.load(entry, other)
    assert str(error.value).splitlines() == [
        f"The checkpoint {path} does not fit; nothing was loaded.",
        " + ema/x: not in the checkpoint",
        " - optimizer/dense.a/kernel/momentum: only in the checkpoint",
        " ~ model/dense.a/kernel: [3, 2] float32 in the checkpoint, [2, 3] float32 here",
        " ~ step: [] int64 in the checkpoint, [] int32 here",
    ]
    assert all(not v.numpy().any() for v in other.values())


def test_only_loads_the_named_ones_and_refuses_names_it_cannot(tmp_path):
    checkpoint.save(tmp_path, 1, state(1.0), {})
    entry = checkpoint.scan(tmp_path)[0]
    some = {**state(0.0), "new": tf.Variable(7.0), "step": tf.Variable(7, dtype=tf.int32)}
    checkpoint.load(entry, some, only={"model/dense.a/kernel"})
    assert some["model/dense.a/kernel"].numpy().tolist() == [[1.0, 1.0]] * 3
    assert (some["new"].numpy(), some["step"].numpy()) == (7.0, 7)
    assert some["optimizer/dense.a/kernel/momentum"].numpy().tolist() == [[1.0, 1.0]] * 3  # as it was
    for name in ("new", "step", "nowhere"):
        with pytest.raises(UserError, match=name):
            checkpoint.load(entry, some, only=[name])


def test_a_tensor_that_fails_its_crc_stops_the_load_before_it_begins(tmp_path):
    path = checkpoint.save(tmp_path, 1, state(1.0), {})
    entry = checkpoint.scan(tmp_path)[0]  # not checked
    data = path / "data.data-00000-of-00001"
    data.write_bytes(bytes(byte ^ 1 for byte in data.read_bytes()))
    read = state()
    with pytest.raises(UserError, match="nothing was loaded"):
        checkpoint.load(entry, read)
    assert not read["model/dense.a/kernel"].numpy().any()


def test_clean_removes_only_its_own_unfinished_directories(tmp_path):
    saved(tmp_path / "c", 1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data.index").write_text("precious")
    ours = tmp_path / "c" / ".tmp-step-000000002-0123abcd"
    (ours / "data_temp").mkdir(parents=True)
    part = "part-00000-of-00001"
    for name in (
        "manifest.json",
        "data.index",
        "data.data-00000-of-00001.tempstate123",
        f"data_temp/{part}.index",
        f"data_temp/{part}.data-00000-of-00001.tempstate9",
    ):
        (ours / name).write_text("x")
    theirs = tmp_path / "c" / ".tmp-step-000000003-0123abcd"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("x")
    (theirs / "data.index").symlink_to(outside / "data.index")
    (tmp_path / "c" / ".tmp-step-000000004-0123abcd").symlink_to(outside)
    (tmp_path / "c" / ".tmp-other").mkdir()
    notes = checkpoint.clean(tmp_path / "c")
    assert len(notes) == 2 and "000000003" in notes[0] and "000000004" in notes[1]
    assert not ours.exists() and names(theirs) == ["data.index", "notes.txt"]
    assert (outside / "data.index").read_text() == "precious"
    assert ".tmp-other" in names(tmp_path / "c") and "step-000000001" in names(tmp_path / "c")
    assert checkpoint.clean(tmp_path / "nowhere") == []


def test_prune_keeps_the_newest_and_the_protected(tmp_path):
    saved(tmp_path, 1, 2, 3, 4, 5, 6)
    os.unlink(tmp_path / "step-000000006" / "data.index")
    assert checkpoint.prune(tmp_path, 2, protect={1, 99}) == []
    assert names(tmp_path) == [f"step-{n:09d}" for n in (1, 4, 5, 6)]
    assert checkpoint.prune(tmp_path, 0) == []
    assert names(tmp_path) == ["step-000000005", "step-000000006"]


def test_prune_leaves_what_is_not_the_programs(tmp_path):
    saved(tmp_path / "c", 1, 2)
    precious = tmp_path / "precious"
    precious.write_text("x")
    old = tmp_path / "c" / "step-000000001"
    (old / "notes.txt").write_text("mine")
    (old / "link").symlink_to(precious)
    [note] = checkpoint.prune(tmp_path / "c", 1)
    assert "pruned-step-000000001" in note and "link, notes.txt" in note
    assert tree(tmp_path / "c" / "pruned-step-000000001") == ["link", "notes.txt"]
    assert precious.read_text() == "x"
    assert checkpoint.newest(tmp_path / "c")[0].step == 2


def test_best_is_found_in_the_manifests(tmp_path):
    values = {1: 0.5, 2: 0.9, 3: 0.9, 4: math.nan, 5: "high", 6: True, 7: math.inf}
    for step, value in values.items():
        checkpoint.save(tmp_path, step, state(), {"metrics": {"accuracy": value}})
    checkpoint.save(tmp_path, 8, state(), {"metrics": None})
    assert manifest.best(tmp_path, criterion("accuracy")).step == 3
    assert manifest.best(tmp_path, criterion("accuracy:min")).step == 1
    assert manifest.best(tmp_path, criterion("loss")) is None
    os.unlink(tmp_path / "step-000000003" / "data.index")
    assert manifest.best(tmp_path, criterion("accuracy")).step == 2


def test_a_step_that_is_not_there_is_named_with_those_that_are(tmp_path):
    saved(tmp_path, 1, 20)
    with pytest.raises(UserError, match=r"no checkpoint of step 3.*20, 1"):
        manifest.at(tmp_path, 3)
    flip(tmp_path / "step-000000020" / "data.data-00000-of-00001")
    with pytest.raises(UserError, match="damaged"):
        manifest.at(tmp_path, 20)
