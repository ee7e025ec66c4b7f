"""`--init_from` in a run: the trunk restored, the rest untouched, the receipt, on one and two replicas."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import run
from tests.support.runs import last, two_replicas
from trainer.checkpoints import checkpoint, manifest

RULES = ["--group=conv.* sgd 0.1 name=trunk from=2", "--group=.* sgd(momentum=0.9) 0.1 name=head"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("initialise")


def flags(place: Path, workdir: str, *more: str) -> list[str]:
    return [
        "run.py",
        *last(
            "--model=mnist_cnn(filters=4)",
            "--dataset=digits",
            f"--data_dir={place / 'data'}",
            f"--workdir={place / workdir}",
            "--batch_size=8",
            "--train_for=2",
            "--eval_split=none",
            *more,
        ),
    ]


def weights(place: Path, workdir: str) -> dict[str, np.ndarray]:
    entry = manifest.scan(place / workdir / "checkpoints")[0]
    names = [name for name in entry.variables if name.startswith("model/")]
    return {n.removeprefix("model/"): v for n, v in checkpoint.read(entry, names).items()}


@pytest.fixture(scope="module")
def source(place: Path) -> dict[str, np.ndarray]:
    assert run.main(flags(place, "source", "--group=.* sgd 0.1", "--seed=1")) == 0
    return weights(place, "source")


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_trunk_is_restored_and_frozen_and_the_head_trains_from_its_own_start(
    place: Path, source: dict[str, np.ndarray], replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = f"tuned{replicas}"
    if replicas == 2:
        two_replicas(monkeypatch)
    init = [f"--init_from={place / 'source'}", "--init_only=conv.*"]
    steps = ["--train_for=4", "--save_every=2", *RULES]
    assert run.main(flags(place, workdir, *init, *steps)) == 0
    receipt = {r["name"]: r for r in json.loads((place / workdir / "restore.json").read_text())["variables"]}
    assert {n for n, r in receipt.items() if r["restored"]} == {n for n in source if n.startswith("conv")}
    assert all(r["replicas"] == replicas for r in receipt.values() if r["restored"])
    assert all(r["before"] == r["after"] for r in receipt.values() if not r["restored"])
    first, last = (
        checkpoint.read(e, [f"model/{n}" for n in source])
        for e in reversed(manifest.scan(place / workdir / "checkpoints"))
    )
    for name, value in source.items():
        same = np.array_equal(first[f"model/{name}"], value)
        assert same == name.startswith("conv"), name  # frozen up to step 2, to the bit
        assert not np.array_equal(last[f"model/{name}"], first[f"model/{name}"]), name
    plan = json.loads((place / workdir / "plan.json").read_text())
    starts = {row["name"]: row["start"] for row in plan["rows"]}
    assert "conv1/kernel" in starts["conv1/kernel"] and starts["logits/kernel"] == "initializer"


@pytest.mark.slow
def test_a_run_with_a_checkpoint_of_its_own_resumes_and_says_so(
    place: Path, source: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    init = [f"--init_from={place / 'source'}", "--init_only=conv.*"]
    constant = ["--group=.* sgd 0.1"]
    assert run.main(flags(place, "own", *init, *constant)) == 0
    capsys.readouterr()
    assert run.main(flags(place, "own", "--train_for=3", *init, *constant)) == 0
    assert f"--init_from={place / 'source'} is not used" in capsys.readouterr().out


def test_what_does_not_fit_is_refused_before_data_are_read(
    place: Path, source: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def never(*_: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("trainer.data.resident.load", never)
    wide = flags(place, "wide", f"--init_from={place / 'source'}", "--group=.* sgd 0.1")
    wide[1] = "--model=mnist_cnn(filters=8)"
    assert run.main(wide) == 1
    error = capsys.readouterr().err
    assert all(word in error for word in ("conv1/kernel", "conv2/kernel", "dense1/kernel")), error
    assert not (place / "wide" / "checkpoints").exists()


def test_the_average_starts_from_the_restored_weights(place: Path, source: dict[str, np.ndarray]) -> None:
    init = [f"--init_from={place / 'source'}", "--ema=0.5", "--group=.* sgd 0.0"]
    assert run.main(flags(place, "average", *init)) == 0
    entry = manifest.scan(place / "average" / "checkpoints")[0]
    averages = checkpoint.read(entry, [f"ema/{n}" for n in source])
    for name, value in source.items():
        np.testing.assert_allclose(averages[f"ema/{name}"], value, rtol=0, atol=1e-7)
    assert tf.keras.backend.floatx() == "float32"
