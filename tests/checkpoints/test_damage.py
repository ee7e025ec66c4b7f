"""A damaged checkpoint is seen, named and passed over for the newest whole one."""

import hashlib
import json
import os
import random
import shutil

import pytest
import tensorflow as tf

from tests.support.checkpoints import content, flip, names, saved, state
from trainer.checkpoints import checkpoint, manifest
from trainer.errors import UserError


def reseal(path, change):
    """Rewrites a manifest with `change` made to it and a right checksum: what an attacker does."""
    body = json.loads((path / "manifest.json").read_text())
    del body["sha256"]
    change(body)
    plain = json.dumps(body, sort_keys=True, separators=(",", ":"))
    body["sha256"] = hashlib.sha256(plain.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(body))


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
    passive, notes = checkpoint.newest(tmp_path, set_aside=False)
    assert passive.step == 2 and len(notes) == 1
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
