"""A run in a real notebook kernel: progress, results, and a process left as it was."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs a notebook kernel")
nbclient = pytest.importorskip("nbclient", reason="needs a notebook kernel")

CELLS = [
    "import numpy as np, trainer",
    """
run = trainer.Run(
    model="mnist_mlp(hidden=8)",
    dataset={"image": np.zeros([64, 28, 28, 1], "uint8"), "label": np.zeros([64], "int64")},
    eval_split="train", group=[".* adam 1e-2"], batch_size=16, train_for=40, log_every=10,
)
""",
    "print(run.plan())",
    "result = run.train(progress=True)",
    "result.step, result.metrics['accuracy']",
]


def text(cell):
    """All that a cell shows."""
    shown = []
    for output in cell.outputs:
        shown += [output.get("text", ""), *output.get("data", {}).values()]
    return "\n".join(str(part) for part in shown)


@pytest.mark.slow
def test_a_notebook_shows_progress_and_results(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    nothing, _, plan, training, result = (text(cell) for cell in book.cells)
    assert nothing == "" and "hidden1/w" in plan
    assert "evaluation of 64 examples" in training and "Summary" in training
    assert "(40, 1.0)" in result
