"""What the tests of readers share."""

import sys

import keras
import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def functional(layers=keras.layers):
    """Nested, with layers of every storage rule; weights are random, so no two arrays are alike."""
    x = inner_in = layers.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, name="stem")(x)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="dw")(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.5)(x)
    model = keras.Model if layers is keras.layers else sys.modules["tf_keras"].Model
    inner = model(inner_in, layers.Dense(10, name="mid")(x), name="inner")
    x = outer_in = layers.Input((8, 8, 1))
    x = layers.Reshape((2, 5))(inner(x))
    x = layers.LSTM(3, name="memory")(x)
    return model(outer_in, layers.Dense(2, name="head")(x))


def randomised(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.get_weights()])
    return model


# Names of `functional` below the nested model, and of its other layers.
INNER = {
    "stem/kernel": (3, 3, 1, 4),
    "stem/bias": (4,),
    "bn1/gamma": (4,),
    "bn1/beta": (4,),
    "bn1/moving_mean": (4,),
    "bn1/moving_variance": (4,),
    "dw/DEPTHWISE": (3, 3, 4, 1),
    "mid/kernel": (64, 10),
    "mid/bias": (10,),
}


CELL = {"kernel": (5, 12), "recurrent_kernel": (3, 12), "bias": (12,)}


HEAD = {"head/kernel": (3, 2), "head/bias": (2,)}


def named(inner="inner/", memory="memory/cell/", depthwise="kernel"):
    shapes = {inner + n.replace("DEPTHWISE", depthwise): s for n, s in INNER.items()}
    return shapes | {memory + n: s for n, s in CELL.items()} | HEAD


def check(source, shapes, arrays):
    """The names and shapes, and that the values are `arrays`, each used once."""
    assert {name: spec.shape for name, spec in source.specs.items()} == shapes
    rest = [np.asarray(a) for a in arrays]
    for name in source.specs:
        value = source.read(name)
        same = [i for i, a in enumerate(rest) if a.shape == value.shape and np.array_equal(a, value)]
        assert same, name
        rest.pop(same[0])
    assert not rest
