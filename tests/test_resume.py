"""A run that was interrupted, however, ends with the bits of one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runs import SMALL, assert_same, killed, main, newest, records, state, two_replicas

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return f"--data_dir={tmp_path_factory.mktemp('data')}"


# (step of a checkpoint, whether it is still saved before the kill)
EVERYWHERE = [(5, True), (8, True), (9, False), (10, True), (15, False)]


@pytest.mark.parametrize(
    "replicas, flags, kills",
    [
        (1, ["--data_residency=resident"], EVERYWHERE),
        (2, ["--data_residency=streaming"], EVERYWHERE),
        (1, ["--data_residency=streaming", "--accumulate=1"], [(18, True)]),
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
    from trainer import checkpoint, manifest

    entry = manifest.at(workdir / "checkpoints", step)
    return checkpoint.read(entry, list(entry.variables))
