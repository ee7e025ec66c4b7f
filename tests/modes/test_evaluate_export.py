"""What is done with a checkpoint after training: evaluated, exported; and `--mode=verify_resume`."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.runs import main, newest, records, state, two_replicas
from trainer.checkpoints import checkpoint
from trainer.checkpoints.lock import Lock
from trainer.modes import evaluate as mode

RUN = (
    "--batch_size=20",
    "--train_split=train[:300]",
    "--eval_split=test[:50]",
    "--dataset=digits",
    "--train_for=12",
    "--eval_every=4",
    "--save_every=4",
    "--keep_best=accuracy",
    "--ema=0.8",
)
MLP = ("--model=mnist_mlp(hidden=4)", "--group=.*  adam  1e-2")
NOISY = ("--model=tests.support.noisy", "--group=.*  adam  1e-2")


@pytest.fixture(scope="module")
def mlp(tmp_path_factory, data):
    workdir = tmp_path_factory.mktemp("mlp")
    assert main(workdir, *RUN, *MLP, data) == 0
    return workdir


@pytest.fixture(scope="module")
def noisy(tmp_path_factory, data):
    workdir = tmp_path_factory.mktemp("noisy")
    assert main(workdir, *RUN, *NOISY, data) == 0
    return workdir


@pytest.fixture
def evaluated(monkeypatch):
    """Runs the mode and returns the metrics, in full precision."""
    results = []
    here = mode.evaluate
    monkeypatch.setattr(mode, "evaluate", lambda *args: results.append(here(*args)) or results[-1])

    def run(workdir, *flags):
        assert main(workdir, "--mode=evaluate", *flags) == 0
        return results.pop().numbers

    return run


def logged(workdir, step, weights):
    """The metrics that training logged."""
    lines = [
        r for r in records(workdir) if r["kind"] == "eval" and r["step"] == step and r["weights"] == weights
    ]
    (line,) = lines
    return {name: line[name] for name in ("loss", "accuracy", "examples")}


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow(but=1)
def test_evaluation_gives_the_bits_that_training_logged(noisy, data, evaluated, monkeypatch):
    # The flags of the training, as in its flagfile; then only what it takes.
    before = contents(noisy)
    with Lock(noisy):  # training goes on beside it
        before = contents(noisy)
        assert evaluated(noisy, *RUN, *NOISY, data) == logged(noisy, 12, "raw")
        few = [
            "--model=tests.support.noisy",
            "--dataset=digits",
            "--eval_split=test[:50]",
            "--batch_size=20",
            data,
        ]
        assert evaluated(noisy, *few, "--weights=ema") == logged(noisy, 12, "ema")
        assert evaluated(noisy, *few, "--checkpoint=8") == logged(noisy, 8, "raw")
        best = max((4, 8, 12), key=lambda step: (logged(noisy, step, "ema")["accuracy"], step))
        assert evaluated(noisy, *few, "--checkpoint=best", "--weights=ema") == logged(noisy, best, "ema")
        assert contents(noisy) == before
    two_replicas(monkeypatch)
    both = evaluated(noisy, *few)
    assert both["loss"] == pytest.approx(logged(noisy, 12, "raw")["loss"], rel=1e-6)


@pytest.mark.slow(but=1)
def test_evaluation_from_a_checkpoint_alone(mlp, data, evaluated, capsys):
    assert evaluated(mlp, data) == logged(mlp, 12, "raw")
    assert "Flags as the checkpoint has them: '--model=mnist_mlp(hidden=4)'" in capsys.readouterr().out


def test_evaluation_passes_over_a_damaged_checkpoint_and_leaves_it(mlp, tmp_path, data, evaluated, capsys):
    workdir = shutil.copytree(mlp, tmp_path / "run")
    (newest(workdir).path / "data.index").write_bytes(b"")
    before = contents(workdir)
    assert evaluated(workdir, data) == logged(mlp, 8, "raw")
    assert "is damaged" in capsys.readouterr().out
    assert contents(workdir) == before


def test_a_checkpoint_that_training_deletes_meanwhile_is_not_missed(
    mlp, tmp_path, data, evaluated, monkeypatch
):
    workdir = shutil.copytree(mlp, tmp_path / "run")
    read = checkpoint.read

    def pruned(entry, names):
        if (workdir / "checkpoints" / "step-000000012").exists():
            shutil.rmtree(entry.path)
        return read(entry, names)

    monkeypatch.setattr(checkpoint, "read", pruned)
    assert evaluated(workdir, data) == logged(mlp, 8, "raw")


def test_evaluation_straight_from_a_file_by_the_rules(mlp, tmp_path, data, evaluated):
    values = {n.removeprefix("model/"): v for n, v in state(mlp).items() if n.startswith("model/")}
    np.savez(
        tmp_path / "w.npz", **{n.replace("logits", "head"): v for n, v in values.items()}, more=np.ones(3)
    )
    flags = [
        "--model=mnist_mlp(hidden=4)",
        "--dataset=digits",
        "--eval_split=test[:50]",
        "--batch_size=20",
        data,
    ]
    rules = ["--init_rename=logits/(.*) -> head/\\1", "--init_skip=more"]
    source = f"--init_from={tmp_path / 'w.npz'}"
    assert evaluated(None, *flags, source, *rules) == logged(mlp, 12, "raw")
    assert main(None, "--mode=evaluate", *flags, source) == 1  # without the rules it does not fit
    # An averaged run as the source, and a workdir of no checkpoint yet
    source = f"--init_from={mlp}"
    assert evaluated(tmp_path / "new", *flags, source, "--init_weights=ema") == logged(mlp, 12, "ema")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--checkpoint=5"], ["no checkpoint of step 5", "There is: 12, 8, 4"]),
        (["--checkpoint=last"], ["--checkpoint=last", "newest, best or a step", "12, 8, 4"]),
        (["--checkpoint=best", "--keep_best=f1:max"], ["was evaluated in 'f1'"]),
        (["--eval_split=none"], ["--eval_split=none"]),
        (["--eval_split=tset"], ["--eval_split=tset", "test"]),
        (
            ["--model=mnist_mlp(hidden=5)"],
            ["does not fit", " ~ hidden1/w: [784, 4] float32 in the checkpoint"],
        ),
        (["--model=mnist_cnn"], [" + conv1/kernel: not in the checkpoint", " - hidden1/w: only in"]),
        (["--weights=both"], ["--weights=both"]),
    ],
)
def test_what_cannot_be_evaluated_is_refused(mlp, data, capsys, flags, words):
    given = ["--model=mnist_mlp(hidden=4)", "--dataset=digits", data, *flags]
    assert main(mlp, "--mode=evaluate", *given) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


def test_weights_that_are_not_there_are_refused(noisy, tmp_path, data, capsys):
    assert main(tmp_path, "--mode=evaluate", "--model=mnist_mlp", "--dataset=digits") == 1
    assert "there is no checkpoint in" in capsys.readouterr().err
    assert main(None, "--mode=evaluate", "--model=mnist_mlp", "--dataset=digits") == 1
    assert "without --workdir or --init_from" in capsys.readouterr().err
    assert main(noisy, "--mode=evaluate") == 1  # a file does not choose what module is imported
    assert "--model=tests.support.noisy --dataset=digits" in capsys.readouterr().err
    flags = ["--model=mnist_mlp", "--dataset=digits", "--init_from=x.npz", "--weights=ema"]
    assert main(None, "--mode=evaluate", *flags) == 1
    assert "--init_weights" in capsys.readouterr().err
    entry = newest(noisy)
    bare = {n: tf.Variable(v) for n, v in checkpoint.read(entry, ["model/enc/kernel"]).items()}
    checkpoint.save(tmp_path / "checkpoints", 1, bare, {"flags": {"model": 3, "keep_best": ["x"]}})
    for flag, words in (("--weights=ema", "keeps no averages"), ("--checkpoint=best", "best in what?")):
        assert (
            main(tmp_path, "--mode=evaluate", "--model=tests.support.noisy", "--dataset=digits", data, flag)
            == 1
        )
        assert words in capsys.readouterr().err


# Export


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, (5, 28, 28, 1)).astype(np.uint8)


def by_hand(workdir, images, kind="model"):
    """The perceptron in NumPy, from raw images."""
    values = state(workdir)
    x = images.reshape(len(images), -1).astype(np.float32) / 255
    for layer in ("hidden1", "hidden2", "logits"):
        x = x @ values[f"{kind}/{layer}/w"] + values[f"{kind}/{layer}/b"]
        x = np.maximum(x, 0) if layer != "logits" else x
    return x


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("weights, kind", [("raw", "model"), ("ema", "ema")])
def test_a_saved_model_serves_raw_examples(mlp, tmp_path, data, images, weights, kind):
    target = tmp_path / "new" / "export"
    assert main(mlp, data, "--mode=export", f"--export_to={target}", f"--weights={weights}") == 0
    serve = tf.saved_model.load(target).signatures["serving_default"]
    assert serve.structured_input_signature[1] == {
        "image": tf.TensorSpec([None, 28, 28, 1], tf.uint8, "image")
    }
    outputs = serve(image=tf.constant(images))["outputs"]
    np.testing.assert_allclose(outputs, by_hand(mlp, images, kind), rtol=1e-4, atol=1e-5)
    assert [path.name for path in target.parent.iterdir()] == ["export"]


def test_a_keras_model_is_there_as_keras_too(noisy, tmp_path, data, images, capsys):
    target = tmp_path / "export"
    flags = ["--model=tests.support.noisy", "--dataset=digits", data, f"--export_to={target}"]
    assert main(noisy, "--mode=export", *flags) == 0
    assert "model.keras read back" in capsys.readouterr().out
    model = keras.models.load_model(target / "model.keras")
    np.testing.assert_array_equal(model.get_layer("enc").kernel, state(noisy)["model/enc/kernel"])
    outputs = tf.saved_model.load(target).signatures["serving_default"](image=tf.constant(images))["outputs"]
    np.testing.assert_allclose(model(images.astype(np.float32) / 255), outputs, rtol=1e-4, atol=1e-5)
    before = contents(target)
    assert main(noisy, "--mode=export", *flags) == 1
    assert "is there already" in capsys.readouterr().err
    assert contents(target) == before


@pytest.mark.slow
def test_the_modules_own_serve_decides(mlp, tmp_path, data, images, capsys):
    flags = ["--dataset=digits", data, "--mode=export"]
    target = tmp_path / "export"
    assert main(mlp, "--model=tests.support.forgetful", *flags, f"--export_to={target}") == 0
    outputs = tf.saved_model.load(target).signatures["serving_default"](image=tf.constant(images))
    np.testing.assert_array_equal(outputs["digit"], by_hand(mlp, images).argmax(-1))
    # The variables are the perceptron's. One that does not give the same twice is not left behind.
    target = tmp_path / "random"
    assert main(mlp, "--model=tests.support.forgetful(noise=1.0)", *flags, f"--export_to={target}") == 1
    assert "read back, gives another odds" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_export_that_fails_leaves_no_litter(mlp, tmp_path, data, monkeypatch, capsys):
    def full(holder, path, **_):
        tf.io.gfile.makedirs(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    assert main(mlp, data, "--mode=export", f"--export_to={tmp_path / 'out' / 'export'}") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(mlp, "--mode=export") == 1
    assert "--export_to=DIR" in capsys.readouterr().err


# --mode=verify_resume


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_verify_resume_says_ok(tmp_path, data, capsys, monkeypatch, replicas):
    flags = [*RUN, *(NOISY if replicas == 1 else MLP), data, "--mode=verify_resume", "--verify_steps=4"]
    if replicas == 2:
        two_replicas(monkeypatch)
    assert main(tmp_path / "run", *flags) == 0
    assert "OK: 4 steps without a break, and 2 + 2" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_verify_resume_names_what_differs(tmp_path, data, capsys):
    flags = [*RUN, "--model=tests.support.forgetful", "--group=.*  adam  1e-2", data]
    assert main(tmp_path / "run", *flags, "--mode=verify_resume") == 1
    said = capsys.readouterr().out
    assert "DIFFERENT: 6 steps" in said and "The first is model/hidden1/w, by up to" in said
    assert main(tmp_path / "run", *flags, "--mode=verify_resume", "--verify_steps=13") == 1
    assert "--verify_steps=13: the run has 12 steps" in capsys.readouterr().err
