"""Code of the user's own that fails, wherever it is called: one message with its line, and never status 0."""

import threading
import warnings

import numpy as np
import pytest
import tensorflow as tf

import run
import trainer
from tests.support import harness, runs
from trainer.errors import UserError, blame, guarded, message_of
from trainer.report.reporter import Hooks, Reporter
from trainer.report.screen import Screen

HEAD = """
import sys
import keras
import tensorflow as tf
from models.mnist_mlp import build, loss, preprocess

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("cannot be shown")

class Own(BaseException):
    pass

"""
BASE = ("--dataset=digits", "--batch_size=32", "--train_for=2", "--train_split=train[:64]")
RULE = "--group=.* sgd 0.1"
PLACES = {
    "import": "{}\n",
    "build": "def build():\n    {}\n",
    "loss": "def loss(model, batch, training):\n    {}\n",
    "preprocess": "def preprocess(batch, training, seed):\n    {}\n",
    "decode": "def decode(example):\n    {}\n",
    "check": "def check(model, features):\n    {}\n",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function of source -> the dotted name of a module that holds it after `HEAD`."""
    monkeypatch.syspath_prepend(tmp_path)
    package = f"own_{tmp_path.name}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")

    def write(source):
        (tmp_path / package / "part.py").write_text(HEAD + source)
        return f"{package}.part"

    return write


@pytest.fixture
def refused(tmp_path, data_dir, capsys):
    """A function of flags -> the message; nothing is trained and the status is not 0."""

    def call(*flags):
        given = runs.last(*BASE, "--model=mnist_mlp(hidden=4)", f"--data_dir={data_dir}", *flags)
        status = run.main(["run.py", *given, f"--workdir={tmp_path / 'work'}"])
        said = capsys.readouterr()
        assert status == 1 and not list(tmp_path.glob("work/checkpoints/step-*"))
        assert said.err.startswith("run.py: ") and said.err.count("\n") == 1, said.err
        return said.err

    return call


@pytest.mark.parametrize("place", PLACES)
def test_sys_exit_with_status_0_is_no_success(refused, module, place):
    message = refused(f"--model={module(PLACES[place].format('sys.exit(0)'))}", RULE)
    assert "called sys.exit(0)" in message and "Remove the call" in message
    # AutoGraph does not trace back what is no Exception: there the function is named.
    assert "part.py:1" in message or f"in {place}" in message


@pytest.mark.parametrize(
    "statement", ["raise Mute()", "raise Own('own words')", "raise MemoryError", "exit()"]
)
@pytest.mark.parametrize("place", ["import", "build"])
def test_whatever_is_raised_is_one_message(refused, module, place, statement):
    message = refused(f"--model={module(PLACES[place].format(statement))}", RULE)
    assert "part.py:1" in message and ("raised" in message or "called sys.exit" in message)


def test_control_characters_of_an_error_do_not_reach_the_terminal(refused, module):
    message = refused(f"--model={module('raise ValueError(chr(27) + chr(7) + chr(0x202e))')}", RULE)
    assert r"\x1b\x07\u202e" in message and message.strip().isprintable()


@pytest.mark.parametrize(
    "source",
    [
        "sys.exit(0)",
        "def mine(rate):\n    sys.exit(0)",
        "def mine(rate):\n    return lambda step: sys.exit(0)",
        "def mine(rate):\n    raise Mute()",
        "raise Mute()",
    ],
)
def test_a_schedule(refused, module, source):
    message = refused(f"--group=.* sgd {module(source)}.mine(0.1)")
    assert "part.py:1" in message and (
        "called sys.exit(0)" in message or "Mute that cannot be shown" in message
    )


def test_a_schedule_that_tells_no_signature(refused):
    assert "tells no signature" in refused("--group=.* sgd math.hypot(1)")


BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class Mine(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        {info}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(dict(
            image=tfds.features.Image(shape=(28, 28, 1)), label=tfds.features.ClassLabel(num_classes=10))))
    def _split_generators(self, dl_manager):
        {splits}
        return dict(train=self._generate_examples(), test=self._generate_examples())
    def _generate_examples(self):
        {examples}
        for i in range(64):
            yield i, dict(image=np.zeros((28, 28, 1), np.uint8), label=i % 10)
"""


@pytest.mark.parametrize(
    ("place", "statement", "words"),
    [
        ("info", "sys.exit(0)", "its builder called sys.exit(0) at"),
        ("info", "raise Mute()", "its builder raised Mute at"),
        ("splits", "raise KeyError('lost')", "its builder raised KeyError at"),
        ("splits", "return {}", ""),
        ("examples", "raise Own('own words')", "own words"),
        ("examples", "sys.exit(0)", "its builder called sys.exit(0) at"),
    ],
)
def test_a_builder(refused, module, tmp_path, place, statement, words):
    parts = {**dict.fromkeys(("info", "splits", "examples"), "pass"), place: statement}
    name = module(BUILDER.format(**parts))
    message = refused(f"--dataset={name}.Mine", f"--data_dir={tmp_path / 'own'}", RULE)
    assert f"--dataset={name}.Mine" in message and words in message, message


def test_hooks_that_fail_or_leave_are_told_of_and_the_run_goes_on(capsys):
    def leaves(record):
        raise SystemExit(0)

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    def mute(record):
        raise Mute

    with Reporter(None, 2, 2.0, Screen(), Hooks(leaves, mute)) as reporter:
        reporter.log({"step": 1, "loss": 1.0, "examples_per_second": 1.0})
        reporter.evaluation({"step": 1, "loss": 1.0})
    said = capsys.readouterr().out
    assert "on_log raised SystemExit at step 1: 0" in said
    assert "on_evaluation raised Mute at step 1: a Mute that cannot be shown" in said


def test_a_run_in_a_thread_trains_and_says_what_it_cannot_do():
    def build():
        import keras

        return keras.Sequential([keras.Input([3]), keras.layers.Dense(1, name="head")])

    def loss(model, batch, training):
        return model(batch["x"])[:, 0] ** 2, {}

    own = trainer.Run(
        model=trainer.ModelModule(build=build, loss=loss),
        dataset={"x": np.ones([8, 3], np.float32)},
        group=".* sgd 0.1",
        batch_size=4,
        train_for=2,
        eval_split="none",
    )
    found = []

    def work():
        try:
            own.train(signals=True)
        except UserError as error:
            found.append(str(error))
        found.append(own.train().step)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "signals=True" in found[0] and found[1] == 2


def test_a_metric_of_unknown_shape_is_told_what_to_do():
    def loss(model, batch, training):
        values = model(batch["x"])[:, 0] ** 2
        return values, {"m": tf.py_function(lambda v: v, [values], tf.float32)}

    def build():
        import keras

        return keras.Sequential([keras.Input([3]), keras.layers.Dense(1, name="head")])

    with pytest.raises(UserError, match=r"the metric 'm' has a shape that is known only .*tf\.ensure_shape"):
        harness.make(build, loss, [".* sgd 0.1"], {"x": np.ones([8, 3], np.float32)}, 2)


def test_a_model_of_keras_2_is_named_as_one():
    tf_keras = pytest.importorskip("tf_keras")

    def build():
        return tf_keras.Sequential([tf_keras.Input([3]), tf_keras.layers.Dense(1)])

    class Around(tf.Module):
        def __init__(self):
            super().__init__()
            self.inner = [tf_keras.layers.Dense(1)]
            self.inner[0].build([None, 3])

    for made in (build, Around):
        with pytest.raises(UserError, match=r"of Keras 2 \(tf_keras\).*USE_LEGACY_KERAS.*import keras"):
            harness.make(made, lambda *_: None, [".* sgd 0.1"], {"x": np.ones([8, 3], np.float32)}, 2)


def test_guarded_lets_a_keyboard_interrupt_and_a_refusal_through():
    def interrupted():
        raise KeyboardInterrupt

    def refusing():
        raise UserError("own words \x1b")

    with pytest.raises(KeyboardInterrupt):
        guarded(interrupted, "x")
    with pytest.raises(UserError, match=r"^own words \\x1b$"):
        guarded(refusing, "x")


def test_what_an_error_says_of_itself():
    assert message_of(ValueError("a\n  b")) == "a b"
    assert len(message_of(ValueError("x" * 5000))) == 1000
    assert blame(SystemExit(0)).startswith("called sys.exit(0)")
    assert "(5,000 characters)" in str(UserError("--seed=" + "9" * 4993))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(UserError("\udcff")) == r"\udcff"
