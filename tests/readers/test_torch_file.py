"""PyTorch's files: every dtype and view as PyTorch has it, nothing executed, nothing believed."""

import json
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.support.fuzz import fuzz
from trainer.errors import UserError
from trainer.readers import open_source, torch_pickle

GOLDEN = Path(__file__).parents[1] / "restore" / "torch_golden"


def test_every_dtype_and_view():
    source, wanted = open_source(str(GOLDEN / "odd.pt")), np.load(GOLDEN / "odd.npz")
    assert source.kind == "PyTorch state dict" and source.torch
    assert set(source.specs) == set(wanted)
    for name, spec in source.specs.items():
        value = source.read(name)
        assert value.shape == spec.shape and value.flags.c_contiguous
        np.testing.assert_array_equal(value.astype(np.float64), wanted[name], err_msg=name)
    dtypes = {name: source.specs[name].dtype for name in source.specs}
    assert dtypes["half.weight"] == "float16" and source.read("brain.weight").dtype == ml_dtypes.bfloat16
    assert dtypes["eight.weight"] == "float8_e4m3fn" and dtypes["flag"] == "bool"


def test_a_training_checkpoint_is_its_weights():
    source = open_source(str(GOLDEN / "checkpoint.pt"))
    names = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert set(source.specs) == names
    assert "1.num_batches_tracked" in source.ignored
    assert any(name.startswith("optimizer.state.0") for name in source.ignored)


@pytest.mark.parametrize(
    "name, message",
    [
        ("whole_model.pt", r"names torch\.nn\.modules\.container\.Sequential.*whole model"),
        ("before_1_6.pth", r"bare pickle.*torch\.save"),
    ],
)
def test_other_files_of_pytorch_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        open_source(str(GOLDEN / name))


# Hostile


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code of the file was run",))


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_never_run(tmp_path, protocol):
    for value in (Bomb(), {"a": Bomb()}, [Bomb()]):
        archive(tmp_path / "b.pt", pickle.dumps(value, protocol))
        with pytest.raises(UserError, match=r"pickle (names|has the instruction|takes)"):
            open_source(str(tmp_path / "b.pt"))


def archive(path, pickled, storages=None, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as out:
        out.writestr("m/data.pkl", pickled, zipfile.ZIP_STORED)
        for key, data in (storages or {}).items():
            out.writestr(f"m/data/{key}", data)


def state(shape=(2, 3), stride=(3, 1), offset=0, size=6, key="0", name="w.weight"):
    """The pickle of a state dict with one float tensor, as PyTorch writes it."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value):
        return b"J" + struct.pack("<i", value)

    def row(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(size) + b"tQ"
    )
    arguments = (
        storage + number(offset) + row(shape) + row(stride) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
    return b"\x80\x02}(" + text(name) + tensor + b"u."


def test_the_hand_made_one_is_read(tmp_path):
    data = np.arange(6, dtype=np.float32)
    archive(tmp_path / "a.pt", state(), {"0": data.tobytes()})
    np.testing.assert_array_equal(open_source(str(tmp_path / "a.pt")).read("w.weight"), data.reshape(2, 3))


@pytest.mark.parametrize(
    "content, held, message",
    [
        ({"shape": (1 << 30, 1 << 30), "stride": (1 << 30, 1)}, 24, "announces"),
        ({"shape": (1 << 30, 1), "stride": (0, 1)}, 24, "announces"),
        ({"offset": 1}, 24, "announces"),
        ({"offset": -1}, 24, "no storage"),
        ({"shape": (-2, 3)}, 24, "has the shape"),
        ({"stride": (-3, 1)}, 24, "has the shape"),
        ({"stride": (3,)}, 24, "the strides"),
        ({"size": 7}, 24, "announces 7 numbers"),
        ({"size": -1}, 24, "numbers"),
        ({"key": "1"}, 24, "is not there"),
        ({"key": "../../data.pkl"}, 24, "is not there"),
        ({}, 20, "announces"),
    ],
)
def test_absurd_headers(tmp_path, content, held, message):
    archive(tmp_path / "a.pt", state(**content), {"0": bytes(held)})
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path / "a.pt"))


def test_a_zip_bomb(tmp_path):
    count = 1 << 26
    archive(
        tmp_path / "a.pt",
        state((count,), (1,), size=count),
        {"0": bytes(4 * count)},
        zipfile.ZIP_DEFLATED,
    )
    assert (tmp_path / "a.pt").stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(UserError, match="is compressed, which PyTorch never does"):
        open_source(str(tmp_path / "a.pt"))
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_overlapping_storages(tmp_path):
    """Two entries of the archive's list that name the same bytes."""
    two = state().removesuffix(b"u.") + state(key="1", name="v.weight").removeprefix(b"\x80\x02}(")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as out:
        out.writestr("m/data.pkl", two)
        out.writestr("m/data/0", bytes(24))
        out.writestr("m/data/1", bytes(24))
        out.filelist[-1].header_offset = out.filelist[-2].header_offset
    with pytest.raises(UserError, match=r"overlap|cannot be read"):
        open_source(str(tmp_path / "b.pt"))


def test_one_storage_of_two_tensors_is_no_fault(tmp_path):
    two = state().removesuffix(b"u.") + state(name="v.weight").removeprefix(b"\x80\x02}(")
    archive(tmp_path / "a.pt", two, {"0": np.arange(6, dtype=np.float32).tobytes()})
    source = open_source(str(tmp_path / "a.pt"))
    np.testing.assert_array_equal(source.read("w.weight"), source.read("v.weight"))


def test_dictionaries_without_end(tmp_path):
    # Each level holds the one below twice: 2 to the power of 60 leaves.
    bomb: dict = {"a": 1}
    for _ in range(30):
        bomb = {"a": bomb, "b": bomb}
    archive(tmp_path / "a.pt", pickle.dumps(bomb, 2))
    with pytest.raises(UserError, match="deeper or larger"):
        open_source(str(tmp_path / "a.pt"))
    circle: dict = {}
    circle["a"] = circle
    archive(tmp_path / "a.pt", pickle.dumps(circle, 2))
    with pytest.raises(UserError, match="deeper or larger"):
        open_source(str(tmp_path / "a.pt"))


def test_damaged_data_are_noticed(tmp_path):
    raw = bytearray((GOLDEN / "resnet18.pth").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "a.pt").write_bytes(raw)
    source = open_source(str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match="CRC"):
        for name in source.specs:
            source.read(name)


# Shards


@pytest.fixture
def shards(tmp_path):
    for file in GOLDEN.glob("bert*"):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / "bert.safetensors.index.json"


def test_shards_are_one_source(shards):
    source = open_source(str(shards))
    assert source.kind == "2 shards, each a safetensors file" and source.torch
    index = json.loads(shards.read_text())["weight_map"]
    assert set(source.specs) == set(index)
    one = open_source(str(shards.with_name(index["bert.pooler.dense.bias"])))
    np.testing.assert_array_equal(source.read("bert.pooler.dense.bias"), one.read("bert.pooler.dense.bias"))


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "a/b", "..", "", "a\\b", "\0"])
def test_a_shard_that_lies_elsewhere(shards, file):
    content = json.loads(shards.read_text())
    content["weight_map"]["bert.pooler.dense.bias"] = file
    shards.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not the name of a file beside it"):
        open_source(str(shards))


def test_indices_that_are_wrong(shards):
    content = json.loads(shards.read_text())
    file = next(iter(content["weight_map"].values()))
    for change, message in (
        ({"weight_map": content["weight_map"] | {"more": file}}, r"'more' should be in .*is not there"),
        ({"weight_map": content["weight_map"] | {"more": "no.safetensors"}}, "is not beside it"),
        ({"weight_map": {"a": shards.name}}, "is not beside it"),
        ({"weight_map": {}}, "no weight_map"),
        ({"else": 1}, "no weight_map"),
    ):
        shards.write_text(json.dumps(change))
        with pytest.raises(UserError, match=message):
            open_source(str(shards))
    shards.write_text('{"weight_map": ' * 100_000)
    with pytest.raises(UserError, match=r"cannot be read|no weight_map"):
        open_source(str(shards))
    copy = shards.with_name("copy.safetensors")
    shutil.copy(shards.with_name(file), copy)
    name = next(n for n, f in content["weight_map"].items() if f == file)
    shards.write_text(json.dumps({"weight_map": content["weight_map"] | {name: copy.name}}))
    with pytest.raises(UserError, match="is in two shards"):
        open_source(str(shards))


# Damage of every kind


@pytest.mark.parametrize("name", ["kinds.pt", "odd.pt", "checkpoint.pt", "bert"])
def test_fuzz(tmp_path, name):
    files = {file.name: file.read_bytes() for file in GOLDEN.iterdir() if file.name.startswith(name)}
    main = name if name.endswith(".pt") else "bert.safetensors.index.json"
    fuzz({n: c for n, c in files.items() if not n.endswith(".npz")}, main, tmp_path, 150)


def test_fuzz_of_the_pickle(tmp_path):
    """The bytes of the pickle alone, under a right checksum: every outcome but a crash is one."""
    with zipfile.ZipFile(GOLDEN / "odd.pt") as golden:
        (name,) = [n for n in golden.namelist() if n.endswith("data.pkl")]
        data = golden.read(name)
    rng = np.random.default_rng(3)
    outcomes = set()
    for _ in range(1500):
        spoilt = bytearray(data)
        for place in rng.integers(len(data), size=rng.integers(1, 5)):
            spoilt[place] = rng.choice([0, 255, spoilt[place] ^ (1 << rng.integers(8)), rng.integers(256)])
        try:
            torch_pickle.load(bytes(spoilt))
            outcomes.add("read")
        except (ValueError, TypeError):
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
