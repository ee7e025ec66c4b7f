"""A model's whole life in a few steps: trained, killed and resumed, exported, on two replicas."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.support.runs import assert_same, killed, main, newest, records, two_replicas

BRIEF = (
    "--train_split=train[:64]",
    "--eval_split=test[:33]",
    "--batch_size=16",
    "--train_for=4",
    "--eval_every=2",
    "--save_every=1",
    "--keep=9",
)


def exercise(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that a resumed run is the straight one to the bit, that it exports, and two replicas."""
    straight, broken, both = (tmp_path / name for name in ("straight", "broken", "both"))
    assert main(straight, *flags) == 0
    killed(monkeypatch, 2, True, broken, *flags)
    assert main(broken, *flags) == 0
    assert_same(straight, broken)
    assert main(straight, *flags, "--mode=export", f"--export_to={tmp_path / 'export'}") == 0
    assert "serving_default" in tf.saved_model.load(str(tmp_path / "export")).signatures
    two_replicas(monkeypatch)
    assert main(both, *flags) == 0
    assert newest(both).step == 4
    one, two = ([r for r in records(w) if r["kind"] == "train"][-1]["loss"] for w in (straight, both))
    assert np.isfinite(one) and one == pytest.approx(two, rel=0.3)  # dropout draws other masks
