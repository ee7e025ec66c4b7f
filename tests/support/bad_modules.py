"""Code of users that fails, leaves or returns nonsense: models, schedules, builders."""

# ruff: noqa: E501 (lists of bad values are no prose)

import random
from pathlib import Path

from tests.support.bad_case import ALL, Case, flags

STATEMENTS = [
    "raise ValueError('no')", "raise RuntimeError('\\x1b[31mred\\x07')", "raise SystemExit(0)", "import sys; sys.exit(0)",
    "import sys; sys.exit()", "import sys; sys.exit('text')", "exit()", "quit(0)", "raise Mute()", "raise Base('own')",
    "raise MemoryError()", "raise StopIteration()", "raise GeneratorExit()", "raise OSError(28, 'No space')",
    "raise KeyboardInterrupt()", "raise AssertionError()", "raise Exception('x' * 20000)", "raise Exception('a\\nb' * 99)",
    "raise Exception('\\udcff \\u202e')", "import trainer; raise trainer.UserError('own words \\x1b[1m')", "return again()",
    "raise tf.errors.InvalidArgumentError(None, None, 'op')", "raise Exception(Mute())", "assert 0, Mute()", "1 / 0",
    "import no_such_package", "undefined_name", "raise NotImplementedError", "raise BaseExceptionGroup('g', [Base()])",
    "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'r')", "raise Exception(b'\\xff')", "raise SystemExit(Mute())",
]  # fmt: skip
RETURNS = [
    "None",
    "1",
    "'x'",
    "{}",
    "[]",
    "()",
    "object()",
    "Mute()",
    "tf.constant(0.)",
    "lambda: 0",
    "type",
    "{1: 2}",
]
HEAD = """
import keras
import tensorflow as tf

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("cannot be shown")
    __repr__ = __str__

class Base(BaseException):
    pass

def again():
    return again()

"""
PARTS = {
    "build": "def build():",
    "loss": "def loss(model, batch, training):",
    "preprocess": "def preprocess(batch, training, seed):",
    "decode": "def decode(example):",
    "check": "def check(model, features):",
    "depth": "def depth(name):",
    "serve": "def serve(model, batch):",
}


def modules(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """A model module that fails, at import or in one of its functions, or returns what is of no use."""
    part = chance.choice(["module", *PARTS, "build", "loss"])
    body = chance.choice([*STATEMENTS, *STATEMENTS, *(f"return {value}" for value in RETURNS)])
    source = HEAD + "from models.mnist_mlp import build, loss, preprocess\n"
    if part == "module" and chance.random() < 0.3:
        source = chance.choice(
            ["def build(:\n", "x = \0", "\ufeffbuild = loss = 3\n", "build = loss = None", "", "build = 1"]
        )
    elif part == "module":
        source += body.replace("return ", "x = ") + "\n"
    else:
        source += f"\n{PARTS[part]}\n    {body}\n"
    (folder / "user_model.py").write_text(source, encoding="utf-8", errors="surrogateescape")
    (folder / "user_package").mkdir()
    (folder / "user_package/__init__.py").write_text("")
    (folder / "user_package/net.py").write_text(source, errors="surrogateescape")
    more = ["--layer_decay=0.5"] if part == "depth" else []
    return Case(f"module: {part}", [*flags(data_dir, model="user_package.net"), ALL, *more])


def schedules(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """A schedule of the user's own that fails or returns what is none."""
    body = chance.choice([*STATEMENTS, *(f"return {value}" for value in RETURNS)])
    place = chance.choice(["module", "function", "inner"])
    source = {
        "module": body.replace("return ", "x = ") + "\ndef mine(rate):\n    return lambda step: rate\n",
        "function": f"def mine(rate):\n    {body}\n",
        "inner": f"def mine(rate):\n    def at(step):\n        {body}\n    return at\n",
    }[place]
    (folder / "user_schedules.py").write_text(HEAD + source, errors="surrogateescape")
    text = chance.choice(
        ["user_schedules.mine(0.1)"] * 4 + ["user_schedules.mine", "math.hypot(1)", "builtins.print('x')"]
    )
    return Case(f"schedule: {place}", [*flags(data_dir), f"--group=.* sgd {text}"])


BUILDER = (
    HEAD
    + """
import tensorflow_datasets as tfds

class Mine(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        {info}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({{
            "image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}}))
    def _split_generators(self, dl_manager):
        {splits}
        return {{"train": self._generate_examples(), "test": self._generate_examples()}}
    def _generate_examples(self):
        import numpy as np
        for i in range(64):
            {examples}
            yield i, {{"image": np.zeros((28, 28, 1), np.uint8), "label": i % 10}}
"""
)


def builders(chance: random.Random, folder: Path, data_dir: Path) -> Case:
    """A TFDS builder of the user's own that fails, or makes nothing of use."""
    bodies = [
        *STATEMENTS,
        "return {}",
        "return None",
        "return 3",
        "return",
        "yield 0, {'image': 1, 'label': 99}",
    ]
    parts = {"info": "pass", "splits": "pass", "examples": "pass"}
    place = chance.choice([*parts, "module", "splits"])
    body = chance.choice([b for b in bodies if "yield" not in b or place == "examples"])
    if place in parts:
        parts[place] = body
    source = BUILDER.format(**parts) + (body.replace("return", "x =") if place == "module" else "")
    (folder / "user_package").mkdir()
    (folder / "user_package/__init__.py").write_text("")
    (folder / "user_package/data.py").write_text(source, errors="surrogateescape")
    name = chance.choice(["user_package.data.Mine", "user_package.data"])
    given = flags(folder / "own_data", dataset=name)
    return Case(f"builder: {place}", [*given, ALL])
