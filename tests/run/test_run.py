"""Whole runs of the program in process, each a few steps long: what they do and what they leave behind."""

import contextlib
import gzip
import io
import json
import math
import re
import struct
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import run
from tests.support.runs import last
from trainer.data.sources.tfds import TfdsSource, open_dataset
from trainer.readers import open_source

ORIGINALS = Path(run.__file__).parent.parent / "shared/data/mnist"
EXAMPLES, TESTED, BATCH = 1437, 360, 128  # of digits
STEPS = math.ceil(2 * EXAMPLES / BATCH)
BIASES = "--group=.*/b  sgd(momentum=0.9)  linear(0.02)  name=biases"
REST = "--group=.*  adamw(weight_decay=1e-3)  exponential(1e-3, 10, 0.5)  name=rest from=5"


def main(*arguments):
    """(exit status, standard output, standard error); no stream is a terminal."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = run.main(["run.py", *last(*map(str, arguments))])
    return status, out.getvalue(), err.getvalue()


def records(workdir, kind):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def weights(workdir):
    source = open_source(str(workdir), "raw")
    return {name: source.read(name) for name in source.specs}


def curves(directory):
    """`{tag: {step: value}}` of the event files in a directory."""
    found = defaultdict(dict)
    files = [str(file) for file in directory.glob("events.out.tfevents.*")]
    for record in tf.data.TFRecordDataset(files).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
            found[value.tag][event.step] = value.simple_value
    return found


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    open_dataset("digits", str(path)).prepare()
    return path


@pytest.fixture
def digits(data_dir, tmp_path):
    """Flags of a run on digits, in a directory of its own."""
    return ["--dataset=digits", f"--data_dir={data_dir}", f"--workdir={tmp_path / 'work'}"]


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """(flags, workdir, standard output) of one run of two groups over two epochs."""
    workdir = tmp_path_factory.mktemp("run") / "work"
    flags = ["--model=mnist_mlp(hidden=16)", "--dataset=digits", f"--data_dir={data_dir}", "--log_every=5"]
    flags += ["--train_for=2epochs", "--seed=3", BIASES, REST, f"--workdir={workdir}"]
    status, out, err = main(*flags)
    assert (status, err) == (0, "")
    return flags, workdir, out


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
        "report.html",
        "tensorboard/events",
        "tensorboard/train/events",
        "tensorboard/eval/events",
    }
    assert left - {"lock", ".lock"} == expected


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


# --- model modules ---

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


# --- where the data come from ---


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(
        "trainer.data.sources.tfds._unreachable", lambda url: f"{url} cannot be reached (no network)"
    )


MNIST = ["--model=mnist_mlp(hidden=4)", "--dataset=mnist", "--train_for=4", "--group=.* sgd 0.1"]


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


# --- the plan mode ---


@pytest.fixture
def no_reading(monkeypatch):
    def read(*_args, **_kwargs):
        pytest.fail("--mode=plan read or prepared data")

    monkeypatch.setattr("trainer.data.resident.load", read)
    monkeypatch.setattr("trainer.data.shards._records", read)
    monkeypatch.setattr(TfdsSource, "prepare", read)


@pytest.fixture
def headers(tmp_path):
    """Files named like MNIST's that say 6,000 and 1,000 examples and have none."""
    folder = tmp_path / "originals"
    folder.mkdir()
    for prefix, count in (("train", 6000), ("t10k", 1000)):
        for kind in ("labels-idx1", "images-idx3"):
            with gzip.open(folder / f"{prefix}-{kind}-ubyte.gz", "w") as file:
                file.write(struct.pack(">ii", 2049, count))
    return folder


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
