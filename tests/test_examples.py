"""The flagfiles under examples/ run, and afterwards exactly the right variables moved, at the right rates."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import run
from trainer.checkpoints import checkpoint, manifest
from trainer.flags.command_line import parse
from trainer.run.build import build_model

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("conv1", "conv2", "dense1", "logits")


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # from where the README has them run


def arguments(name: str, tmp_path: Path, *more: str) -> list[str]:
    """The example on the bundled data, in a directory of its own; the last of two values wins."""
    own = (f"--workdir={tmp_path / 'run'}", f"--data_dir={tmp_path / 'data'}", "--dataset=digits")
    return ["run.py", f"--flagfile=examples/{name}.flags", *own, "--eval_split=none", *more]


def weights(tmp_path: Path) -> dict[int, dict[str, np.ndarray]]:
    """Model variables by the step of each checkpoint, by name."""
    values = {}
    for entry in manifest.scan(tmp_path / "run" / "checkpoints"):
        names = [n for n in entry.variables if n.startswith("model/")]
        read = checkpoint.read(entry, names)
        values[entry.step] = {n.removeprefix("model/"): v for n, v in read.items()}
    return values


def start(arguments: list[str]) -> dict[str, np.ndarray]:
    """The values that a run of these flags starts from."""
    values = {v.name: v.value.numpy() for v in build_model(parse(arguments)).variables}
    keras.backend.clear_session()
    return values


def rates(tmp_path: Path) -> dict[int, dict[str, float]]:
    """The learning rates logged, by step and group."""
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["learning_rate"] for line in lines if line["kind"] == "train"}


def moves(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, float]:
    """By variable, the farthest that any of its elements moved."""
    return {name: float(np.abs(after[name] - before[name]).max()) for name in before}


@pytest.mark.slow
@pytest.mark.usefixtures("in_root")
@pytest.mark.parametrize(("name", "first"), [("first_conv_frozen", 0.0), ("layer_rates", 1e-4)])
def test_the_two_cases_of_the_article(name: str, first: float, tmp_path: Path) -> None:
    line = arguments(name, tmp_path, "--train_for=20", "--save_every=1", "--log_every=1", "--keep=30")
    assert run.main(line) == 0
    saved, before = weights(tmp_path), start(line)
    # Adam's first step moves an element by the rate, whatever its gradient, but for epsilon.
    for variable, move in moves(before, saved[1]).items():
        rate = first if variable.startswith("conv1/") else 1e-3
        assert move == pytest.approx(rate, rel=5e-3), variable
    for variable in before:
        frozen = before[variable].tobytes() == saved[20][variable].tobytes()
        assert frozen == (first == 0 and variable.startswith("conv1/")), variable
    logged = rates(tmp_path)
    assert list(logged) == list(range(1, 21))
    for step, by_group in logged.items():
        expected = {"rest": 1e-3 * 0.96 ** ((step - 1) / 10_000), **({"first": first} if first else {})}
        assert by_group == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("in_root")
def test_gradual_unfreezing_opens_a_layer_an_epoch(tmp_path: Path) -> None:
    line = arguments("gradual_unfreezing", tmp_path, "--batch_size=360", "--keep=30", "--log_every=1")
    assert run.main(line) == 0
    saved = {0: start(line), **weights(tmp_path)}
    edges = sorted(saved)
    assert len(edges) == 5 and edges[4] == 4 * edges[1]
    for epoch in range(4):
        moved = moves(saved[edges[epoch]], saved[edges[epoch + 1]])
        open_now = LAYERS[3 - epoch :]
        assert {v.split("/")[0] for v, m in moved.items() if m > 0} == set(open_now), epoch
    # Every group's cosine starts when the group does, and all are near their end at the last step.
    logged = rates(tmp_path)
    for epoch, layer in enumerate(reversed(LAYERS)):
        peak = {"conv1": 2e-4, "conv2": 5e-4}.get(layer, 1e-3)
        assert layer not in logged[edges[epoch]] if epoch else True
        assert logged[edges[epoch] + 1][layer] == pytest.approx(peak, rel=1e-6)
        assert logged[edges[4]][layer] < 0.6 * peak
