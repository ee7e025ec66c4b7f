"""The Python door: the same runs as the command line's, and a process left as it was."""

import random
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.support import harness, runs

RULES = ["hidden.*/w adam cosine(1e-2, warmup=10%)", ".* sgd(momentum=0.9) 0.05"]


def images(count=120):
    return {k: v for k, v in harness.digits(count, "float32").items()}


def small(**flags):
    flags = {"eval_split": "train", "group": RULES, "batch_size": 20, "train_for": 12, **flags}
    return trainer.Run(model="mnist_mlp(hidden=8)", dataset=images(), **flags)


def same(one, other):
    assert one.keys() == other.keys()
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_the_two_doors_make_the_same_run(tmp_path):
    flags = {
        "dataset": "digits",
        "data_dir": str(tmp_path / "data"),
        "train_split": "train[:300]",
        "eval_split": "test[:50]",
        "batch_size": 30,
        "train_for": "2epochs",
        "log_every": 7,
        "seed": 3,
        "ema": 0.9,
        "clip_norm": 0.5,
        "accumulate": 2,
        "model": "mnist_mlp(hidden=8)",
    }
    command = [f"--{name}={value}" for name, value in flags.items()]
    assert runs.main(tmp_path / "command", *command, *[f"--group={rule}" for rule in RULES]) == 0
    run = trainer.Run(**flags, group=RULES, workdir=str(tmp_path / "python"))
    result = run.train()
    runs.assert_same(tmp_path / "command", tmp_path / "python")
    assert (tmp_path / "command/flags.txt").read_text().replace("command", "python") == (
        tmp_path / "python/flags.txt"
    ).read_text()
    last = runs.records(tmp_path / "python")[-1]
    assert result.metrics == {k: last[k] for k in result.metrics} and last["weights"] == "ema"
    raw = runs.records(tmp_path / "python")[-2]
    assert run.evaluate("ema") == result.metrics
    averages = {k.removeprefix("ema/"): v for k, v in runs.state(tmp_path / "python").items() if "ema/" in k}
    assert same({name: run.weights("ema")[name] for name in averages}, averages)
    assert run.evaluate() == {k: raw[k] for k in result.metrics}
    weights = {k.removeprefix("model/"): v for k, v in runs.state(tmp_path / "python").items()}
    assert same(run.weights(), {name: weights[name] for name in run.weights()})


@pytest.mark.slow
def test_nothing_is_printed_or_written_unasked(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run = small()
    run.plan(), run.train(), run.evaluate(), run.weights()
    said = capfd.readouterr()
    assert said.out == said.err == "" and list(tmp_path.iterdir()) == []
    small().train(progress=True)
    assert "Summary" in capfd.readouterr().out and list(tmp_path.iterdir()) == []


def surroundings():
    return (
        keras.config.floatx(),
        keras.config.dtype_policy().name,
        random.random(),
        np.random.random(),
        float(tf.random.uniform([])),
        float(keras.random.uniform([])),
        keras.layers.Dense(1).name,
    )


def test_the_process_is_as_before():
    def seeded():
        keras.utils.set_random_seed(5)
        keras.backend.clear_session()
        keras.config.set_dtype_policy("float32")
        keras.layers.Dense(1)

    seeded()
    expected = surroundings()
    run = small(precision="float64", seed=9)
    for call in (run.plan, run.train, run.evaluate, run.weights, lambda: run.model):
        seeded()
        call()
        assert surroundings() == expected
    assert run.weights()["hidden1/w"].dtype == np.float64


@pytest.mark.slow
def test_it_stops_and_goes_on_to_the_same_bits(tmp_path):
    whole = small()
    whole.train()
    for workdir in ("", str(tmp_path / "run")):
        run = small(workdir=workdir, log_every=5)
        first = run.train(on_log=lambda record: trainer.STOP)
        assert (first.step, first.stopped) == (5, True)
        second = run.train(on_evaluation=lambda record: trainer.STOP)
        assert (second.steps, second.step, second.metrics != {}) == (1, 6, True)
        third = run.train()
        assert (third.step, third.stopped) == (12, False)
        assert same(run.weights(), whole.weights())
        assert run.train().metrics == third.metrics != {}  # finished


@pytest.mark.slow
def test_an_interrupt_saves_then_goes_up(tmp_path):
    def interrupt(record):
        raise KeyboardInterrupt

    whole = small()
    whole.train()
    run = small(workdir=str(tmp_path / "run"), log_every=5)
    with pytest.raises(KeyboardInterrupt):
        run.train(on_log=interrupt)
    assert runs.newest(tmp_path / "run").step == 5
    again = small(workdir=str(tmp_path / "run"), log_every=5)
    again.train()
    assert same(again.weights(), whole.weights())
    kept = small(log_every=5)
    with pytest.raises(KeyboardInterrupt):
        kept.train(on_log=interrupt)
    assert kept.train().steps == 7 and same(kept.weights(), whole.weights())


def test_a_hook_that_fails_is_a_warning():
    def fail(record):
        raise OSError("no room")

    with pytest.warns(RuntimeWarning, match="on_log raised OSError at step 10: no room"):
        assert small(log_every=10).train(on_log=fail).step == 12


@pytest.mark.slow
def test_from_a_thread_and_one_after_another():
    results = {}

    def work(name, **flags):
        run = small(**flags)
        run.train()
        results[name] = run.weights()

    for name in ("first", "second"):
        thread = threading.Thread(target=work, args=(name,))
        thread.start()
        thread.join()
    work("here")
    work("two", strategy="mirrored", virtual_devices=2, precision="float64")
    work("four", strategy="mirrored", virtual_devices=4, precision="float64")
    work("one", precision="float64")
    assert same(results["first"], results["second"]) and same(results["first"], results["here"])
    for name, value in results["one"].items():
        for other in ("two", "four"):
            np.testing.assert_allclose(results[other][name], value, rtol=0, atol=1e-12)


def test_devices_that_the_process_does_not_have_are_refused():
    with pytest.raises(trainer.UserError, match=r"--virtual_devices=9: TensorFlow has started with"):
        small(strategy="mirrored", virtual_devices=9, batch_size=90).train()


def test_a_module_and_things_with_build_and_loss_are_models():
    from models import mnist_mlp

    class Own:
        build, loss, preprocess = mnist_mlp.build, mnist_mlp.loss, mnist_mlp.preprocess

    data = {**images(), "image": (images()["image"] * 255).astype("uint8")}
    flags = {"dataset": data, "eval_split": "none", "group": [".* adam 1e-3"], "train_for": 3}
    ours, theirs = trainer.Run(model=mnist_mlp, **flags), trainer.Run(model=Own, **flags)
    ours.train(), theirs.train()
    assert same(ours.weights(), theirs.weights())
    assert ours.model.hidden1.w.shape == (784, 64)


def test_things_of_python_are_asked_for_again(tmp_path, capsys):
    from models import mnist_mlp

    data = {**images(), "image": (images()["image"] * 255).astype("uint8")}
    run = trainer.Run(
        model=mnist_mlp, dataset=data, eval_split="none", group=[".* adam 1e-3"], train_for=3,
        workdir=str(tmp_path),
    )  # fmt: skip
    run.train()
    assert runs.main(tmp_path, "--mode=evaluate") == 1
    assert "was given its model in Python, so it must be given again" in capsys.readouterr().err
    assert "# --model was a thing of Python: <models.mnist_mlp>" in (tmp_path / "flags.txt").read_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"modl": "x"}, ["--modl: no such flag", "model"]),
        ({"batch_size": "128"}, ["--batch_size='128'", "a whole number"]),
        ({"jit_compile": 1}, ["--jit_compile=1", "True or False"]),
        ({"group": [1]}, ["--group=[1]", "a list of text"]),
        ({"mode": "plan"}, ["--mode=plan", "methods"]),
        ({"layer_decay": 2.0}, ["--layer_decay=2.0"]),
    ],
)
def test_what_no_run_can_use_is_refused_at_once(flags, words):
    with pytest.raises(trainer.UserError) as error:
        trainer.Run(**flags)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_run_cannot_be_evaluated_on_nothing():
    with pytest.raises(trainer.UserError, match="--eval_split=none"):
        small(eval_split="none").evaluate()
    with pytest.raises(trainer.UserError, match="--weights=ema: this run keeps no averages"):
        small().evaluate("ema")
    with pytest.raises(trainer.UserError, match="--weights=best: not one of"):
        small().weights("best")


@pytest.mark.slow
def test_weights_before_training_are_those_that_it_starts_from(tmp_path):
    trained = small(workdir=str(tmp_path / "run"))
    trained.train()
    assert same(small(workdir=str(tmp_path / "run")).weights(), trained.weights())
    assert same(small(init_from=str(tmp_path / "run")).weights(), trained.weights())
    assert not same(small().weights(), trained.weights())
    assert Path(tmp_path / "run/restore.json").exists() is False
