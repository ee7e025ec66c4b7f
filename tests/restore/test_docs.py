"""The commands of docs/restore.md run, and print the lines that stand below them."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import run
from trainer.flags.config import Config
from trainer.model.names import walk
from trainer.readers import open_source
from trainer.restore.match import load, match
from trainer.restore.rules import parse
from trainer.run.build import build_model

PAGE = (Path(__file__).parents[2] / "docs" / "restore.md").read_text()
COMMANDS = re.findall(r"^    python (run\.py .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the page calls theirs, each for the small network."""
    at = tmp_path_factory.mktemp("theirs")
    model = build_model(Config(model="mnist_cnn")).model
    arrays = {v.name: v.value.numpy() + 1 for v in walk(model)}
    np.savez(at / "theirs.npz", **{f"net/{name}": array for name, array in arrays.items()})
    model.save_weights(at / "theirs.weights.h5")
    kernels = {"conv1": (32, 1, 3, 3), "conv2": (64, 32, 3, 3), "fc1": (64, 1600), "fc2": (10, 64)}
    rng = np.random.default_rng(0)
    state = {f"{name}.weight": rng.normal(size=shape).astype("f4") for name, shape in kernels.items()}
    state |= {f"{name}.bias": rng.normal(size=shape[0]).astype("f4") for name, shape in kernels.items()}
    save_file(state, at / "theirs.safetensors", metadata={"format": "pt"})
    keras.backend.clear_session()
    return at


def said(after):
    """The flags that stand in the first block of the page after some text."""
    lines = [line.strip() for line in PAGE[PAGE.index(after) :].splitlines()[1:]]
    start = next(k for k, line in enumerate(lines) if line.startswith("--init"))
    return lines[start : next(k for k, line in enumerate(lines) if k > start and not line)]


@pytest.mark.slow
def test_every_command_runs(files, monkeypatch, capsys):
    assert len(COMMANDS) == 4
    monkeypatch.chdir(files)
    for command in COMMANDS:
        assert run.main(command.split()) in (0, None), command
    out = capsys.readouterr().out
    for line in [*said("that is one line:"), *said("that is this, for a flagfile:")]:
        assert line in out.splitlines(), line
    assert "are restored, by position, as Keras does." in out
    assert (files / "theirs.flags").read_text().splitlines() == said("that is one line:")


def test_the_rules_of_the_page_restore_what_pytorch_computes(files):
    lines = said("that is this, for a flagfile:")
    rules = {name: [v.partition("=")[2] for v in lines if f"_{name}=" in v] for name in ("rename", "adapt")}
    model = build_model(Config(model="mnist_cnn")).model
    source = open_source(str(files / "theirs.safetensors"))
    arrays = load(match(walk(model), source, parse(**rules, layout="torch"), model))
    image = np.random.default_rng(1).normal(size=(2, 64, 5, 5)).astype("f4")
    weight = source.read("fc1.weight")
    last = np.moveaxis(image, 1, -1).reshape(2, -1)
    np.testing.assert_allclose(
        last @ arrays["dense1/kernel"], image.reshape(2, -1) @ weight.T, rtol=2e-3, atol=1e-3
    )
