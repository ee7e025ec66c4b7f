"""Fixtures of the tests in this folder."""

import gzip
import re
import struct
import textwrap

import pytest

import run
from tests.support.refusals import ALL, BASE
from tests.support.runs import last
from tests.support.whole_runs import BIASES, REST, main
from trainer.data.sources.tfds import TfdsSource
from trainer.data.streaming import Streaming


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path, data_dir):
    """A function of flags (those of `BASE` may be replaced, or left out by `None`) -> the message."""

    def read(*_args, **_kwargs):
        pytest.fail("examples were read, or a data set was prepared, before the refusal")

    monkeypatch.setattr("trainer.data.resident.load", read)
    monkeypatch.setattr("trainer.data.shards._records", read)
    monkeypatch.setattr(Streaming, "chunk", read)
    monkeypatch.setattr(TfdsSource, "prepare", lambda dataset: dataset.prepared or read())

    def call(*arguments, groups=(ALL,), **values):
        flags = {**BASE, "data_dir": data_dir, "workdir": tmp_path / "work", **values}
        given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        plain = all(argument.startswith("--") and "=" in argument for argument in arguments)
        given = last(*given, *groups, *arguments) if plain else [*given, *groups, *arguments]
        status = run.main(["run.py", *given])
        shown = capsys.readouterr()
        assert status == 1
        assert shown.err.startswith("run.py: ") and "Traceback" not in shown.err + shown.out
        assert shown.out == "" and not (tmp_path / "work").exists()
        return shown.err.removeprefix("run.py: ").strip()

    return call


@pytest.fixture
def module(monkeypatch, tmp_path):
    """A function of a model module's source -> the dotted path to name it by."""

    def write(source, head="import keras\nimport tensorflow as tf\nfrom models.mnist_mlp import loss\n"):
        package = re.sub(r"\W", "_", f"in_{tmp_path.parent.name}_{tmp_path.name}")
        (tmp_path / package).mkdir()
        (tmp_path / package / "net.py").write_text(head + textwrap.dedent(source))
        monkeypatch.syspath_prepend(tmp_path)
        return f"{package}.net"

    return write


@pytest.fixture
def digits(data_dir, tmp_path):
    """Flags of a run on digits, in a directory of its own."""
    return ["--dataset=digits", f"--data_dir={data_dir}", f"--workdir={tmp_path / 'work'}"]


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """(flags, workdir, standard output) of one run of two groups over two epochs."""
    workdir = tmp_path_factory.mktemp("run") / "work"
    flags = ["--model=mnist_mlp(hidden=16)", "--dataset=digits", f"--data_dir={data_dir}", "--log_every=5"]
    flags += ["--train_for=2epochs", "--seed=3", BIASES, REST, f"--workdir={workdir}"]
    status, out, err = main(*flags)
    assert (status, err) == (0, "")
    return flags, workdir, out


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(
        "trainer.data.sources.tfds._unreachable", lambda url: f"{url} cannot be reached (no network)"
    )


@pytest.fixture
def no_reading(monkeypatch):
    def read(*_args, **_kwargs):
        pytest.fail("--mode=plan read or prepared data")

    monkeypatch.setattr("trainer.data.resident.load", read)
    monkeypatch.setattr("trainer.data.shards._records", read)
    monkeypatch.setattr(TfdsSource, "prepare", read)


@pytest.fixture
def headers(tmp_path):
    """Files named like MNIST's that say 6,000 and 1,000 examples and have none."""
    folder = tmp_path / "originals"
    folder.mkdir()
    for prefix, count in (("train", 6000), ("t10k", 1000)):
        for kind in ("labels-idx1", "images-idx3"):
            with gzip.open(folder / f"{prefix}-{kind}-ubyte.gz", "w") as file:
                file.write(struct.pack(">ii", 2049, count))
    return folder
