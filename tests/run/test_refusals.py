"""Every refusal: exit status 1, one message that names the flag, its value and what to do, no data read."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import run
from tests.support.runs import last
from trainer.data.sources.tfds import TfdsSource, open_dataset
from trainer.data.streaming import Streaming

ROOT = Path(run.__file__).parent
BASE = {
    "model": "mnist_mlp(hidden=4)",
    "dataset": "digits",
    "train_for": "20steps",
    "batch_size": "32",
}
ALL = "--group=.* sgd constant(0.1)"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    open_dataset("digits", str(path)).prepare()
    return path


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path, data_dir):
    """A function of flags (those of `BASE` may be replaced, or left out by `None`) -> the message."""

    def read(*_args, **_kwargs):
        pytest.fail("examples were read, or a data set was prepared, before the refusal")

    monkeypatch.setattr("trainer.data.resident.load", read)
    monkeypatch.setattr("trainer.data.sources.tfds._records", read)
    monkeypatch.setattr(Streaming, "chunk", read)
    monkeypatch.setattr(TfdsSource, "prepare", lambda dataset: dataset.prepared or read())

    def call(*arguments, groups=(ALL,), **values):
        flags = {**BASE, "data_dir": data_dir, "workdir": tmp_path / "work", **values}
        given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        plain = all(argument.startswith("--") and "=" in argument for argument in arguments)
        given = last(*given, *groups, *arguments) if plain else [*given, *groups, *arguments]
        status = run.main(["run.py", *given])
        shown = capsys.readouterr()
        assert status == 1
        assert shown.err.startswith("run.py: ") and "Traceback" not in shown.err + shown.out
        assert shown.out == "" and not (tmp_path / "work").exists()
        return shown.err.removeprefix("run.py: ").strip()

    return call


@pytest.fixture
def module(monkeypatch, tmp_path):
    """A function of a model module's source -> the dotted path to name it by."""

    def write(source, head="import keras\nimport tensorflow as tf\nfrom models.mnist_mlp import loss\n"):
        package = re.sub(r"\W", "_", f"in_{tmp_path.parent.name}_{tmp_path.name}")
        (tmp_path / package).mkdir()
        (tmp_path / package / "net.py").write_text(head + textwrap.dedent(source))
        monkeypatch.syspath_prepend(tmp_path)
        return f"{package}.net"

    return write


def says(message, *words):
    """Each of `words` stands in the message, in this order."""
    place = 0
    for word in words:
        found = message.find(word, place)
        assert found >= 0, f"{word!r} is not in (the rest of): {message}"
        place = found + len(word)


# --- the command line ---


def test_no_argument_at_all(capsys):
    assert run.main(["run.py"]) == 1
    says(capsys.readouterr().err, "run.py: --workdir", "runs/mnist")


COMMAND_LINE = {
    "stray positional argument": (["train"], "'train': not a flag", "--NAME=VALUE"),
    "stray argument after --": (["--", "now"], "'now': not a flag"),
    "unknown flag": (["--bach_size=3"], "--bach_size", "no such flag", "batch_size"),
    "absl's flag that hides misspelt ones": (["--undefok=grup", "--grup=x"], "--undefok=grup", "Remove it"),
    "no number": (["--batch_size=many"], "--batch_size=many", "a whole number"),
    "no truth value": (["--jit_compile=perhaps"], "--jit_compile=perhaps", "true or false"),
    "no real number": (["--clip_norm=1,5"], "--clip_norm=1,5", "a number"),
    "no value": (["--seed"], "seed", "VALUE"),
    "unknown mode": (["--mode=trian"], "--mode=trian", "train"),
    "unknown precision": (["--precision=float16"], "--precision=float16", "mixed_float16"),
    "missing flagfile": (["--flagfile=none.flags"], "none.flags", "cannot be read"),
    "missing flagfile as two words": (["--flagfile", "none.flags"], "none.flags", "cannot be read"),
    "batch size 0": (["--batch_size=0"], "--batch_size=0", "from 1"),
    "negative seed": (["--seed=-1"], "--seed=-1", "from 0"),
    "accumulate 0": (["--accumulate=0"], "--accumulate=0", "from 1"),
    "clip at 0": (["--clip_norm=0"], "--clip_norm=0", "above 0"),
    "clip at NaN": (["--clip_norm=nan"], "--clip_norm=nan", "finite"),
    "average of 1": (["--ema=1"], "--ema=1", "0.999"),
    "layer decay of 0": (["--layer_decay=0"], "--layer_decay=0", "0.75"),
    "layer decay above 1": (["--layer_decay=1.5"], "--layer_decay=1.5", "at most 1"),
    "layer decay NaN": (["--layer_decay=nan"], "--layer_decay=nan", "0.75"),
}


@pytest.mark.parametrize("case", COMMAND_LINE)
def test_command_line(refused, case):
    arguments, *words = COMMAND_LINE[case]
    says(refused(*arguments), *words)


FLAGFILES = {
    "trailing comment": ("--seed=3  # lucky", ":2", "# lucky", "line of its own"),
    "comment after a rule": ("--group=.* frozen # for now", "# for now", "line of its own"),
    "indented comment": ("  # a note", "# a note", "first column"),
    "second flag": ("--seed=3 --keep=2", "--keep", "line of its own"),
    "second flag, misspelt": ("--workdir=runs/a --bach_size=3", "--bach_size", "line of its own"),
    "quotes": ("--group='.* frozen'", "quotes", "Remove them"),
    "double quotes": ('--model="mnist_cnn"', "quotes", "Remove them"),
    "no flag": ("seed=3", "seed=3", "not a flag"),
    "unknown flag": ("--sed=3", "--sed", "no such flag", "seed"),
    "hidden misspelling": ("--undefok=sed", "undefok", "Remove it"),
}


@pytest.mark.parametrize("case", FLAGFILES)
def test_flagfile(refused, tmp_path, case):
    line, *words = FLAGFILES[case]
    path = tmp_path / "run.flags"
    path.write_text(f"# good\n{line}\n")
    message = refused(f"--flagfile={path}")
    says(message, *words)
    assert str(path) in message or "no such flag" in message


def test_circular_flagfile(refused, tmp_path):
    one, two = tmp_path / "one.flags", tmp_path / "two.flags"
    one.write_text(f"--flagfile={two}\n")
    two.write_text(f"--flagfile={one}\n")
    says(refused(f"--flagfile={one}"), f"--flagfile={one}", "includes itself", str(two))


# --- flags that would do nothing ---

NO_EFFECT = {
    "plan_out": (["--plan_out=plan.json"], "--plan_out=plan.json", "--mode=plan"),
    "export_to": (["--export_to=there"], "--export_to=there", "--mode=export"),
    "export_to in plan": (["--mode=plan", "--export_to=there"], "--export_to=there", "--mode=export"),
    "checkpoint": (["--checkpoint=best"], "--checkpoint=best", "--mode=evaluate or --mode=export"),
    "weights": (["--weights=ema"], "--weights=ema", "--mode=evaluate"),
    "verify_steps": (["--verify_steps=9"], "--verify_steps=9", "--mode=verify_resume"),
    "accept_plan_change": (["--mode=inspect", "--accept_plan_change"], "--accept_plan_change", "--mode=plan"),
    "init_only": (["--init_only=conv.*"], "--init_only=conv.*", "without --init_from", "--init_from=PATH"),
    "init_skip": (["--init_skip=conv.*"], "--init_skip=conv.*", "--init_from=PATH"),
    "init_rename": (["--init_rename=a -> b"], "--init_rename=a -> b", "--init_from=PATH"),
    "init_cast": (["--init_cast"], "--init_cast", "--init_from=PATH"),
    "init_adapt": (["--init_adapt=a mean()"], "--init_adapt=a mean()", "--init_from=PATH"),
    "init_weights": (["--init_weights=ema"], "--init_weights=ema", "--init_from=PATH"),
    "rules for no model": (
        ["--mode=inspect", "--init_from=x.npz", "--init_only=a"],
        "--init_only=a",
        "--mode=inspect",
        "--model",
    ),
    "keep_best": (["--keep_best=accuracy", "--eval_split=none"], "--keep_best=accuracy", "--eval_split"),
    "eval_every": (["--eval_every=5", "--eval_split=none"], "--eval_every=5", "--eval_split=none"),
    "communication": (["--communication=ring"], "--communication=ring", "--strategy=multi_worker"),
    "overflows unchecked": (
        ["--precision=mixed_float16", "--on_nonfinite=off"],
        "--on_nonfinite=off",
        "mixed_float16",
        "skip",
    ),
    "no_decay without decay": (["--no_decay=.*/b"], "--no_decay=.*/b", "adamw(weight_decay=1e-4)"),
}


@pytest.mark.parametrize("case", NO_EFFECT)
def test_a_flag_without_effect(refused, case):
    arguments, *words = NO_EFFECT[case]
    says(refused(*arguments, model=None if "no model" in case else BASE["model"]), *words)


# --- what must be given, and for how long ---

MISSING = {
    "model": (dict(model=None), "--model", "mnist_cnn"),
    "dataset": (dict(dataset=None), "--dataset", "digits"),
    "train_for": (dict(train_for=None), "--train_for", "3epochs"),
    "workdir": (dict(workdir=None), "--workdir", "runs/mnist"),
    "group": (dict(groups=()), "--group", "adam"),
    "source to inspect": (dict(mode="inspect"), "--mode=inspect", "--init_from=PATH"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_flag(refused, case):
    values, *words = MISSING[case]
    says(refused(**values), *words)


DURATIONS = {
    "no length": (dict(train_for="soon"), "--train_for: soon", "3epochs"),
    "a unit that is none": (dict(train_for="3hours"), "--train_for: 3hours", "3epochs"),
    "negative": (dict(train_for="-5"), "--train_for: -5", "3epochs"),
    "half a step": (dict(train_for="2.5"), "--train_for: 2.5", "whole steps"),
    "no step at all": (dict(train_for="0"), "--train_for=0", "no step"),
    "infinite": (dict(train_for="1e999epochs"), "--train_for", "finite"),
    "share of nothing": (dict(train_for="50%"), "--train_for", "50%", "give steps"),
    "log_every": (dict(log_every="often"), "--log_every: often", "3epochs"),
    "eval_every": (dict(eval_every="0"), "--eval_every=0", "at least one step"),
    "save_every": (dict(save_every="5minutes"), "--save_every: 5minutes", "3epochs"),
    "from": (dict(groups=["--group=.* sgd 1 from=late"]), "--group=.* sgd 1 from=late: not a length", "20%"),
    "warm-up": (dict(groups=["--group=.* sgd cosine(1,warmup=2hours)"]), "--group", "warmup=2hours"),
}


@pytest.mark.parametrize("case", DURATIONS)
def test_a_duration(refused, case):
    values, *words = DURATIONS[case]
    says(refused(**values), *words)


# --- groups ---

GROUPS = {
    "two columns": (["hidden1/.* sgd"], "--group=hidden1/.* sgd", "PATTERN OPTIMIZER SCHEDULE"),
    "frozen with more": (["hidden1/.* frozen from=3", ".* sgd 0.1"], "nothing follows `frozen`", "from=3"),
    "an option that is none": ([".* sgd 0.1 nmae=x"], "nmae=x", "name"),
    "bad pattern": (["hidden( sgd 0.1"], "hidden( sgd 0.1", "closes"),
    "no regular expression": (["*/w sgd 0.1"], "--group=*/w sgd 0.1", "not a regular expression"),
    "one name twice": ([".*/w sgd 0.1 name=a", ".* sgd 0.1 name=a"], "--group", "name=a", "its own name"),
    "uncovered variable": (["hidden1/.* sgd 0.1"], "no rule covers", "hidden2/w", "--group='.* frozen'"),
    "matches nothing": (["hiden1/.* sgd 0.1", ".* sgd 0.1"], "--group=hiden1/.*", "no variable", "hidden1/"),
    "part of a name": (["hidden sgd 0.1", ".* sgd 0.1"], "--group=hidden sgd", "whole name", "hidden"),
    "shadowed": ([".* sgd 0.1", "logits/.* frozen"], "--group=logits/.* frozen", ".* sgd 0.1", "narrower"),
    "misspelt optimizer": ([".* adm 0.1"], "--group=.* adm 0.1", "'adm'", "adam"),
    "misspelt argument": ([".* sgd(momentun=0.9) 0.1"], "momentun", "momentum"),
    "argument without a name": ([".* sgd(0.9) 0.1"], "sgd", "by name", "momentum=0.9"),
    "argument of the wrong kind": ([".* sgd(momentum='a') 0.1"], "momentum='a'", "sgd"),
    "argument out of range": ([".* sgd(momentum=2) 0.1"], "momentum=2 of sgd", "from 0 to 1"),
    "learning rate in the optimizer": ([".* adam(learning_rate=1) 0.1"], "learning_rate=", "constant(1e-3)"),
    "clip in the optimizer": ([".* adam(clipnorm=1) 0.1"], "clipnorm=", "--clip_norm"),
    "average in the optimizer": ([".* adam(use_ema=True) 0.1"], "use_ema=", "--ema"),
    "misspelt schedule": ([".* sgd cosin(0.1)"], "--group=.* sgd cosin(0.1)", "cosin", "cosine"),
    "misspelt schedule argument": ([".* sgd cosine(0.1,warmpu=3)"], "warmpu", "warmup"),
    "missing schedule argument": ([".* sgd exponential(0.1)"], "decay_steps", "must be given"),
    "negative rate": ([".* sgd -0.1"], "--group=.* sgd -0.1", "0.1"),
    "negative rate in a call": ([".* sgd constant(-1)"], "constant(-1)", "-1"),
    "infinite rate": ([".* sgd 1e999"], "--group=.* sgd 1e999", "finite"),
    "rate that is no number": ([".* sgd nan"], "--group=.* sgd nan", "nan"),
    "rate in quotes": ([".* sgd constant('fast')"], "constant('fast')", "fast"),
    "code": ([".* sgd constant(open('x'))"], "open('x')", "not a literal"),
    "all frozen": ([".* frozen"], "--group", "nothing to train"),
    "nothing to train at first": ([".* sgd 0.1 from=5"], "--group", "step 0 up to step 5", "from="),
    "nothing to train at last": ([".* sgd 0.1 until=50%"], "--group", "step 10 up to step 20", "until="),
    "nothing to train between": (
        [".*/w sgd 0.1 until=5", ".* sgd 0.1 from=15"],
        "step 5 up to step 15",
        "from=",
    ),
    "starts after the end": (
        [".*/w sgd 0.1", ".* sgd 0.1 from=30"],
        "from=30",
        "step 30",
        "20 steps",
        "--train_for",
    ),
    "ends before it starts": ([".*/w sgd 0.1", ".* sgd 0.1 from=9 until=9"], "step 9 up to step 9", "20 ste"),
}


@pytest.mark.parametrize("case", GROUPS)
def test_groups(refused, case):
    rules, *words = GROUPS[case]
    says(refused(groups=[f"--group={rule}" for rule in rules]), *words)


def test_a_rule_that_matches_only_what_is_not_trainable(refused):
    message = refused(
        model="mnist_cnn(filters=2,dense=4,batch_norm=True)", groups=["--group=bn1/moving.* sgd 0.1", ALL]
    )
    says(message, "--group=bn1/moving.* sgd 0.1", "bn1/moving_mean", "not trainable", "Remove the rule")


def test_all_unused_rules_are_told_at_once(refused):
    message = refused(groups=["--group=a sgd 0.1", "--group=b sgd 0.1", "--group=hidden.* sgd 0.1"])
    says(message, "--group=a ", "--group=b ", "no rule covers", "logits/w")


def test_no_decay_that_matches_nothing(refused):
    message = refused("--no_decay=.*/bias", groups=["--group=.* adamw(weight_decay=1e-3) 0.1"])
    says(message, "--no_decay=.*/bias", "no trained variable", "logits/b")


def test_no_decay_that_is_no_pattern(refused):
    message = refused("--no_decay=*", groups=["--group=.* adamw(weight_decay=1e-3) 0.1"])
    says(message, "--no_decay=*", "not a regular expression")


def test_layer_decay_by_a_depth_that_is_none(refused, module):
    path = module(
        """
        from models.mnist_mlp import build, preprocess
        def depth(name): return -1
        """
    )
    says(refused(model=path, layer_decay=0.5), "--layer_decay", "depth('hidden1/w') is -1", "0 for the head")


def test_layer_decay_by_a_depth_that_raises(refused, module):
    path = module(
        """
        from models.mnist_mlp import build, preprocess
        def depth(name): return {}[name]
        """
    )
    says(refused(model=path, layer_decay=0.5), "--layer_decay", "depth", "KeyError", "net.py:6: 'hidden1/w'")


def test_keep_best_of_a_metric_that_is_none(refused):
    says(refused("--keep_best=acuracy"), "--keep_best=acuracy", "accuracy")


def test_muon_for_plain_variables(refused):
    says(refused(groups=["--group=.* muon 0.1"]), "muon 0.1: Muon", "hidden1/w", "another optimizer")


# --- data ---

DATA = {
    "unknown": (dict(dataset="mnst"), "--dataset=mnst", "mnist"),
    "unknown, like a local one": (dict(dataset="digit"), "--dataset=digit", "digits"),
    "unknown config": (dict(dataset="emnist/leters"), "--dataset=emnist/leters", "letters"),
    "config of a set without any": (dict(dataset="mnist/foo"), "--dataset=mnist/foo", "no configs"),
    "unknown version": (dict(dataset="mnist:9.9.9"), "--dataset=mnist:9.9.9", "only: 3.0.1"),
    "unknown fallback": (dict(fallback_dataset="digts"), "--fallback_dataset=digts", "digits"),
    "dotted path to nothing": (dict(dataset="no.such.thing"), "--dataset=no.such.thing"),
    "unknown split": (dict(train_split="trian"), "--train_split=trian", "train (1437)", "test (360)"),
    "unknown split to evaluate": (dict(eval_split="validation"), "--eval_split=validation", "test (360)"),
    "empty split": (dict(train_split="train[:0]"), "--train_split=train[:0]", "no examples", "train (1437)"),
    "empty split to evaluate": (dict(eval_split="test[5:5]"), "--eval_split=test[5:5]", "no examples"),
    "unreadable split": (dict(train_split="train[:"), "--train_split=train[:", "train (1437)"),
    "no directory": (dict(manual_dir="/nowhere/at/all"), "--manual_dir=/nowhere/at/all", "no such directory"),
}


@pytest.mark.parametrize("case", DATA)
def test_data(refused, case):
    values, *words = DATA[case]
    says(refused(**values), *words)


@pytest.mark.parametrize("model", ["mnist_mlp(classes=7)", "mnist_cnn(classes=7)"])
def test_labels_that_the_model_cannot_take(refused, model):
    message = refused(model=model)
    says(message, "--dataset=digits", f"--model={model}: the labels", "7 classes", "classes=10")


def test_data_of_another_kind(refused, monkeypatch):
    monkeypatch.setattr("trainer.data.sources.tfds._unreachable", lambda url: "")
    message = refused(dataset="iris")
    says(message, "--dataset=iris", "--model=mnist_mlp", "image and label", "features, label")


# --- devices ---

DEVICES = {
    "no such GPU": (dict(devices="GPU:0,GPU:1"), "--devices=GPU:0,GPU:1", "no GPU:0", "CPU:0"),
    "no such CPU": (dict(devices="CPU:0,CPU:9"), "--devices=CPU:0,CPU:9", "no CPU:9", "CPU:3"),
    "twice the same": (dict(devices="CPU:1,CPU:1"), "--devices=CPU:1,CPU:1", "twice"),
    "two for one": (dict(devices="CPU:0,CPU:1", strategy="one"), "--devices=CPU:0,CPU:1", "one device"),
    "mirrored over nothing": (dict(strategy="mirrored"), "--strategy=mirrored", "--virtual_devices=2"),
    "unknown strategy": (dict(strategy="mirored"), "--strategy=mirored", "mirrored"),
    "batch that does not divide": (
        dict(devices="CPU:0,CPU:1", strategy="mirrored", batch_size="33"),
        "--batch_size=33",
        "2 replicas",
        "32 and 34",
    ),
    "too many virtual devices": (dict(virtual_devices="65"), "--virtual_devices=65", "64"),
    "no cluster": (dict(strategy="multi_worker"), "--strategy=multi_worker", "TF_CONFIG"),
}


@pytest.mark.parametrize("case", DEVICES)
def test_devices(refused, monkeypatch, case):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    values, *words = DEVICES[case]
    says(refused(**values), *words)


# --- model modules ---


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mnist_cn", ["--model=mnist_cn", "mnist_cnn"]),
        ("no.such.module", ["--model=no.such.module", "no model module"]),
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


# --- as a user sees it ---

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
