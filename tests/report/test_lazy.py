"""The command line does not load matplotlib before it draws, and can draw afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

CODE = """
import sys
from trainer.__main__ import main
flags = ["--model=mnist_mlp(hidden=8)", "--dataset=digits", "--group=.* sgd 0.1", "--train_for=3"]
assert main(["run.py", "--mode=plan", *flags]) == 0
print("loaded", "matplotlib" in sys.modules)
from trainer.report.charts import Chart, svgs
print("drawn", len(svgs([Chart("a", "a", lambda axes, colours: None)])))
"""


@pytest.mark.slow
def test_matplotlib_is_loaded_when_something_is_drawn():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["loaded False", "drawn 1"], done.stderr
