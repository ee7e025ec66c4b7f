"""The main job on the real MNIST, from typing to past 99%, and from Python in the same words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORIGINALS = ROOT.parent / "shared/data/mnist"


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="needs the four original MNIST files")
def test_mnist_passes_99_percent(tmp_path):
    command = [sys.executable, "run.py", "--flagfile=mnist.flags", f"--workdir={tmp_path / 'run'}"]
    command += [f"--manual_dir={ORIGINALS}", f"--data_dir={tmp_path / 'data'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "eval"][-1]
    assert last["examples"] == 10_000 and last["accuracy"] >= 0.99
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "This run is finished" in again.stdout


def test_two_dozen_kills_lose_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "24"], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 kills" in done.stdout
