"""A MobileNetV2 prints at most a screen before it trains, and lists of faults fold by cause: whole runs."""

import json

import pytest

from tests.support.runs import main

MODULE = """
import keras
import tensorflow as tf

def build(name="trunk", include=True):
    x = keras.Input((32, 32, 3))
    trunk = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3))
    trunk.name = name
    y = keras.layers.GlobalAveragePooling2D()(trunk(x))
    return keras.Model(x, keras.layers.Dense(10, name="head")(y))

def preprocess(batch, training, seed):
    image = tf.image.grayscale_to_rgb(tf.cast(batch["image"], tf.float32) / 255)
    return {**batch, "image": tf.image.resize(image, (32, 32))}

def loss(model, batch, training):
    logits = model(batch["image"], training=training)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits), {}
"""
SCREEN = 45  # lines


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "wide").mkdir()
    (folder / "wide" / "__init__.py").touch()
    (folder / "wide" / "net.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield (
            "--model=wide.net",
            "--dataset=digits",
            f"--data_dir={folder}",
            "--batch_size=2",
            "--train_for=1",
            "--eval_split=none",
        )


def test_a_mobilenet_prints_a_screen_before_it_trains(flags, tmp_path, capsys):
    one = "--group=.* sgd 0.1"
    assert main(tmp_path / "run", *flags, one) == 0
    before = capsys.readouterr().out.partition("epoch ")[0].splitlines()
    assert len(before) < SCREEN
    row = next(line for line in before if line.startswith("trunk/block_3_*"))
    assert "15 variables, 6 of state" in row
    saved = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert len(saved["rows"]) == 262  # the whole

    assert main(None, *flags, one, "--mode=plan", "--full") == 0
    full = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("trunk/block_3_") for line in full) == 15
    many = [
        "--group=.*/kernel sgd 0.1",
        "--group=.*/gamma sgd 0.2",
        "--group=.* adam 0.1",
        "--layer_decay=0.9",
    ]
    assert main(None, *flags, *many, "--mode=plan") == 0
    folded = capsys.readouterr().out.splitlines()
    assert len(folded) < SCREEN
    assert any(line.startswith("trunk/block_*") and "16..1" in line for line in folded)

    # A restore adds its receipt, folded too; another model's checkpoint is a few lines, the advice last.
    source = f"--init_from={tmp_path / 'run'}"
    assert main(tmp_path / "second", *flags, one, source) == 0
    before = capsys.readouterr().out.partition("epoch ")[0].splitlines()
    assert len(before) < 2 * SCREEN
    assert "trunk/block_3_*" in "\n".join(before).partition("Plan:")[0]
    assert len(json.loads((tmp_path / "second" / "restore.json").read_text())["variables"]) == 262

    other = [flag for flag in flags if "--model" not in flag] + ["--model=wide.net(name='base')"]
    assert main(tmp_path / "run", *other, "--mode=evaluate", "--eval_split=train[:4]") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) < 8 and "+ 260 not in the checkpoint: base/" in said[1]
    assert said[-1].startswith("Give --model and its arguments")
    assert main(tmp_path / "run", *other, one, "--train_for=2") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) < 12 and "--accept_plan_change" in said[-1]
    assert any(line.startswith(" - 260 variables: trunk/") for line in said)
