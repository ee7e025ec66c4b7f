"""`--mode=predict`, and `run.predict`: which examples, which columns, to the bits of an evaluation."""

import csv
import io
import json

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf

import trainer
from tests.support import ranked, worded
from tests.support.runs import main, state, two_replicas
from trainer.errors import UserError

FLAGS = (
    "--dataset=digits",
    "--train_split=train[:200]",
    "--eval_split=test[:101]",
    "--batch_size=40",
    "--train_for=6",
    "--eval_every=3",
    "--save_every=3",
    "--group=.* adam 1e-2",
    "--ema=0.5",
    "--keep_best=accuracy",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A run, and the rows of its last evaluation, which is of the averaged weights."""
    workdir = tmp_path_factory.mktemp("run")
    model = f"--model=tests.support.ranked(keep='{workdir}/rows.npz')"
    assert main(workdir, model, *FLAGS, data) == 0
    with np.load(workdir / "rows.npz") as rows:
        return workdir, rows["logits"], rows["labels"]


@pytest.fixture
def predict(trained, data, tmp_path):
    """Predicts with flags and returns the path of the file."""

    def run(name, *flags, workdir=trained[0]):
        path = tmp_path / name
        given = ["--model=tests.support.ranked", *FLAGS, data, "--mode=predict", f"--predict_to={path}"]
        assert main(workdir, *given, *flags) == 0
        return path

    return run


def read_csv(path):
    header, *rows = csv.reader(io.StringIO(path.read_text()))
    return header, rows


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("residency", ["resident", "streaming"])
def test_a_csv_has_the_bits_of_the_evaluation(trained, predict, residency):
    header, rows = read_csv(predict("out.csv", "--weights=ema", f"--data_residency={residency}"))
    assert header == [f"outputs_{k}" for k in range(10)]
    read = np.array(rows, np.float32)
    assert read.tobytes() == trained[1].tobytes() and read.shape == (101, 10)


def test_every_format_reads_back_to_the_same_bits(trained, predict):
    expected = trained[1]
    with np.load(predict("out.npz", "--weights=ema")) as found:
        assert found["outputs"].tobytes() == expected.tobytes()
    lines = [json.loads(x)["outputs"] for x in predict("out.jsonl", "--weights=ema").read_text().splitlines()]
    assert np.array(lines, np.float32).tobytes() == expected.tobytes()
    table = pyarrow.parquet.read_table(predict("out.parquet", "--weights=ema"))
    assert table.column_names == [f"outputs_{k}" for k in range(10)]
    columns = np.stack([table[name].to_numpy() for name in table.column_names], 1)
    assert columns.dtype == np.float32 and columns.tobytes() == expected.tobytes()


def test_two_replicas_have_the_rows_in_order(trained, predict, monkeypatch):
    two_replicas(monkeypatch)
    _, rows = read_csv(predict("out.csv", "--weights=ema"))
    np.testing.assert_allclose(np.array(rows, np.float32), trained[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_another_checkpoint_or_file_gives_other_numbers(trained, predict, tmp_path):
    def numbers(name, *flags, **more):
        return read_csv(predict(name, *flags, **more))[1]

    newest, older = numbers("a.csv"), numbers("b.csv", "--checkpoint=3")
    assert newest != older and numbers("c.csv", "--checkpoint=6") == newest
    assert numbers("d.csv", "--checkpoint=best") in (newest, older)
    values = {n.removeprefix("model/"): v for n, v in state(trained[0]).items() if n.startswith("model/")}
    np.savez(tmp_path / "w.npz", **values)
    assert numbers("e.csv", f"--init_from={tmp_path / 'w.npz'}", workdir=None) == newest


def test_standard_output_has_the_rows_alone(trained, data, capsys):
    flags = ["--model=tests.support.ranked", *FLAGS, data, "--mode=predict", "--weights=ema"]
    assert main(trained[0], *flags, "--predict_to=-") == 0
    said = capsys.readouterr()
    header, *rows = csv.reader(io.StringIO(said.out))
    assert len(header) == 10 and np.array(rows, np.float32).tobytes() == trained[1].tobytes()
    assert "Predictions" in said.err and "101" in said.err


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--predict_to=", "--predict_to=FILE.csv"),
        ("--predict_to=out.txt", "ends in none of .csv, .parquet, .npz, .jsonl"),
        ("--predict_to={there}", "is there already"),
        ("--eval_split=tset", "--eval_split=tset"),
        ("--strategy=multi_worker", "in one process"),
        ("--mode=train", "--predict_to=x.csv: has no effect with --mode=train"),
    ],
)
def test_what_cannot_be_is_refused_before_anything(trained, data, tmp_path, monkeypatch, capsys, flag, words):
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "there.csv"
    there.write_text("mine")
    flags = ["--model=tests.support.ranked", *FLAGS, data, "--mode=predict", "--predict_to=x.csv"]
    assert main(trained[0], *flags, flag.format(there=there)) == 1
    assert words in capsys.readouterr().err
    assert there.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["there.csv"]


def test_a_file_that_cannot_be_finished_leaves_nothing(trained, predict, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.run.rows.files.sync", full)
    flags = ["--model=tests.support.ranked", *FLAGS, "--mode=predict"]
    assert main(trained[0], *flags, f"--predict_to={tmp_path / 'out.csv'}") == 1
    assert "--predict_to=" in (said := capsys.readouterr().err) and "No space left" in said
    assert list(tmp_path.iterdir()) == []


# Data of one's own


@pytest.mark.slow
def test_a_folder_of_images_without_classes(trained, data, tmp_path, capsys):
    """As encoded files, in other sizes too: the numbers are those of the same images as arrays."""
    from trainer.data.records import load
    from trainer.data.source import Split
    from trainer.data.sources.tfds import open_dataset

    source = open_dataset("digits", data.removeprefix("--data_dir="))
    images = load(Split(source, "test[:7]"))["image"]
    folder = tmp_path / "photos"
    for k, image in enumerate(images):
        path = folder / "deep" / f"{k}.png" if k == 3 else folder / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())
    larger = np.repeat(np.repeat(images[5], 2, 0), 2, 1)
    (folder / "5.png").write_bytes(tf.io.encode_png(larger).numpy())
    flags = ["--model=tests.support.ranked", "--batch_size=40", "--mode=predict", "--weights=ema"]
    out = tmp_path / "out.csv"
    assert main(trained[0], *flags, f"--dataset={folder}", f"--predict_to={out}") == 0
    header, rows = read_csv(out)
    assert header[0] == "file" and [row[0] for row in rows] == [
        "0.png", "1.png", "2.png", "4.png", "5.png", "6.png", "deep/3.png"
    ]  # fmt: skip
    found = {row[0]: np.array(row[1:], np.float32) for row in rows}
    for k in (0, 1, 2, 4, 6):
        np.testing.assert_allclose(found[f"{k}.png"], trained[1][k], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["deep/3.png"], trained[1][3], rtol=1e-5, atol=1e-6)
    assert not np.allclose(found["5.png"], trained[1][4], atol=1e-3)
    # Without a checkpoint nothing tells what an image is.
    assert main(trained[0], *flags, f"--dataset={folder}/deep", f"--predict_to={tmp_path / 'b.csv'}") == 0


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A run of Python's on texts, in a workdir."""
    workdir = tmp_path_factory.mktemp("texts")
    run = trainer.Run(
        model=worded,
        dataset=worded.arrays(),
        eval_split="train",
        group=[".* adam 0.1"],
        batch_size=8,
        train_for=20,
        workdir=str(workdir),
    )
    run.train()
    return workdir, run


@pytest.mark.slow
def test_lines_on_standard_input(texts, tmp_path, monkeypatch):
    workdir, run = texts
    lines = [" good great ", "bad, poor", 'dull "bad"']
    flags = ["--model=tests.support.worded", "--batch_size=8", "--mode=predict", "--dataset=-"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main(workdir, *flags, f"--predict_to={tmp_path / 'a.csv'}") == 0
    header, rows = read_csv(tmp_path / "a.csv")
    assert header == ["odds_0", "odds_1", "class"] and len(rows) == 3
    odds = tf.nn.softmax(run.model(tf.constant(["good great", "bad, poor", 'dull "bad"']))).numpy()
    np.testing.assert_allclose(np.array([row[:2] for row in rows], float), odds, rtol=1e-5)
    assert [row[2] for row in rows] == [["no", "yes"][k] for k in odds.argmax(1)]
    # The same as JSON objects, one of whose features names the example.
    objects = [json.dumps({"id": f"n{k}", "text": line}) for k, line in enumerate(lines)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(objects)))
    assert main(workdir, *flags, f"--predict_to={tmp_path / 'b.csv'}") == 0
    header, others = read_csv(tmp_path / "b.csv")
    assert header == ["id", "odds_0", "odds_1", "class"] and [row[1:] for row in others] == rows
    assert [row[0] for row in others] == ["n0", "n1", "n2"]


@pytest.mark.slow(but=1)
def test_lines_that_are_nothing_are_refused(texts, tmp_path, monkeypatch, capsys):
    flags = ["--model=tests.support.worded", "--mode=predict", "--dataset=-"]
    for text, words in (
        ("", "nothing on standard input"),
        ('{"text": "a"}\n{"a": 1}', "of the same features"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert main(texts[0], *flags, f"--predict_to={tmp_path / 'a.csv'}") == 1
        assert words in capsys.readouterr().err


def test_from_python_with_and_without_labels(texts):
    _, run = texts
    whole = worded.arrays()
    own = run.predict()
    assert list(own) == ["id", "odds", "class"] and own["odds"].shape == (40, 2)
    assert own["id"].tolist() == [f"example {k}".encode() for k in range(40)]
    hits = (own["odds"].argmax(1) == whole["label"]).mean()
    assert hits == pytest.approx(run.evaluate()["accuracy"])
    some = run.predict({"text": whole["text"][:5]})
    np.testing.assert_allclose(some["odds"], own["odds"][:5], rtol=1e-6)
    with pytest.raises(UserError, match=r"the model's outputs depend on text, which is not among label"):
        run.predict({"label": whole["label"]})


def test_a_run_without_splits_and_one_with_more(trained, predict, capsys, data, tmp_path):
    """`--dataset` of one's own with the splits of another set: named, or refused with what there is."""
    flags = ["--model=tests.support.ranked", data, "--mode=predict", "--dataset=digits"]
    out = f"--predict_to={tmp_path / 'a.csv'}"
    assert main(trained[0], *flags, out, "--eval_split=train[:9]") == 0
    assert len(read_csv(tmp_path / "a.csv")[1]) == 9
    assert ranked.better["auc"] == "max"
