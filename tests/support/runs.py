"""Whole runs for tests: the flags of a small one, kills at chosen steps, and what a run leaves behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import run
from trainer.checkpoints import checkpoint
from trainer.checkpoints.manifest import Entry, scan
from trainer.devices.strategy import mirrored
from trainer.flags.config import Config

# 300 examples in steps of 40: 15 steps in two epochs, an epoch's edge at 8, a phase's at 10.
SMALL = (
    "--model=tests.support.noisy",
    "--dataset=digits",
    "--train_split=train[:300]",
    "--eval_split=test[:50]",
    "--batch_size=20",
    "--accumulate=2",
    "--train_for=2epochs",
    "--group=enc/.*  adam  cosine(1e-2)  name=late from=10",
    "--group=.*  sgd(momentum=0.9)  0.05  name=early",
    "--ema=0.9",
    "--log_every=3",
    "--save_every=1",
    "--keep=100",
    "--report_to=none",  # which is drawn in a third of a second; tests/modes/test_report.py has it
)


_DEFAULTS = Config()


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of the program catches it."""


def main(workdir: Path | None, *flags: str) -> int:
    """Runs the program in this process; the last of two values of one flag counts."""
    return run.main(["run.py", *last(*flags), *([f"--workdir={workdir}"] if workdir else [])])


def last(*flags: str) -> list[str]:
    """Of flags of one name the last, but for those that repeat: what `SMALL` says can be said otherwise."""
    found: dict[str, str] = {}
    for flag in flags:
        name = flag.partition("=")[0]
        repeats = isinstance(getattr(_DEFAULTS, name.removeprefix("--"), None), list)
        found.pop(name, None)
        found[flag if repeats else name] = flag
    return list(found.values())


def killed(monkeypatch: pytest.MonkeyPatch, at: int, saved: bool, workdir: Path, *flags: str) -> None:
    """A run that ends right before, or right after, the checkpoint of step `at` is there."""
    save = checkpoint.save

    def until(directory: Path, step: int, *rest: Any) -> Path:
        if step == at and not saved:
            raise Killed
        path = save(directory, step, *rest)
        if step == at:
            raise Killed
        return path

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "save", until)
        main(workdir, *flags)


def two_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every run has the one MirroredStrategy of this process."""
    two = mirrored(["CPU:0", "CPU:1"])
    monkeypatch.setattr("trainer.run.build.strategy_for", lambda *_: (two, "two replicas"))


def newest(workdir: Path) -> Entry:
    """The newest checkpoint."""
    return scan(workdir / "checkpoints")[0]


def state(workdir: Path) -> dict[str, np.ndarray]:
    """Every value in the newest checkpoint."""
    entry = newest(workdir)
    return checkpoint.read(entry, list(entry.variables))


def records(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their timings."""
    timings = ("examples_per_second", "input_wait")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timings = ("examples_per_second", "input_wait")
    return [{k: v for k, v in line.items() if k not in timings} for line in lines]


def assert_same(one: Path, other: Path) -> None:
    """Both runs ended with the same bits and the same records."""
    assert newest(one).step == newest(other).step
    values, others = state(one), state(other)
    assert values.keys() == others.keys()
    different = [name for name in values if values[name].tobytes() != others[name].tobytes()]
    assert different == []
    assert records(one) == records(other)
