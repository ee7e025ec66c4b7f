"""`--mode=plan` refuses what training would; TensorFlow that a module starts; randomness by contract."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import run
from tests.support import harness, runs
from trainer.devices.strategy import strategy_for
from trainer.errors import UserError
from trainer.model.names import walk
from trainer.readers import open_source
from trainer.restore import rules
from trainer.restore.match import match

ROOT = Path(run.__file__).parent
FLAGS = (
    "--dataset=digits",
    "--batch_size=8",
    "--train_for=6",
    "--group=.*  adam  1e-2",
)


@pytest.mark.slow(but=4)
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--data_dir=/etc/passwd", "--data_dir=/etc/passwd: /etc/passwd is no directory"),
        ("--data_dir=/dev/null/x", "/dev/null is no directory"),
        ("--data_dir=xx://y", "no such kind of place"),
        ("--workdir=/etc/passwd", "--workdir=/etc/passwd: /etc/passwd is no directory"),
        ("--manual_dir=/nowhere", "--manual_dir=/nowhere: no such directory"),
        ("--train_for=1e300", "--train_for: 1e300: longer than any run can be"),
        ("--train_for=1e18", "--train_for: 1e18: longer than any run can be"),
        ("--train_for=1e11epochs", "--train_for: 100000000000epochs: is 1.8e+13 steps"),
        ("--train_for=\uff15", "--train_for: \uff15: not a length"),
        ("--model=mnist_mlp(hidden=0)", "hidden=0: must be a whole number from 1 to 65,536"),
        ("--model=mnist_mlp(hidden=True)", "hidden=True: must be a whole number"),
        ("--model=mnist_cnn(dropout=1)", "dropout=1: must be a number from 0 to less than 1"),
        ("--model=mnist_cnn(batch_norm='no')", "batch_norm='no': must be True or False"),
        ("--no_decay=(a+)+b", "--no_decay=(a+)+b"),
    ],
)
def test_plan_refuses_what_training_does(data, capsys, flag, words):
    for mode in ("plan", "train"):
        given = runs.last(
            *FLAGS, "--model=mnist_mlp(hidden=4)", data, "--workdir=unused", flag, f"--mode={mode}"
        )
        assert run.main(["run.py", *given]) == 1
        said = capsys.readouterr()
        assert words in said.err and said.out == ""
    assert not Path("unused").exists()


def test_a_pattern_without_end_in_a_rule_is_named(data, capsys, tmp_path, monkeypatch):
    (tmp_path / "long_name.py").write_text(
        "import keras\nimport tensorflow as tf\nfrom models.mnist_mlp import loss\n"
        "class Long(tf.Module):\n    pass\n"
        "def build():\n    model = Long()\n    setattr(model, 'a' * 300, tf.Variable(1.0))\n"
        "    return model\n"
    )
    (tmp_path / "package_of_long").mkdir()
    (tmp_path / "long_name.py").rename(tmp_path / "package_of_long/long_name.py")
    monkeypatch.syspath_prepend(tmp_path)
    model = "--model=package_of_long.long_name"
    groups = ["--group=(a+)+b adam 1", "--group=.* adam 1"]
    for flags, words in (
        (groups, "--group=(a+)+b adam 1: the pattern '(a+)+b' takes more than"),
        ([groups[1], "--no_decay=(a+)+b"], "--no_decay=(a+)+b: the pattern '(a+)+b' takes more than"),
    ):
        assert run.main(["run.py", "--mode=plan", *FLAGS[:-1], data, model, *flags]) == 1
        assert words in capsys.readouterr().err


def test_a_pattern_without_end_among_the_init_rules(tmp_path):
    model = tf.Module()
    model.w = tf.Variable(1.0)
    np.savez(tmp_path / "w.npz", **{"a" * 300: np.ones(2), "w": np.float32(1)})
    source = open_source(str(tmp_path / "w.npz"))
    given = {
        "only": ["(a+)+b"],
        "skip": ["(a+)+c"],
        "rename": ["(a+)+d -> x"],
        "adapt": ["(a+)+e mean_channels()"],
    }
    parsed = rules.parse(**given)
    assert [(flag, p.pattern) for flag, p in parsed.patterns()] == [
        (f"--init_{name}={text}", text.split()[0]) for name, (text,) in given.items()
    ]
    with pytest.raises(UserError, match=r"--init_rename=\(a\+\)\+d -> x: the pattern .* takes more than"):
        match(walk(model), source, rules.parse(rename=given["rename"]))


@pytest.mark.slow
def test_a_preprocess_that_draws_from_its_seed_agrees(data, capsys, tmp_path, monkeypatch):
    (tmp_path / "package_of_noise").mkdir()
    (tmp_path / "package_of_noise/net.py").write_text(
        "import tensorflow as tf\nfrom models.mnist_cnn import build, loss\n"
        "def preprocess(batch, training, seed):\n"
        "    image = tf.cast(batch['image'], tf.keras.backend.floatx()) / 255\n"
        "    noise = tf.random.stateless_normal(tf.shape(image), seed, dtype=image.dtype)\n"
        "    return {**batch, 'image': image + 0.1 * noise}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    choose = strategy_for

    def chosen(strategy, *rest):
        return (harness.mirrored(), "two") if strategy == "mirrored" else choose(strategy, *rest)

    monkeypatch.setattr("trainer.run.build.strategy_for", chosen)
    flags = ("--mode=verify_distribution", "--verify_steps=2", "--model=package_of_noise.net")
    assert runs.main(None, *FLAGS, data, *flags) == 0
    said = capsys.readouterr().out
    assert "preprocess draws from its seed in evaluation, too" in said and "OK: losses, gradients" in said


@pytest.mark.slow
def test_a_module_that_starts_tensorflow_at_import_can_have_virtual_devices(data, tmp_path):
    (tmp_path / "package_of_adapt").mkdir()
    (tmp_path / "package_of_adapt/net.py").write_text(
        "import keras\nfrom models.mnist_mlp import build, loss, preprocess\n"
        "lookup = keras.layers.StringLookup()\nlookup.adapt(['a', 'b'])\n"
    )
    flags = ("--mode=plan", "--strategy=mirrored", "--virtual_devices=2", "--model=package_of_adapt.net")
    done = subprocess.run(
        [sys.executable, "run.py", *FLAGS, data, *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "2 replicas on CPU:0, CPU:1" in done.stdout, done.stderr


def test_a_pipe_to_start_from_is_called_one(data, tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    given = (*FLAGS, data, "--model=mnist_mlp", "--mode=plan", f"--init_from={tmp_path / 'fifo'}")
    assert run.main(["run.py", *given]) == 1
    assert "fifo: is a pipe, a socket or a device" in capsys.readouterr().err
