"""A run that was interrupted, however, ends with the bits of one that was not."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.runs import SMALL, assert_same, killed, main, newest, records, state, two_replicas
from trainer.checkpoints import checkpoint, manifest
from trainer.training.evaluation import evaluate

ROOT = Path(__file__).resolve().parents[2]


# (step of a checkpoint, whether it is still saved before the kill)
EVERYWHERE = [(5, True), (8, True), (9, False), (10, True), (15, False)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "replicas, flags, kills",
    [
        (1, ["--data_residency=resident"], EVERYWHERE),
        (2, ["--data_residency=streaming"], [(5, True), (10, True)]),
        (1, ["--data_residency=streaming", "--accumulate=1", "--train_for=12"], [(5, True)]),
        (2, ["--data_residency=resident", "--precision=float64"], [(5, True)]),
    ],
    ids=["one-resident", "two-streaming", "one-streaming", "two-resident"],
)
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path, monkeypatch, data, replicas, flags, kills):
    if replicas == 2:
        two_replicas(monkeypatch)
    flags = [*SMALL, data, *flags]
    assert main(tmp_path / "whole", *flags) == 0
    for step, saved in kills:
        killed(monkeypatch, step, saved, tmp_path / "killed", *flags)
        with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
            file.write('{"kind": "train", "step": 7')  # a torn line, as a kill may leave
    assert main(tmp_path / "killed", *flags) == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")
    # Neither is the same because nothing happened:
    values = state(tmp_path / "whole")
    moved = ["model/enc/kernel", "model/logits/kernel", "model/bn/moving_mean", "model/bn/gamma"]
    slots = ["optimizer/enc/kernel/velocities", "optimizer/logits/kernel/momentums", "ema/logits/kernel"]
    first = checkpoint_of(tmp_path / "whole", 1)
    assert all(not np.array_equal(values[name], first[name]) for name in [*moved, *slots])


def checkpoint_of(workdir, step):
    entry = manifest.at(workdir / "checkpoints", step)
    return checkpoint.read(entry, list(entry.variables))


@pytest.mark.slow
@pytest.mark.parametrize("at", [8, 15])
def test_an_evaluation_that_a_signal_cut_short_is_made_up_for(tmp_path, monkeypatch, data, whole, at):
    seen = []

    def disturbed(program, function, feed):
        seen.append(int(program.state.step.numpy()))
        # The first evaluation of the step is done, that of the averages is not.
        if seen.count(at) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            while not program.stop.numpy():
                time.sleep(0.01)
        return evaluate(program, function, feed)

    with monkeypatch.context() as patch:
        patch.setattr("trainer.training.evaluation.evaluate", disturbed)
        assert main(tmp_path, *SMALL, data) == 143
    assert newest(tmp_path).step == at and newest(tmp_path).meta["metrics"] == {}
    assert records(tmp_path) == [r for r in records(whole) if r["step"] + (r["kind"] == "eval") <= at]
    # A kill after the lines of the evaluation and before its checkpoint, which it needs to know of it:
    killed(monkeypatch, at, False, tmp_path, *SMALL, data)
    assert main(tmp_path, *SMALL, data) == 0
    assert_same(whole, tmp_path)
    metrics = manifest.at(whole / "checkpoints", at).meta["metrics"]
    assert manifest.at(tmp_path / "checkpoints", at).meta["metrics"] == metrics != {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    workdir = tmp_path_factory.mktemp("whole")
    assert main(workdir, *SMALL, data) == 0
    return workdir


def test_a_finished_run_says_so_and_changes_nothing(whole, data, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert main(whole, *SMALL, data, "--save_every=3") == 0
    said = capsys.readouterr().out
    assert "This run is finished" in said and "It ended with loss" in said
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_on_other_replicas_the_same_batches_and_a_word_on_the_last_bits(tmp_path, monkeypatch, data, capsys):
    # Plain gradient descent in float64, so that only the order of the sums is another.
    flags = [*SMALL, data, "--model=mnist_mlp(hidden=4)", "--precision=float64", "--train_for=12"]
    flags = [flag for flag in flags if not flag.startswith("--group")] + ["--group=.*  sgd  0.1"]
    assert main(tmp_path / "whole", *flags) == 0
    killed(monkeypatch, 5, True, tmp_path / "two", *flags)
    two_replicas(monkeypatch)
    capsys.readouterr()
    assert main(tmp_path / "two", *flags) == 0
    said = capsys.readouterr().out
    assert "saved on 1 replicas and goes on with 2" in said and "last bits may differ" in said
    one, two = state(tmp_path / "whole"), state(tmp_path / "two")
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-12, atol=1e-13, err_msg=name)


@pytest.mark.slow
def test_a_step_that_is_not_finite_leaves_the_evaluation_before_it(tmp_path, data):
    flags = [
        *SMALL,
        data,
        "--group=.*  sgd  piecewise([8], [0.01, 1e38])",
        "--train_for=20",
        "--save_every=5",
    ]
    flags = [flag for flag in flags if "name=late" not in flag and "name=early" not in flag]
    for _ in range(2):  # the same command meets it again, and leaves no second line
        assert main(tmp_path, *flags) == 1
        evaluated = [r["step"] for r in records(tmp_path) if r["kind"] == "eval"]
        assert evaluated == [8, 8]  # raw and averaged
    step = newest(tmp_path).step
    assert len(list((tmp_path / "checkpoints").glob(f"step-{step:09d}*"))) == 1


# Real signals to real processes


def start(tmp_path, mode, data):
    """A run whose every step lasts: `tests.support.slow` writes a byte to `ticks` in each."""
    flags = [f"--model=tests.support.slow(ticks='{tmp_path / 'ticks'}', {mode})", "--dataset=digits", data]
    flags += ["--group=.* sgd 0.1", "--batch_size=10", "--train_for=100", f"--workdir={tmp_path / 'run'}"]
    return subprocess.Popen(
        [sys.executable, "run.py", *flags, "--eval_split=none"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def ticks(tmp_path):
    return os.path.getsize(tmp_path / "ticks") if (tmp_path / "ticks").exists() else 0


def until(tmp_path, count):
    while ticks(tmp_path) < count:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_within_a_step_and_saves(tmp_path, data, number, status):
    process = start(tmp_path, "seconds=0.3", data)
    until(tmp_path, 4)  # in the second call, which has many steps before it
    process.send_signal(number)
    at = ticks(tmp_path)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == status
    assert ticks(tmp_path) <= at + 1
    assert newest(tmp_path / "run").step == ticks(tmp_path)
    assert f"Stopped by a signal at step {ticks(tmp_path)}, saved." in said


@pytest.mark.slow
def test_a_second_signal_exits_at_once(tmp_path, data):
    process = start(tmp_path, "seconds=1000", data)
    until(tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_sigkill_at_random_moments():
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "8"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 kills" in done.stdout


def test_every_fault_in_the_table_has_a_test_that_exists():
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = [r for r in text.splitlines() if r.startswith("| ") and not r.startswith("| fault |")]
    there = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.rsplit("|", 2)[1])
        assert named, row
        assert [name for name in named if f"def {name}(" not in there] == []
