"""Exports of what is no plain array model: lookups, raw text, encoded images, TFLite."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.support import framed, worded
from tests.support.runs import main
from trainer.modes import export

MLP = ("--model=mnist_mlp(hidden=4)", "--dataset=digits", "--group=.* adam 1e-2", "--train_for=2")


@pytest.fixture(scope="module")
def mlp(tmp_path_factory, data):
    workdir = tmp_path_factory.mktemp("mlp")
    assert main(workdir, *MLP, data) == 0
    return workdir


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """The data set of texts under a name, for the command line; a run's model and workdir."""
    run = trainer.Run(
        model=worded, dataset=worded.arrays(), eval_split="train", group=[".* adam 0.1"], batch_size=8,
        train_for=20, workdir=str(tmp_path / "run"),
    )  # fmt: skip
    run.train()
    monkeypatch.setattr(export, "open_source", lambda config: trainer.Arrays(train=worded.arrays()))
    return run, tmp_path / "run"


def served(path, name="serving_default", **arguments):
    call = tf.saved_model.load(str(path)).signatures[name]
    return {n: t.numpy() for n, t in call(**{k: tf.constant(v) for k, v in arguments.items()}).items()}


@pytest.mark.slow
def test_raw_text_goes_in_and_words_come_out(texts, tmp_path, capsys):
    run, workdir = texts
    target = tmp_path / "export"
    flags = ["--mode=export", "--model=tests.support.worded", "--dataset=texts", "--train_split=train"]
    assert main(workdir, *flags, f"--export_to={target}") == 0, capsys.readouterr().err
    raw = ["  good great ", "poor bad", ""]
    odds = tf.nn.softmax(run.model(tf.constant([text.strip() for text in raw]))).numpy()
    found = served(target, text=raw)
    np.testing.assert_allclose(found["odds"], odds, rtol=1e-5)
    assert found["class"].tolist() == [[b"no", b"yes"][k] for k in odds.argmax(1)]
    stripped = served(target, "decoded", text=[text.strip() for text in raw])
    np.testing.assert_allclose(stripped["odds"], odds, rtol=1e-5)
    # Keras's file is the model alone; it brings the lookup with it.
    alone = keras.models.load_model(target / "model.keras")(tf.constant(["good great"]))
    np.testing.assert_allclose(tf.nn.softmax(alone), odds[:1], rtol=1e-5)
    readme = (target / "README.md").read_text()
    assert "`serving_default` takes text string[None]" in readme and "odds float32[None, 2]" in readme
    # TFLite has no such operations: which, is said.
    assert main(workdir, *flags, "--export_format=tflite", f"--export_to={tmp_path / 'lite'}") == 1
    said = capsys.readouterr().err
    assert "tflite: TFLite has no " in said and "RegexReplace" in said and said.count("\n") == 1
    assert not (tmp_path / "lite").exists()


TABLES = """
import keras
import tensorflow as tf
from models import mnist_mlp
from models.mnist_mlp import loss

names = keras.layers.StringLookup(vocabulary=[str(n) for n in range(10)], num_oov_indices=0)
parts = {{"scale": [tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["half"], [0.5]), 1.0)]}}


def build():
    return mnist_mlp.build(hidden=4)


def preprocess(batch, training, seed):
    image = tf.cast(batch["image"], tf.float32) / 255
    return {{**batch, "image": image * parts["scale"][0].lookup(tf.constant("half"))}}


def serve(model, batch):
    digit = tf.argmax(model(batch["image"]), -1)
    return {{"index": names(tf.strings.as_string(digit)), "digit": digit}}
"""


@pytest.mark.slow
def test_tables_beside_the_model_are_exported(mlp, data, tmp_path, monkeypatch):
    (tmp_path / "tables.py").write_text(TABLES.replace("{{", "{").replace("}}", "}"))
    target = tmp_path / "export"
    flags = [f"--model={tmp_path}/tables.py", "--dataset=digits", data, "--mode=export"]
    assert main(mlp, *flags, f"--export_to={target}") == 0
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1)).astype(np.uint8)
    found = served(target, image=images)
    assert np.array_equal(found["index"], found["digit"])


def test_encoded_images_give_what_arrays_give(mlp, data, tmp_path):
    target = tmp_path / "export"
    flags = ["--model=mnist_mlp(hidden=4)", "--dataset=digits", data, "--mode=export"]
    assert main(mlp, *flags, "--export_format=saved_model,tflite", f"--export_to={target}") == 0
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1)).astype(np.uint8)
    plain = served(target, image=images)["outputs"]
    files = [tf.io.encode_png(image).numpy() for image in images]
    np.testing.assert_array_equal(served(target, "encoded", image=files)["outputs"], plain)
    call = tf.lite.Interpreter(model_path=str(target / "model.tflite")).get_signature_runner()
    np.testing.assert_allclose(call(image=images)["outputs"], plain, rtol=1e-4, atol=1e-5)
    readme = (target / "README.md").read_text()
    assert "`model.tflite` takes image uint8[None, 28, 28, 1]" in readme and "`model.keras`" not in readme
    assert "`encoded` takes image string[None]" in readme


@pytest.mark.slow
def test_images_of_any_size_go_in_as_files(tmp_path, data):
    workdir, target = tmp_path / "run", tmp_path / "export"
    name = ["--model=tests.support.framed", "--dataset=tests.support.framed_builder", data]
    flags = [*name, "--eval_split=none", "--batch_size=4", "--train_for=3", "--group=.* adam 1e-2"]
    assert main(workdir, *flags) == 0
    assert main(workdir, *name, "--mode=export", f"--export_to={target}") == 0
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((30, 20), (7, 9))]
    found = served(target, image=[tf.io.encode_png(image).numpy() for image in images])["outputs"]
    decoded = np.stack([framed.decode({"image": image, "label": 0})["image"] for image in images])
    np.testing.assert_allclose(found, served(target, "decoded", image=decoded)["outputs"], rtol=1e-6)
    assert "`serving_default` takes image string[None]" in (target / "README.md").read_text()


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--export_format=onnx", "'onnx' is none"),
        ("--export_format=saved_model,keras", "no Keras model"),
    ],
)
def test_formats_that_there_are_not_are_refused(mlp, data, tmp_path, capsys, flag, words):
    flags = ["--model=mnist_mlp(hidden=4)", "--dataset=digits", data, "--mode=export"]
    assert main(mlp, *flags, flag, f"--export_to={tmp_path / 'out'}") == 1
    assert words in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_the_case_of_a_lookup_in_the_model(tmp_path, data, monkeypatch):
    from pathlib import Path

    cases = Path(__file__).resolve().parents[3] / "shared" / "cases"
    if not cases.is_dir():
        pytest.skip("the cases are not here")
    monkeypatch.syspath_prepend(str(cases))
    flags = ["--model=cases.lookup", "--dataset=digits", data]
    train = ["--batch_size=32", "--train_for=2", "--group=.* adam 1e-2", "--eval_split=none"]
    serve = tmp_path / "export"
    assert main(tmp_path / "run", *flags, *train) == 0
    assert main(tmp_path / "run", *flags, "--mode=export", f"--export_to={serve}") == 0
    images = np.zeros([2, 28, 28, 1], np.uint8)
    assert served(serve, image=images, label=np.array([1, 7]))["outputs"].shape == (2, 10)
