"""Damaged or hostile files of weights are refused by name, and nothing in them is run."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tests.support import fuzz as damage
from trainer.errors import UserError
from trainer.readers import buffers, hdf5, npz, open_source


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


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("name", ["k.weights.h5", "k.h5", "k.keras"])
def test_fuzz_h5(files, tmp_path, monkeypatch, name):
    library = damage.Kept()
    monkeypatch.setattr(hdf5, "Child", lambda: library)
    monkeypatch.setattr(hdf5, "_SECONDS", 3)
    fuzz(files, tmp_path, name, 100)


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
    real = buffers.opened
    monkeypatch.setattr(buffers, "opened", lambda file, *a: read.append(file) or real(file, *a))
    source = open_source(str(files / "k.weights.h5"))
    assert not read
    source.read("head/bias")
    assert len(read) == 1
