"""An operation that fails in the step of one of two workers: each process ends with one message."""

import pytest

from tests.devices.test_agreement import ended, two_workers
from trainer.checkpoints.manifest import scan

MODULE = """
import json, os
import tensorflow as tf
from models.mnist_mlp import build, preprocess
from models.mnist_mlp import loss as of_mlp

def loss(model, batch, training):
    losses, metrics = of_mlp(model, batch, training)
    if json.loads(os.environ["TF_CONFIG"])["task"]["index"] in WHO:
        total = tf.reduce_sum(tf.cast(batch["label"], tf.int32))
        tf.debugging.assert_less(total, 50, message="labels that are too large")
    return losses, metrics
"""
FLAGS = (
    "--model=failing.part",
    "--dataset=digits",
    "--eval_split=none",
    "--batch_size=16",
    "--train_for=200",
    "--save_every=1",
    "--group=.* sgd 0.01",
)


@pytest.mark.slow
@pytest.mark.parametrize("who", [(0,), (1,), (0, 1)])
def test_each_process_ends_with_one_message(who, tmp_path, monkeypatch):
    (tmp_path / "failing").mkdir()
    (tmp_path / "failing/__init__.py").touch()
    (tmp_path / "failing/part.py").write_text(MODULE.replace("WHO", str(who)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    workdir = tmp_path / "run"
    with two_workers(*FLAGS, f"--data_dir={tmp_path}", f"--workdir={workdir}") as both:
        ends = [ended(process, 300) for process in both]
    said = [next(x for x in err.splitlines() if x.startswith("run.py: ")) for _, _, err in ends]
    for index, (status, _, err) in enumerate(ends):
        assert status == 1 and "Traceback" not in err, err
        other = "is gone, or out of reach" in said[index]
        assert other or "labels that are too large" in said[index], said[index]
        assert index in who or other
    assert any("part.py:1" in line and "step " in line for line in said)
    assert all(entry.step < 200 and not entry.damage for entry in scan(workdir / "checkpoints"))
