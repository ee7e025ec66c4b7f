"""Whole runs of the program in process, each a few steps long: what they do and what they leave behind."""

import json
import math
import re
from collections import defaultdict

import numpy as np
import pytest
import tensorflow as tf

from tests.support.whole_runs import BATCH, BIASES, EXAMPLES, REST, TESTED, main, records, weights

STEPS = math.ceil(2 * EXAMPLES / BATCH)


def curves(directory):
    """`{tag: {step: value}}` of the event files in a directory."""
    found = defaultdict(dict)
    files = [str(file) for file in directory.glob("events.out.tfevents.*")]
    for record in tf.data.TFRecordDataset(files).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
            found[value.tag][event.step] = value.simple_value
    return found


def test_what_a_run_leaves_behind(finished):
    _, workdir, _ = finished
    left = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    left = {re.sub(r"events\.out\..*", "events", name) for name in left}
    steps = [f"step-{math.ceil(EXAMPLES / BATCH):09d}", f"step-{STEPS:09d}"]
    files = ["data.data-00000-of-00001", "data.index", "manifest.json"]
    expected = {f"checkpoints/{step}/{file}" for step in steps for file in files}
    expected |= {
        "flags.txt",
        "plan.json",
        "metrics.jsonl",
        "environment.json",
        "evaluation.npz",
        "report.html",
        "tensorboard/events",
        "tensorboard/train/events",
        "tensorboard/eval/events",
    }
    assert left - {"lock", ".lock"} == expected


@pytest.mark.slow
def test_the_flagfile_repeats_the_run(finished, tmp_path):
    flags, workdir, _ = finished
    kept = (workdir / "flags.txt").read_text().splitlines()
    assert sorted(kept) == sorted(flags)
    status, _, err = main(f"--flagfile={workdir / 'flags.txt'}", f"--workdir={tmp_path / 'again'}")
    assert (status, err) == (0, "")
    first, second = weights(workdir), weights(tmp_path / "again")
    assert first.keys() == second.keys() and len(first) == 6
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    losses = [[r["loss"] for r in records(path, "train")] for path in (workdir, tmp_path / "again")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_another_seed_ends_elsewhere(finished, tmp_path):
    _, workdir, _ = finished
    main(
        f"--flagfile={workdir / 'flags.txt'}", f"--workdir={tmp_path / 'other'}", "--seed=4", "--train_for=6"
    )
    assert not np.array_equal(weights(workdir)["hidden1/w"], weights(tmp_path / "other")["hidden1/w"])


def test_the_same_command_again_says_that_the_run_is_finished(finished):
    flags, workdir, _ = finished
    before = weights(workdir)
    status, out, _ = main(*flags)
    assert status == 0 and "finished" in out and "--workdir" in out and "accuracy" in out
    assert all(np.array_equal(before[name], value) for name, value in weights(workdir).items())


def test_metrics_hold_the_hand_computed_learning_rates(finished):
    _, workdir, _ = finished
    train = records(workdir, "train")
    assert [record["step"] for record in train] == [5, 10, 15, 20, STEPS]
    for record in train:
        last = record["step"] - 1  # the step whose update was the last before the log point
        expected = {"biases": 0.02 * (1 - last / STEPS)}
        if last >= 5:
            expected["rest"] = 1e-3 * 0.5 ** ((last - 5) / 10)
        assert record["learning_rate"] == pytest.approx(expected, rel=1e-6)
        assert record["epoch"] == pytest.approx(record["step"] * BATCH / EXAMPLES)
        assert 0 <= record["accuracy"] <= 1 and record["examples_per_second"] > 0
        assert record["skipped_steps"] == 0
    losses = [record["loss"] for record in train]
    assert losses[0] == pytest.approx(math.log(10), abs=0.5) and losses[-1] < losses[0]


def test_evaluations_count_every_example(finished):
    _, workdir, out = finished
    evaluations = records(workdir, "eval")
    assert [(r["step"], r["examples"], r["weights"]) for r in evaluations] == [
        (math.ceil(EXAMPLES / BATCH), TESTED, "raw"),
        (STEPS, TESTED, "raw"),
    ]
    hits = evaluations[-1]["accuracy"] * TESTED
    assert hits == pytest.approx(round(hits), abs=1e-3)
    assert f"final accuracy       {100 * evaluations[-1]['accuracy']:.2f}%" in out


def test_tensorboard_has_a_curve_for_each_number(finished):
    _, workdir, _ = finished
    found, train = curves(workdir / "tensorboard/train"), records(workdir, "train")
    for group in ("biases", "rest"):
        expected = {r["step"]: r["learning_rate"][group] for r in train if group in r["learning_rate"]}
        assert found[f"learning_rate/{group}"] == pytest.approx(expected)
    for name in ("loss", "accuracy", "examples_per_second"):
        assert found[name] == pytest.approx({r["step"]: r[name] for r in train})
    found, evaluations = curves(workdir / "tensorboard/eval"), records(workdir, "eval")
    for name in ("loss", "accuracy"):
        assert found[name] == pytest.approx({r["step"]: r[name] for r in evaluations})


def test_the_plan_is_that_of_the_plan_mode_and_of_the_records(finished, tmp_path):
    flags, workdir, _ = finished
    plan = json.loads((workdir / "plan.json").read_text())
    status, _, err = main(*flags, "--mode=plan", "--workdir=", f"--plan_out={tmp_path / 'plan.json'}")
    assert (status, err) == (0, "")
    assert json.loads((tmp_path / "plan.json").read_text()) == plan
    assert (plan["total"], plan["examples"], plan["data"]) == (STEPS, EXAMPLES, "digits/1.0.0")
    assert plan["phases"] == [[0, 5, ["biases"]], [5, STEPS, ["biases", "rest"]]]
    rows = {row["name"]: row for row in plan["rows"]}
    assert list(rows) == [f"{layer}/{v}" for layer in ("hidden1", "hidden2", "logits") for v in "wb"]
    # AdamW keeps two averages of each variable and one count; SGD with momentum keeps one, and a count.
    assert rows["hidden1/w"]["state_bytes"] == 2 * 784 * 16 * 4 + 8
    assert rows["logits/b"]["state_bytes"] == 10 * 4
    assert rows["hidden2/w"]["rule"] == REST and rows["hidden2/b"]["rule"] == BIASES
    last = records(workdir, "train")[-1]
    assert plan["rates_at"][-1] == last["step"] - 1
    for name, group in (("hidden1/w", "rest"), ("hidden1/b", "biases")):
        assert rows[name]["rates"][-1] == pytest.approx(last["learning_rate"][group])
    assert rows["hidden1/w"]["rates"][0] is None and rows["hidden1/b"]["rates"][0] == pytest.approx(0.02)


def test_output_on_a_pipe_is_plain_and_tells_all(finished):
    _, workdir, out = finished
    assert all(character.isprintable() or character == "\n" for character in out)
    for part in (
        "one replica on CPU:0",
        f"rule 1: {BIASES}",
        f"rule 2: {REST}",
        "1 biases sgd",
        f"step {STEPS}/{STEPS}",
        "steps per second",
        "total time",
        f"{workdir}/checkpoints/step-{STEPS:09d}",
        "digits/1.0.0 (train)",
    ):
        assert part in out


def test_a_plan_fits_into_a_terminal(finished):
    _, _, out = finished
    table = out[out.index("variable ") : out.index("rule 1:")].splitlines()
    assert len(table) == 7 and max(map(len, table)) <= 100
