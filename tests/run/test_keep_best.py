"""`--keep_best` keeps what is really the best, and `--checkpoint=best` finds the same one."""

import json

import keras
import numpy as np
import pytest

import trainer
from tests.support.runs import main
from trainer.checkpoints import manifest

MODULE = """
import keras
import tensorflow as tf

def build():
    x = keras.Input((28, 28, 1))
    return keras.Model(x, keras.layers.Dense(1, name="h")(keras.layers.Flatten()(x)))

def preprocess(batch, training, seed):
    return {"x": tf.cast(batch["image"], tf.float32) / 255, "y": tf.cast(batch["label"], tf.float32)}

def loss(model, batch, training):
    off = model(batch["x"], training=training)[:, 0] - batch["y"]
    return off**2, {"rmse": tf.abs(off)}
"""
FLAGS = (
    "--dataset=digits",
    "--train_split=train[:320]",
    "--eval_split=test[:50]",
    "--batch_size=32",
    "--group=.* sgd piecewise([6], [3e-4, 3e-2])",  # first better, then much worse
    "--train_for=12",
    "--eval_every=3",
    "--keep=1",
)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function of further lines -> `--model=` a module of them."""
    monkeypatch.syspath_prepend(tmp_path)

    def package(name, lines=""):
        (tmp_path / f"here_{name}").mkdir()
        (tmp_path / f"here_{name}" / "__init__.py").touch()
        (tmp_path / f"here_{name}" / "net.py").write_text(MODULE + lines)
        return f"--model=here_{name}.net"

    return package


def evaluations(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["rmse"] for line in lines if line["kind"] == "eval"}


def kept(workdir):
    return {entry.step for entry in manifest.scan(workdir / "checkpoints")}


def test_the_least_rmse_is_kept_and_found(tmp_path, data, module, capsys):
    model, run = module("plain"), tmp_path / "run"
    assert main(run, model, *FLAGS, data, "--keep_best=rmse") == 1
    said = capsys.readouterr().err
    assert "--keep_best=rmse:min or --keep_best=rmse:max" in said and not run.exists()
    assert main(run, model, *FLAGS, data, "--keep_best=rmse:min") == 0
    rmse = evaluations(run)
    best = min(rmse, key=rmse.get)
    assert best not in (max(rmse, key=rmse.get), 12) and kept(run) == {best, 12}
    few = [model, "--dataset=digits", data, "--mode=evaluate"]
    for asked in ([], ["--keep_best=rmse"], ["--keep_best=rmse:min"]):  # as recorded, or as given
        assert main(run, *few, "--checkpoint=best", *asked) == 0
        assert f"step-{best:09d}" in capsys.readouterr().out
    assert main(run, *few, "--checkpoint=best", "--keep_best=rmse:max") == 0
    assert "step-000000012" in capsys.readouterr().out


@pytest.mark.slow
def test_the_module_states_the_direction(tmp_path, data, module, capsys):
    model, run = module("stated", "\nbetter = {'rmse': 'min'}\n"), tmp_path / "run"
    assert main(run, model, *FLAGS, data, "--keep_best=rmse:max") == 1
    assert "the model module says better = {'rmse': 'min'}" in capsys.readouterr().err
    assert main(run, model, *FLAGS, data, "--keep_best=rmse") == 0
    rmse = evaluations(run)
    best = min(rmse, key=rmse.get)
    assert kept(run) == {best, 12}
    # A checkpoint of an earlier release recorded the flag alone: the module still says what is meant.
    few = ["--dataset=digits", data, "--mode=evaluate", "--checkpoint=best"]
    for path in (run / "checkpoints").glob("*/manifest.json"):
        forget(path)
    assert main(run, model, *few) == 0
    assert f"step-{best:09d}" in capsys.readouterr().out
    assert main(run, module("silent"), *few) == 1
    assert "--keep_best=rmse:min or --keep_best=rmse:max" in capsys.readouterr().err


def test_a_better_of_no_metric_is_refused(tmp_path, data, module, capsys):
    assert main(tmp_path / "run", module("wrong", "\nbetter = {'rsme': 'min'}\n"), *FLAGS, data) == 1
    assert "its better names 'rsme', no metric. Did you mean rmse?" in capsys.readouterr().err


def test_python_states_the_direction_too():
    def build():
        return keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])

    def loss(model, batch, training):
        off = model(batch["x"])[:, 0]
        return off**2, {"mae": abs(off)}

    def run(**more):
        module = trainer.ModelModule(build=build, loss=loss, **more)
        arrays = {"x": np.ones([8, 4], np.float32)}
        flags = {"group": ".* sgd 0.1", "batch_size": 4, "train_for": 2, "eval_split": "train"}
        return trainer.Run(model=module, dataset=arrays, keep_best="mae", **flags)

    run(better={"mae": "min"}).plan()
    with pytest.raises(trainer.UserError, match="--keep_best=mae:min"):
        run().plan()


def forget(path):
    """Leaves of a manifest what an earlier release recorded."""
    body = json.loads(path.read_text())
    del body["sha256"], body["meta"]["best_by"]
    path.write_text(json.dumps({**body, "sha256": manifest._seal(body)}))
