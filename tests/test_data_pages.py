"""What docs/data.md and docs/augmentation.md show runs, word for word; augmentations are repeatable."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import run
import trainer
from tests.support.harness import mirrored
from trainer.flags.config import Config
from trainer.run.assemble import assemble

ROOT = Path(__file__).resolve().parents[1]


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL
    )


COMMANDS = [line for block in blocks("data.md", "sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory like the repository's root, with what the first command of the page writes."""
    place = tmp_path_factory.mktemp("pages")
    for name in ("examples", "models", "trainer", "datasets"):
        (place / name).symlink_to(ROOT / name)
    first = shlex.split(COMMANDS[0])
    subprocess.run([sys.executable, *first[1:]], cwd=place, check=True, capture_output=True)
    return place


def test_the_page_has_each_kind():
    text = " ".join(COMMANDS)
    for part in ("digits.npz", "/npy", "table.flags", "photos.flags", "records(", "own_data.arrays"):
        assert part in text


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS[1:])
def test_commands_of_the_page(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    words = shlex.split(command)
    assert words[:2] == ["python", "run.py"]
    workdir = [] if "--mode=plan" in words else [f"--workdir=runs/{abs(hash(command))}"]
    assert run.main([*words[1:], *workdir]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("data.md", "python"))
def test_code_of_the_page(code, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(code, "docs/data.md", "exec"), {})


# --- augmentation --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown():
    """Everything that the page on augmentation defines."""
    names = {}
    for code in blocks("augmentation.md", "python"):
        exec(compile(code, "docs/augmentation.md", "exec"), names)
    return names


def build():
    image = keras.Input((28, 28, 1), name="image")
    return keras.Model(
        image, keras.layers.Dense(10, name="logits")(keras.layers.Flatten(name="flatten")(image))
    )


def plain_loss(model, batch, training):
    logits = model(tf.cast(batch["image"], tf.float32), training=training)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits), {}


def parts(shown, kind):
    if kind == "flips":
        return {"build": build, "loss": plain_loss, "preprocess": shown["flip_and_crop"]}
    if kind == "mixup":
        return {"build": build, "loss": shown["mixed_loss"], "preprocess": shown["mixup"]}
    return {"build": shown["build_with_layers"], "loss": plain_loss}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flips", "mixup", "layers"])
def test_augmentations_are_repeated_after_a_restart(shown, kind):
    random = np.random.default_rng(0)
    data = {"image": random.integers(0, 256, (40, 28, 28, 1), np.uint8), "label": random.integers(0, 10, 40)}

    def trained(*chunks, seed=0, strategy=None):
        config = Config(
            model=trainer.ModelModule(**parts(shown, kind)), dataset=data, group=[".* sgd 1e-2"],
            batch_size=8, train_for=6, eval_split="none", seed=seed,
        )  # fmt: skip
        made = assemble(config, on=(strategy or tf.distribute.get_strategy(), ""))
        program, feed = made.program(), made.training_feed()
        train = program.trainer(made.parts.phases[0], feed)
        for start, n in chunks:
            train(feed.chunk(start, n), tf.constant(n))
        return np.concatenate([v.value.numpy().ravel() for v in made.built.variables if not v.random])

    whole = trained((0, 6))
    np.testing.assert_array_equal(whole, trained((0, 2), (2, 1), (3, 3)))
    assert not np.array_equal(whole, trained((0, 6), seed=1))
    assert np.isfinite(trained((0, 6), strategy=mirrored(2))).all()


def test_augmented_images_are_what_they_are_said_to_be(shown):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (64, 28, 28, 1), np.uint8)
    batch, seed = {"image": tf.constant(image), "label": tf.range(64)}, tf.constant([3, 4])
    same = shown["flip_and_crop"](batch, False, seed)["image"]
    np.testing.assert_allclose(same, image / 255, rtol=1e-6)
    one, other = (
        shown["flip_and_crop"](batch, True, tf.constant(s))["image"].numpy() for s in ([3, 4], [3, 5])
    )
    assert one.shape == (64, 28, 28, 1) and not np.array_equal(one, other)
    mixed = shown["mixup"](batch, True, seed)
    share, partner = mixed["share"].numpy(), mixed["other"].numpy()
    weight = share[:, None, None, None]
    np.testing.assert_allclose(
        mixed["image"], weight * image / 255 + (1 - weight) * image[partner] / 255, rtol=1e-4
    )
