"""Metrics of a whole split, on a ragged last batch: one replica, two, two workers; names and memory."""

import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.devices.test_agreement import ended, two_workers
from tests.support.runs import main, records, two_replicas
from trainer.errors import UserError
from trainer.model import scores

FLAGS = (
    "--dataset=digits",
    "--train_split=train[:200]",
    "--eval_split=test[:101]",  # two batches and 21 of the third
    "--batch_size=40",
    "--train_for=6",
    "--eval_every=3",
    "--precision=float64",
    "--group=.* adam 1e-2",
    "--ema=0.5",
)
NUMBERS = ("auc", "f1", "ece")


def last(workdir, weights="ema"):
    return [r for r in records(workdir) if r["kind"] == "eval" and r["weights"] == weights][-1]


@pytest.fixture(scope="module")
def one(tmp_path_factory, data):
    """A run of one replica, and the rows that `metrics` was given at its end."""
    workdir = tmp_path_factory.mktemp("one")
    model = f"--model=tests.support.ranked(keep='{workdir}/rows.npz')"
    assert main(workdir, model, *FLAGS, "--keep_best=auc", data) == 0
    with np.load(workdir / "rows.npz") as rows:
        return workdir, dict(rows)


def test_each_example_once_and_in_order(one, data):
    workdir, rows = one
    from trainer.data.records import load
    from trainer.data.source import Split
    from trainer.data.sources.tfds import open_dataset

    source = open_dataset("digits", data.removeprefix("--data_dir="))
    labels = load(Split(source, "test[:101]"))["label"]
    assert np.array_equal(rows["labels"], labels) and rows["logits"].shape == (101, 10)
    record = last(workdir)
    hits = rows["logits"].argmax(1) == rows["labels"]
    assert record["accuracy"] == pytest.approx(hits.mean(), abs=1e-12)
    odds = scores.softmax(rows["logits"])
    assert [record[n] for n in NUMBERS] == [
        scores.auc(labels, odds),
        scores.f1_macro(labels, odds.argmax(1)),
        scores.calibration_error(labels, odds),
    ]
    matrix = np.array(record["arrays"]["confusion_matrix"])
    assert np.trace(matrix) == hits.sum() and matrix.sum() == 101
    assert np.array(record["arrays"]["per_class"]).shape == (10, 4)
    assert record["arrays"]["highest"] == odds.max(0).tolist()
    # The weights before averaging are evaluated, too, and are others.
    assert last(workdir, "raw")["auc"] != record["auc"]


def test_against_scikit_learn(one):
    sklearn = pytest.importorskip("sklearn.metrics")
    workdir, rows = one
    labels, odds, record = rows["labels"], scores.softmax(rows["logits"]), last(workdir)
    auc = sklearn.roc_auc_score(labels, odds, multi_class="ovr", labels=range(10))
    f1 = sklearn.f1_score(labels, odds.argmax(1), average="macro", zero_division=0)
    assert record["auc"] == pytest.approx(auc, abs=1e-12) and record["f1"] == pytest.approx(f1, abs=1e-12)
    matrix = sklearn.confusion_matrix(labels, odds.argmax(1), labels=range(10))
    assert record["arrays"]["confusion_matrix"] == matrix.tolist()


def test_the_same_on_two_replicas_and_streaming(one, tmp_path, data, monkeypatch):
    two_replicas(monkeypatch)
    for name, flag in (("resident", "resident"), ("streaming", "streaming")):
        model = "--model=tests.support.ranked"
        flags = (*FLAGS, "--mode=evaluate", "--weights=ema", f"--data_residency={flag}", data)
        seen = {}
        with monkeypatch.context() as patch:
            from trainer.modes import evaluate as mode

            here = mode.evaluate
            patch.setattr(mode, "evaluate", lambda *args: seen.setdefault("it", here(*args)))  # noqa: B023
            assert main(one[0], model, *flags) == 0, name
        for metric in (*NUMBERS, "accuracy", "examples"):
            assert seen["it"].numbers[metric] == pytest.approx(last(one[0])[metric], abs=1e-12), (
                name,
                metric,
            )
        assert seen["it"].arrays["confusion_matrix"].tolist() == last(one[0])["arrays"]["confusion_matrix"]


@pytest.mark.slow
def test_two_workers_have_the_same_numbers(one, tmp_path, data):
    model = "--model=tests.support.ranked"
    flags = (model, *FLAGS, "--keep_best=auc", "--stop_when=f1 >= 2", data, f"--workdir={tmp_path / 'run'}")
    with two_workers(*flags) as both:
        ends = [ended(process) for process in both]
    assert [status for status, _, _ in ends] == [0, 0], ends
    record, expected = last(tmp_path / "run"), last(one[0])
    for metric in (*NUMBERS, "accuracy", "examples"):
        assert record[metric] == pytest.approx(expected[metric], abs=1e-9), metric
    assert record["arrays"]["confusion_matrix"] == expected["arrays"]["confusion_matrix"]


# What is refused, before data are read


def run_of(**parts):
    def build():
        return tf.keras.Sequential([tf.keras.Input([3]), tf.keras.layers.Dense(2, name="head")])

    def loss(model, batch, training):
        logits = model(batch["x"], training=training)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits)
        return losses, {"accuracy": tf.cast(tf.argmax(logits, 1) == batch["y"], tf.float32)}

    flags = parts.pop("flags", {})
    x = np.random.default_rng(0).normal(size=[20, 3]).astype("float32")
    return trainer.Run(
        model=trainer.ModelModule(build=build, loss=loss, **parts),
        dataset={"x": x, "y": (x.sum(1) > 0).astype("int64")},
        eval_split="train",
        batch_size=8,
        group=[".* adam 1e-2"],
        train_for=4,
        **flags,
    )


def outputs(model, batch):
    return {"logits": model(batch["x"]), "y": batch["y"]}


@pytest.mark.slow(but=4)
@pytest.mark.parametrize(
    "parts, words",
    [
        ({"metrics": lambda rows: {}}, ["metrics and no outputs"]),
        ({"outputs": outputs}, ["of no use", "labels"]),
        ({"outputs": outputs, "metrics": lambda rows: {"accuracy": 1.0}}, ["accuracy", "taken"]),
        ({"outputs": outputs, "metrics": lambda rows: {"loss": 1.0}}, ["loss", "taken"]),
        ({"outputs": lambda m, b: tf.zeros([8]), "metrics": lambda rows: {}}, ["not {name: "]),
        ({"outputs": lambda m, b: {"a": tf.zeros([3])}, "metrics": lambda rows: {}}, ["shape (3,)"]),
        (
            {"outputs": lambda m, b: {"a": tf.fill([8], "x")}, "metrics": lambda rows: {}},
            ["string", "numbers"],
        ),
        (
            {
                "outputs": outputs,
                "metrics": lambda rows: {"auc": 1.0},
                "flags": {"keep_best": "ac:max"},
            },
            ["--keep_best=ac:max", "auc"],
        ),
        (
            {
                "outputs": outputs,
                "metrics": lambda rows: {"table": np.zeros(3)},
                "flags": {"keep_best": "table:max"},
            },
            ["--keep_best=table:max", "no such metric"],
        ),
    ],
)
def test_what_cannot_be_is_refused_before_data_are_read(parts, words):
    with pytest.raises(UserError) as refused:
        run_of(**parts).plan()
    assert all(word in str(refused.value) for word in words), refused.value


def test_rows_that_do_not_fit_are_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr("trainer.run.build.room", lambda devices: 1 << 8)
    with pytest.raises(UserError, match=r"20 examples of 16 bytes.*--eval_split=train\[:10%\]"):
        run_of(outputs=outputs, metrics=lambda rows: {"n": len(rows["y"])}).train()


def test_metrics_that_fail_say_where():
    def metrics(rows):
        return {"ratio": rows["y"].sum() / len(rows["missing"])}

    with pytest.raises(UserError, match=r"its metrics raised KeyError at .*test_split_metrics.py:\d+"):
        run_of(outputs=outputs, metrics=metrics).train()


def test_evaluate_of_a_run_has_the_numbers():
    run = run_of(outputs=outputs, metrics=lambda rows: {"n": len(rows["y"]), "share": rows["y"].mean()})
    result = run.train()
    assert result.metrics["n"] == 20 and run.evaluate()["share"] == result.metrics["share"]
