"""Whole runs over other data, a few steps long."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import run
from tests.support.whole_runs import TESTED, main, records, weights

ORIGINALS = Path(run.__file__).parent.parent / "shared/data/mnist"


STRAIGHT = """
import keras
import tensorflow as tf

class Straight(tf.Module):
    def __init__(self, start):
        super().__init__()
        self.w = tf.Variable(tf.fill([784, 10], start))
        self.steps = tf.Variable(0, trainable=False)

def build(start=0.0):
    return Straight(start)

def decode(example):
    return {"x": tf.reshape(tf.cast(example["image"], tf.float32) / 255, [784]), "y": example["label"]}

def loss(model, batch, training):
    logits = batch["x"] @ model.w
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits)
    weight = tf.cast(batch["y"] < 5, tf.float32)
    small = tf.cast(tf.argmax(logits, 1) == batch["y"], tf.float32)
    return losses, {"small_digits": (small, weight)}
"""


@pytest.mark.slow
def test_a_model_in_a_folder_of_its_own_is_trained_by_dotted_path(digits, monkeypatch, tmp_path):
    package = re.sub(r"\W", "_", f"mine_{tmp_path.parent.name}")
    (tmp_path / package).mkdir()
    (tmp_path / package / "straight.py").write_text(STRAIGHT)
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err = main(
        *digits, f"--model={package}.straight(start=0.5)", "--train_for=12", "--group=.* sgd 0.5"
    )
    assert (status, err) == (0, "")
    (train,), (evaluation,) = (records(tmp_path / "work", kind) for kind in ("train", "eval"))
    # Equal weights give every class a tenth; then it learns.
    assert train["loss"] < math.log(10) and evaluation["loss"] < train["loss"]
    assert evaluation["examples"] == TESTED and 0.3 < evaluation["small_digits"] <= 1
    assert not np.allclose(weights(tmp_path / "work")["w"], 0.5)


@pytest.mark.slow
def test_the_keras_network_trains(digits, tmp_path):
    status, _, err = main(
        *digits,
        "--model=mnist_cnn(filters=4,dense=16,batch_norm=True,dropout=0.2)",
        "--train_for=10",
        "--ema=0.5",
        "--clip_norm=1",
        "--group=.* adam 1e-3",
    )
    assert (status, err) == (0, "")
    assert [r["weights"] for r in records(tmp_path / "work", "eval")] == ["raw", "ema"]
    assert {"conv1/kernel", "bn1/moving_mean", "logits/bias"} <= weights(tmp_path / "work").keys()


@pytest.mark.slow
def test_evaluation_is_the_same_whatever_the_batch_size(digits, tmp_path):
    seen = {}
    for batch in (7, 128, 359, 1000):
        workdir = tmp_path / f"batch{batch}"
        status, _, err = main(
            *digits,
            f"--workdir={workdir}",
            "--model=mnist_mlp",
            "--train_for=1",
            f"--batch_size={batch}",
            "--group=.* sgd 0.0",
        )
        assert (status, err) == (0, "")
        (seen[batch],) = records(workdir, "eval")
    for record in seen.values():
        assert record["examples"] == TESTED
        assert record["accuracy"] == pytest.approx(seen[7]["accuracy"], abs=1e-7)
        assert record["loss"] == pytest.approx(seen[7]["loss"], rel=1e-6)


MNIST = ["--model=mnist_mlp(hidden=4)", "--dataset=mnist", "--train_for=4", "--group=.* sgd 0.1"]


@pytest.mark.slow
def test_the_fallback_is_told_of_and_recorded(no_network, data_dir, tmp_path):
    workdir = tmp_path / "work"
    flags = [*MNIST, "--fallback_dataset=digits", f"--data_dir={data_dir}", f"--workdir={workdir}"]
    status, out, err = main(*flags)
    assert (status, err) == (0, "")
    for part in ("mnist", "cannot be reached (no network)", "digits", "--manual_dir"):
        assert part in out
    assert "digits/1.0.0 (train)" in out
    assert json.loads((workdir / "plan.json").read_text())["data"] == "digits/1.0.0"
    (manifest,) = (workdir / "checkpoints").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["meta"]["data"] == "digits/1.0.0"
    assert "--dataset=mnist" in (workdir / "flags.txt").read_text()
    status, out, _ = main(*flags, "--mode=plan")
    assert status == 0 and "cannot be reached (no network)" in out


def test_without_a_fallback_it_is_an_error(no_network, tmp_path):
    status, out, err = main(*MNIST, f"--data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'work'}")
    assert (status, out) == (1, "") and not (tmp_path / "work").exists()
    for part in (
        "--dataset=mnist",
        "cannot be reached (no network)",
        "--manual_dir=",
        "train-images-idx3-ubyte.gz",
    ):
        assert part in err


@pytest.mark.slow
@pytest.mark.skipif(not ORIGINALS.is_dir(), reason=f"the original files of MNIST are not in {ORIGINALS}")
def test_the_originals_are_used(no_network, tmp_path):
    status, out, err = main(
        *MNIST,
        "--fallback_dataset=digits",
        "--batch_size=96",
        f"--manual_dir={ORIGINALS}",
        f"--data_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'work'}",
    )
    assert (status, err) == (0, "")
    assert "digits" not in out and "mnist/3.0.1 (train)" in out
    assert json.loads((tmp_path / "work/plan.json").read_text())["examples"] == 60_000
    (record,) = records(tmp_path / "work", "eval")
    assert record["examples"] == 10_000


def test_a_plan_takes_the_size_from_the_headers(no_reading, no_network, headers, tmp_path):
    plan_out = tmp_path / "plan.json"
    flags = [*MNIST, f"--manual_dir={headers}", f"--data_dir={tmp_path / 'data'}", "--batch_size=100"]
    flags += ["--train_for=2epochs", "--mode=plan", f"--plan_out={plan_out}"]
    status, out, err = main(*flags)
    assert (status, err) == (0, "") and "Plan: 120 steps" in out
    plan = json.loads(plan_out.read_text())
    assert (plan["examples"], plan["total"], plan["data"]) == (6000, 120, "mnist/3.0.1")
    assert not (tmp_path / "data" / "mnist").exists()


def test_a_plan_by_steps_needs_no_size(no_reading, tmp_path):
    flags = [
        "--model=mnist_mlp",
        "--dataset=digits",
        f"--data_dir={tmp_path}",
        "--mode=plan",
        "--group=.* sgd 1",
    ]
    assert main(*flags, "--train_for=10")[0] == 0
    status, out, err = main(*flags, "--train_for=10epochs")
    assert (status, out) == (1, "")
    for part in ("--train_for=10epochs", "digits", "--mode=train", "--manual_dir", "in steps"):
        assert part in err


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ("--group=.*/w sgd 0.1", "--group=.*/w"),
        ("--keep_best=acuracy", "--keep_best"),
        ("--plan_out=/no/such/folder/plan.json", "--plan_out"),
        ("--manual_dir=/no/such/folder", "--manual_dir"),
        ("--save_every=0", "--save_every"),
    ],
)
def test_a_plan_that_would_not_start_exits_with_1(no_reading, data_dir, tmp_path, wrong, flag):
    flags = [
        "--model=mnist_mlp",
        "--dataset=digits",
        f"--data_dir={data_dir}",
        "--train_for=9",
        "--mode=plan",
    ]
    plan_out = tmp_path / "plan.json"
    status, _, err = main(*flags, "--group=.* sgd 0.1", f"--plan_out={plan_out}", wrong)
    assert status == 1 and err.startswith("run.py: ") and flag in err
    assert not plan_out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adafactor", "nadam", "lamb", "muon"])
def test_a_plan_counts_state_as_a_run_makes_it(data_dir, tmp_path, optimizer):
    flags = [
        "--model=mnist_cnn(filters=2,dense=8)",
        "--dataset=digits",
        f"--data_dir={data_dir}",
        "--train_for=1",
    ]
    flags += [f"--group=.* {optimizer} 0.001", f"--workdir={tmp_path / 'work'}", "--eval_split=none"]
    assert main(*flags)[0] == 0
    assert main(*flags, "--mode=plan", "--workdir=", f"--plan_out={tmp_path / 'plan.json'}")[0] == 0
    plans = [json.loads(p.read_text()) for p in (tmp_path / "work/plan.json", tmp_path / "plan.json")]
    assert plans[0]["rows"] == plans[1]["rows"] and plans[0]["totals"]["group0"]["state_bytes"] > 0


@pytest.mark.slow
def test_keep_best_saves_at_every_evaluation_and_keeps_the_best(digits, tmp_path):
    """Three evaluations, no save due before the end, one checkpoint to keep: the best one is there too."""
    lengths = ["--train_for=12", "--eval_every=4", "--save_every=100", "--keep=1", "--keep_best=accuracy"]
    status, _, err = main("--model=mnist_mlp(hidden=16)", "--group=.* adam 1e-2", *lengths, *digits)
    assert (status, err) == (0, "")
    accuracy = {line["step"]: line["accuracy"] for line in records(tmp_path / "work", "eval")}
    kept = {int(path.name[5:14]) for path in (tmp_path / "work" / "checkpoints").glob("step-*")}
    assert sorted(accuracy) == [4, 8, 12]
    assert 12 in kept and len(kept) <= 2
    assert any(accuracy[step] == max(accuracy.values()) for step in kept)
