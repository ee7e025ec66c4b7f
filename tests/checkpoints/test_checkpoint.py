import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from trainer.checkpoints import checkpoint, manifest
from trainer.checkpoints.lock import Lock
from trainer.errors import UserError
from trainer.flags.criteria import criterion

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden" / "v1"


def state(value=0.0, size=3):
    return {
        "model/dense.a/kernel": tf.Variable(tf.fill([size, 2], tf.constant(value, tf.float32))),
        "optimizer/dense.a/kernel/momentum": tf.Variable(tf.fill([size, 2], value + 1)),
        "step": tf.Variable(int(value), dtype=tf.int64),
    }


def saved(directory, *steps, **meta):
    for step in steps:
        checkpoint.save(directory, step, state(float(step)), {"plan": "p", **meta})
    return directory


def names(directory):
    return sorted(os.listdir(directory))


def tree(directory):
    return sorted(str(p.relative_to(directory)) for p in Path(directory).rglob("*"))


def content(directory):
    return {
        str(p.relative_to(directory)): (p.read_bytes(), p.stat().st_ino)
        for p in Path(directory).rglob("*")
        if p.is_file()
    }


def reseal(path, change):
    """Rewrites a manifest with `change` made to it and a right checksum: what an attacker does."""
    body = json.loads((path / "manifest.json").read_text())
    del body["sha256"]
    change(body)
    plain = json.dumps(body, sort_keys=True, separators=(",", ":"))
    body["sha256"] = hashlib.sha256(plain.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(body))


@contextlib.contextmanager
def mounted(path, options):
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("mounting a tmpfs needs root and the right to mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


# What is written


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


# Nothing is overwritten


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


# Damage


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def directory_instead(path):
    path.unlink()
    path.mkdir()


def pipe_instead(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = [flip, cut, empty, os.unlink, link, directory_instead, pipe_instead]


@pytest.mark.parametrize("name", ["manifest.json", "data.index", "data.data-00000-of-00001"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_set_aside_and_the_one_before_used(tmp_path, damage, name):
    saved(tmp_path, 1, 2, 3)
    damage(tmp_path / "step-000000003" / name)
    passive, told = checkpoint.newest(tmp_path, set_aside=False)
    assert passive.step == 2 and len(told) == 1
    assert names(tmp_path) == ["step-000000001", "step-000000002", "step-000000003"]
    entry, notes = checkpoint.newest(tmp_path)
    assert entry.step == 2 and len(notes) == 1
    assert "step-000000003 is damaged" in notes[0] and "damaged-step-000000003" in notes[0]
    assert names(tmp_path) == ["damaged-step-000000003", "step-000000001", "step-000000002"]
    read = state()
    checkpoint.load(entry, read)
    assert read["step"].numpy() == 2
    assert checkpoint.newest(tmp_path) == (entry, [])


@pytest.mark.parametrize("damage", DAMAGE)
def test_all_damaged_is_an_error_now_and_ever_after(tmp_path, damage):
    saved(tmp_path, 1, 2)
    for path in list(tmp_path.iterdir()):
        damage(path / "data.index")
    for _ in range(2):
        with pytest.raises(UserError, match=r"No checkpoint .* whole.*step-000000002.*--workdir"):
            checkpoint.newest(tmp_path)
    (tmp_path / "step-000000001").rename(tmp_path / "damaged-step-000000001")
    shutil.rmtree(tmp_path / "step-000000002")
    with pytest.raises(UserError, match="No checkpoint"):
        checkpoint.newest(tmp_path)


def test_every_single_bit_flip_is_seen(tmp_path):
    saved(tmp_path, 1)
    path = tmp_path / "step-000000001"
    original = {p: p.read_bytes() for p in path.iterdir()}
    entry = checkpoint.scan(tmp_path)[0]
    rng = random.Random(0)
    for file, data in original.items():
        for _ in range(60):
            place, bit = rng.randrange(len(data)), rng.randrange(8)
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            found = checkpoint.check(checkpoint.scan(tmp_path)[0])
            # In the manifest a flip in white space is no flip in what it says.
            assert found.damage or (found == entry and file.name == "manifest.json"), (file, place)
        file.write_bytes(data)


def test_none_at_all_is_none(tmp_path):
    assert checkpoint.newest(tmp_path / "no") == (None, [])
    (tmp_path / "step-1").mkdir()
    (tmp_path / ".tmp-step-000000003-00000000").mkdir()
    (tmp_path / "checkpoint").write_text("model_checkpoint_path: '/etc/passwd'")
    assert checkpoint.newest(tmp_path) == (None, [])


def test_a_step_that_is_a_link_or_a_file_is_damaged(tmp_path):
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step-000000001", tmp_path / "other")
    (tmp_path / "step-000000002").symlink_to(tmp_path / "other")
    (tmp_path / "step-000000003").write_text("x")
    shutil.copytree(tmp_path / "step-000000001", tmp_path / "step-000000004")  # says it is step 1
    (tmp_path / "step-000000005").mkdir()
    entry, notes = checkpoint.newest(tmp_path)
    assert entry.step == 1 and len(notes) == 4
    assert len(names(tmp_path / "other")) == 3


def set_file(name, value):
    return lambda body: body["files"].update({name: value})


def set_variable(**value):
    return lambda body: body["variables"].update({"step": value})


HOSTILE = {
    "path": set_file("../../secret", {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}),
    "absolute": set_file("/etc/passwd", {"bytes": 1, "sha256": ""}),
    "size": set_file("data.index", {"bytes": 10**30, "sha256": ""}),
    "negative": set_file("data.index", {"bytes": -1, "sha256": ""}),
    "shape": set_variable(shape=[10**12, 10**12], dtype="float32"),
    "huge": set_variable(shape=[10**400], dtype="float32"),
    "text": set_variable(shape="3", dtype="float32"),
    "true": set_variable(shape=[True], dtype="float32"),
    "dtype": set_variable(shape=[], dtype="float33"),
    "nothing": lambda body: body.update(variables=[]),
    "files": lambda body: body.update(files={}),
    "meta": lambda body: body.update(meta=3),
    "step": lambda body: body.update(step=True),
    "format": lambda body: body.update(format="1"),
    "older": lambda body: body.update(format=0),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_damaged_and_not_followed(tmp_path, change):
    saved(tmp_path / "c", 1, 2)
    (tmp_path / "secret").write_bytes(b"secret")
    reseal(tmp_path / "c" / "step-000000002", change)
    entry, notes = checkpoint.newest(tmp_path / "c")
    assert entry.step == 1 and len(notes) == 1
    assert (tmp_path / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100000, '{"format": NaN}', "\0\xff"])
def test_a_manifest_that_is_no_json_object_is_damaged(tmp_path, text):
    saved(tmp_path, 1, 2)
    (tmp_path / "step-000000002" / "manifest.json").write_bytes(text.encode("latin1"))
    entry, notes = checkpoint.newest(tmp_path)
    assert entry.step == 1 and "step-000000002" in notes[0]


def test_an_endless_manifest_is_not_read(tmp_path):
    saved(tmp_path, 1, 2)
    os.truncate(tmp_path / "step-000000002" / "manifest.json", 1 << 40)
    assert "long" in checkpoint.scan(tmp_path)[0].damage


def test_a_manifest_that_lies_about_a_variable_loads_nothing(tmp_path):
    path = checkpoint.save(tmp_path, 1, state(1.0), {})
    reseal(path, set_variable(shape=[2], dtype="float32"))
    read = {**state(), "step": tf.Variable([0.0, 0.0])}
    entry, _ = checkpoint.newest(tmp_path)
    with pytest.raises(UserError, match="step"):
        checkpoint.load(entry, read)
    assert not read["model/dense.a/kernel"].numpy().any()


def test_a_data_file_the_manifest_does_not_name_is_damage(tmp_path):
    path = checkpoint.save(tmp_path, 1, state(1.0), {})
    (path / "data.data-00001-of-00002").symlink_to("/etc/passwd")
    assert "data-00001-of-00002" in checkpoint.scan(tmp_path)[0].damage


def test_a_later_format_is_refused_and_left_alone(tmp_path):
    saved(tmp_path, 1, 2)
    reseal(tmp_path / "step-000000002", lambda body: body.update(format=2, files="other"))
    before = content(tmp_path)
    for use in (
        lambda: checkpoint.newest(tmp_path),
        lambda: manifest.at(tmp_path, 2),
        lambda: checkpoint.save(tmp_path, 2, state(), {}),
        lambda: checkpoint.load(checkpoint.scan(tmp_path)[0], state()),
    ):
        with pytest.raises(UserError, match=r"later version.*format 2.*reads up to 1"):
            use()
    assert content(tmp_path) == before


# Loading


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


# Keeping house


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


# Disks


def test_a_full_disk_is_an_error_and_leaves_no_litter(tmp_path):
    with mounted(tmp_path / "small", "size=300k") as disk:
        checkpoint.save(disk / "checkpoints", 1, state(1.0), {})
        before = content(disk)
        with pytest.raises(UserError, match=r"step 2 could not be saved in .*No space left") as e:
            checkpoint.save(disk / "checkpoints", 2, state(2.0, size=100_000), {})
        assert "Free some space" in str(e.value) and "function_node" not in str(e.value)
        assert content(disk) == before and names(disk / "checkpoints") == ["step-000000001"]
        assert checkpoint.newest(disk / "checkpoints")[0].step == 1
        with pytest.raises(UserError, match="could not be saved"):  # the manifest does not fit
            checkpoint.save(disk / "checkpoints", 2, state(2.0), {"meta": "x" * 400_000})
        assert content(disk) == before and names(disk / "checkpoints") == ["step-000000001"]


def test_a_read_only_directory_is_an_error(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        saved(disk, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UserError, match=r"step 2 could not be saved.*Read-only"):
            checkpoint.save(disk, 2, state(), {})
        assert checkpoint.newest(disk)[0].step == 1 and names(disk) == ["step-000000001"]
        with Lock(disk):  # nothing is written by it; the first save will tell
            pass
        with pytest.raises(UserError, match=r"cannot be used.*Read-only"), Lock(disk / "run"):
            pass


@pytest.mark.parametrize("where", ["mkdir", "fsync", "rename"])
def test_a_failing_system_call_is_an_error_and_leaves_no_litter(tmp_path, monkeypatch, where):
    saved(tmp_path, 1)
    before = content(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(os if where == "fsync" else Path, where, fail)
        with pytest.raises(UserError, match="No space left"):
            checkpoint.save(tmp_path, 2, state(), {})
    assert content(tmp_path) == before and names(tmp_path) == ["step-000000001"]


def test_a_file_where_the_directory_should_be(tmp_path):
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(UserError, match="cannot be listed"):
        checkpoint.newest(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="could not be saved"):
        checkpoint.save(tmp_path / "checkpoints", 1, state(), {})


# Killed in the middle of saves

SAVER = """
import os, sys
from pathlib import Path
import tensorflow as tf
from trainer.checkpoints import checkpoint
from trainer.checkpoints.lock import Lock
work = Path(sys.argv[1])
with Lock(work):
    print("clean", *checkpoint.clean(work / "checkpoints"), flush=True)
    state = {"a/w": tf.Variable(tf.zeros([200, 200])), "step": tf.Variable(0, dtype=tf.int64)}
    entry, notes = checkpoint.newest(work / "checkpoints")
    assert not notes, notes
    if entry:
        checkpoint.load(entry, state)
    print("start", entry.step if entry else 0, [n for n in os.listdir(work / "checkpoints")
          if n.startswith(".")] if entry else [], flush=True)
    step = entry.step if entry else 0
    while True:
        step += 1
        state["a/w"].assign(tf.fill([200, 200], float(step)))
        state["step"].assign(step)
        checkpoint.save(work / "checkpoints", step, state, {"step": step})
        print("saved", step, flush=True)
        checkpoint.prune(work / "checkpoints", 2)
"""


def test_killed_at_any_moment_nothing_is_lost(tmp_path):
    rng = random.Random(1)
    last = 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        line = child.stdout.readline()
        assert line == "clean\n", line + child.stderr.read()
        line = child.stdout.readline()
        assert line.startswith("start"), line + child.stderr.read()
        start = int(line.split()[1])
        assert start >= last and line.split(maxsplit=2)[2] == "[]\n", line
        assert child.stdout.readline() == f"saved {start + 1}\n"
        time.sleep(rng.uniform(0.0, 0.1))
        child.send_signal(signal.SIGKILL)
        lines = child.communicate()[0].splitlines()
        last = int(lines[-1].split()[1]) if lines and lines[-1].startswith("saved ") else start + 1
        entry, notes = checkpoint.newest(tmp_path / "checkpoints", set_aside=False)
        assert entry.step >= last and notes == []
        read = {"a/w": tf.Variable(tf.zeros([200, 200])), "step": tf.Variable(0, dtype=tf.int64)}
        checkpoint.load(entry, read)
        assert read["step"].numpy() == entry.step == read["a/w"].numpy().max()
        assert read["a/w"].numpy().min() == entry.step


# The lock


def test_a_second_process_is_refused_and_told_which_holds_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from trainer.checkpoints.lock import Lock\n"
        "with Lock(Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as child:
        assert child.stdout.readline() == "held\n"
        os.unlink(tmp_path / ".lock")  # removing the file does not let a second one in
        for text in ("another training process\\.", f"process \\(process {child.pid}\\)"):
            with pytest.raises(UserError, match=text), Lock(tmp_path):
                pass
            (tmp_path / ".lock").write_text(f"{child.pid}\n")
        child.send_signal(signal.SIGKILL)
        child.wait()
        with Lock(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_given_back(tmp_path):
    for _ in range(2):
        with (
            Lock(tmp_path / "new"),
            pytest.raises(UserError, match="in use"),
            Lock(tmp_path / "new"),
        ):
            pass


def test_a_hostile_lock_file_is_harmless(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for i, make in enumerate(
        [
            lambda path: path.mkdir(),
            lambda path: path.symlink_to(precious),
            lambda path: path.hardlink_to(precious),
            os.mkfifo,
            lambda path: path.write_bytes(b"\xff" * 100),
            lambda path: path.write_text("999999999"),
        ]
    ):
        work = tmp_path / str(i)
        work.mkdir()
        make(work / ".lock")
        with Lock(work), pytest.raises(UserError, match="in use"), Lock(work):
            pass
        with Lock(work):
            pass
    assert precious.read_text() == "precious" and stat.S_ISDIR((tmp_path / "0/.lock").stat().st_mode)


# A checkpoint of every version, restored for ever after


def golden_state():
    """What golden/v1 holds; to make it, once a version: `python tests/checkpoints/test_checkpoint.py`."""
    ramp = np.arange(18, dtype=np.float64) / 7 - 1  # no random numbers: NumPy may change those
    return {
        "model/conv1/kernel": tf.Variable(ramp.astype(np.float32).reshape(3, 3, 1, 2)),
        "model/bn/moving_mean": tf.Variable(np.array([1 / 3, -0.0])),
        "optimizer/conv1/kernel/momentum": tf.Variable(ramp.astype(np.float16)),
        "ema/conv1/kernel": tf.Variable(ramp.astype(ml_dtypes.bfloat16)),
        "model/dropout/seed_generator_state": tf.Variable(np.array([7, 4294967295], np.uint32)),
        "finite": tf.Variable(np.array([True, False])),
        "step": tf.Variable(1234567890123, dtype=tf.int64),
    }


def test_the_golden_checkpoint_of_version_1_is_restored():
    entry, notes = checkpoint.newest(GOLDEN, set_aside=False)
    assert notes == [] and entry.step == 1234 and entry.meta == {"plan": {"rows": ["ä"]}}
    read = {name: tf.Variable(tf.zeros_like(v)) for name, v in golden_state().items()}
    checkpoint.load(entry, read)
    for name, variable in golden_state().items():
        assert read[name].numpy().tobytes() == variable.numpy().tobytes(), name


def test_the_format_has_a_golden_checkpoint():
    assert (GOLDEN.parent / f"v{manifest.FORMAT}").is_dir()


if __name__ == "__main__":
    place = GOLDEN.parent / f"v{manifest.FORMAT}"
    print(checkpoint.save(place, 1234, golden_state(), {"plan": {"rows": ["ä"]}}))
