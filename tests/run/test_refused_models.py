"""Refusals about models and their parts: one message, exit status 1, nothing read."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import run
from tests.support.refusals import says

ROOT = Path(run.__file__).parent


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mnist_cn", ["--model=mnist_cn", "mnist_cnn"]),
        ("no.such.module", ["--model=no.such.module", "no model module", "PYTHONPATH"]),
        ("os.path", ["--model=os.path", "build"]),
        ("mnist_cnn(filter=3)", ["--model=mnist_cnn(filter=3)", "filter", "filters"]),
        ("mnist_cnn(filters=", ["--model=mnist_cnn(filters=", "name(argument=value)"]),
        ("mnist_cnn(filters='many')", ["--model=mnist_cnn(filters='many')", "build"]),
        ("mnist_cnn(filters=0)", ["--model=mnist_cnn(filters=0)", "build", "ValueError"]),
        ("__main__.x", ["--model=__main__.x"]),
    ],
)
def test_a_model_that_cannot_be_had(refused, model, words):
    says(refused(model=model), *words)


SEQUENTIAL = """
def build():
    return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(name="flat"),
                             keras.layers.Dense(10, name="logits")])
"""


MODULES = {
    "no build": ("", "no function `build`", "build(**kwargs)"),
    "does not import": ("import no_such_package\n", "importing", "ModuleNotFoundError", "no_such_package"),
    "build raises": (
        "def build():\n    raise RuntimeError('out of luck')\n",
        "its build raised RuntimeError at",
        "net.py:5: out of luck",
    ),
    "build returns nothing": ("def build():\n    pass\n", "its build returned NoneType", "keras.Model"),
    "unbuilt": (
        "def build():\n    return keras.Sequential([keras.layers.Dense(9)])\n",
        "not built",
        "`build`",
    ),
    "no variables": ("def build():\n    return tf.Module()\n", "no variables"),
    "two of one name": (
        """
        class Twice(tf.Module):
            def __init__(self):
                super().__init__()
                self.parts = {"a": {"b": tf.Variable(1.0)}, "a/b": tf.Variable(2.0)}

        def build():
            return Twice()
        """,
        "two variables",
        "'parts/a/b'",
        "different names",
    ),
    "variable of no name": (
        """
        def build():
            model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Dense(10)])
            model._trainable_variables.append(keras.Variable(1.0, name="lost"))
            return model
        """,
        "lost",
        "attribute",
    ),
    "float64 variables": (
        """
        class Wide(tf.Module):
            def __init__(self):
                super().__init__()
                self.w = tf.Variable(tf.zeros([784, 10], tf.float64))

        def build():
            return Wide()
        """,
        "--precision=float32",
        "w is float64",
        "floatx",
    ),
}


@pytest.mark.parametrize("case", MODULES)
def test_a_module(refused, module, case):
    source, *words = MODULES[case]
    path = module(source)
    message = refused(model=path)
    says(message, *words)
    assert f"--model={path}" in message or "--precision" in message


def test_no_loss(refused, module):
    path = module(SEQUENTIAL, head="import keras\n")
    says(refused(model=path), f"--model={path}", "no function `loss`", "loss(model, batch, training)")


LOSSES = {
    "a mean": ("return tf.reduce_mean(values), {}", "the loss has shape ()", "one value per example ([32])"),
    "a matrix": ("return tf.stack([values, values], 1), {}", "shape (32, 2)", "[32]"),
    "half a batch": ("return values[:16], {}", "shape (16,)", "[32]"),
    "no tuple": ("return values", "its loss returned", "(loss [B], {metric"),
    "whole numbers": ("return tf.cast(values, tf.int32), {}", "int32", "not a float"),
    "a number": ("return 1.0, {}", "the loss has float", "[32]"),
    "metric of one value": ("return values, {'m': tf.reduce_mean(values)}", "metric 'm'", "shape ()", "[32]"),
    "weight of one value": ("return values, {'m': (values, tf.constant(1.0))}", "metric 'm'", "[32]"),
    "metric with three parts": ("return values, {'m': (values,) * 3}", "metric 'm'", "3 parts", "weight"),
    "metric named loss": ("return values, {'loss': values}", "a metric is called 'loss'", "another name"),
    "raises": ("return batch['picture'], {}", "its loss raised KeyError at", "net.py:12: 'picture'"),
    "no dependence": (
        "return tf.stop_gradient(values) + model.weights[1][0], {}",
        "logits/kernel",
        "no gradient",
        "--group='logits/kernel frozen'",
    ),
    "stray variable": ("return values * STRAY, {}", "stray", "no attribute of the model", "build"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_loss(refused, module, case):
    line, *words = LOSSES[case]
    path = module(
        SEQUENTIAL
        + textwrap.dedent(f"""
        STRAY = tf.Variable(1.0, name="stray")

        def loss(model, batch, training):
            values = tf.reduce_sum(model(tf.cast(batch["image"], tf.float32)), 1)
            {line}
        """),
        head="import keras\nimport tensorflow as tf\n",
    )
    message = refused(model=path)
    says(message, *words)
    assert message.startswith((f"--model={path}: ", "--group: ")) and "UserError" not in message


DECODES = {
    "raises": ("return {'image': example['picture']}", "decode raised", "picture"),
    "no dict": ("return example['image']", "--dataset=digits", "not a dict"),
    "no fixed shape": ("return {'x': tf.where(example['image'] > 0)}", "=digits", "cannot be batched"),
}


@pytest.mark.parametrize("case", DECODES)
def test_a_decode(refused, module, case):
    line, *words = DECODES[case]
    path = module(f"from models.mnist_mlp import build\ndef decode(example):\n    {line}\n")
    says(refused(model=path), *words)


def test_mixed_precision_for_a_plain_module(refused):
    says(refused("--precision=mixed_bfloat16"), "--precision=mixed_bfloat16", "Keras layer", "float32")


PROCESSES = {
    "before TensorFlow": (["--mode=trian"], "run.py: --mode=trian: not one of train, plan"),
    "after TensorFlow": (
        ["--model=mnist_cnn", "--dataset=digits", "--train_for=5", "--workdir={}", "--group=.* adm 0.1"],
        "run.py: --group=.* adm 0.1: no optimizer is called 'adm'. Did you mean adam",
    ),
    "with the model built": (
        [
            "--model=mnist_mlp",
            "--dataset=digits",
            "--train_for=5",
            "--workdir={}",
            "--group=hidden1/.* sgd 1",
        ],
        "run.py: --group: no rule covers hidden2/w, hidden2/b, logits/w, logits/b.",
    ),
}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("case", PROCESSES)
def test_a_process_says_one_message_and_nothing_else(tmp_path, case):
    arguments, start = PROCESSES[case]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    result = subprocess.run(
        [sys.executable, "run.py", *(a.format(tmp_path / "work") for a in arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(start) and result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "work").exists()
