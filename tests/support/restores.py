"""What the tests of restore share."""

import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import UserError
from trainer.model.names import walk
from trainer.readers import Spec, WeightsFile
from trainer.restore import receipt
from trainer.restore.match import load, match
from trainer.restore.rules import parse

layers = keras.layers


def pretrained():
    """A network on 3 channels; all its values differ from any initial value."""
    x = inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, name="stem")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3, name="body")(x))
    model = keras.Model(inputs, layers.Dense(7, name="classes")(x))
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.get_weights()])
    return model


def target(channels=3, classes=7):
    """The same shapes under other names, and random state; made in the strategy's scope."""
    x = inputs = layers.Input((6, 6, channels))
    x = layers.Conv2D(4, 3, name="conv1")(x)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.Conv2D(5, 3, name="conv2")(x)
    x = layers.Dropout(0.5, name="drop")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(classes, name="head")(x))


RENAMES = [
    r"conv1/(.*) -> stem/\1",
    r"bn1/(.*) -> norm/\1",
    r"conv2/(.*) -> body/\1",
    r"head/(.*) -> classes/\1",
]


# What RENAMES say, as a table of whole names.
NAMES = {"conv1": "stem", "bn1": "norm", "conv2": "body", "head": "classes"}


def memory(**weights):
    """A source that is not a file."""
    specs = {name: Spec(w.shape, w.dtype.name) for name, w in weights.items()}
    return WeightsFile("test", "memory", specs, (), "--init_from", weights.__getitem__)


def module(**values):
    """A `tf.Module` with a variable for each array."""
    made = tf.Module()
    for name, value in values.items():
        setattr(made, name, tf.Variable(value))
    return made


def refused(model, source, *has, **rules):
    """The lines of the one error, which must hold each text of `has`; nothing may change."""
    variables = walk(model)
    before = {v.name: v.value.numpy().tobytes() for v in variables}
    with pytest.raises(UserError) as caught:
        load(match(variables, source, parse(**rules)))
    for text in has:
        assert text in str(caught.value), caught.value
    assert before == {v.name: v.value.numpy().tobytes() for v in variables}
    *lines, advice = str(caught.value).splitlines()[1:]
    assert advice == "--mode=inspect proposes rules."
    return lines


def started(strategy, model, source, **rules):
    """The receipt after a restore, by name."""
    matched = match(walk(model), source, parse(**rules))
    lines = receipt.assign(strategy, matched, load(matched))
    return {line["name"]: line for line in lines}


def sha(array):
    return hashlib.sha256(array.tobytes()).hexdigest()
