"""Weights of another width or dtype are refused, or cast where that was asked for."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tests.support.restores import (
    memory,
    module,
    refused,
    sha,
    started,
)
from trainer.restore import adapt


def test_cast():
    net = module(a=np.zeros(3, np.float32), b=tf.zeros(2, tf.bfloat16))
    weights = memory(a=np.float64([1 / 3, 2, 3]), b=np.float32([1 / 3, 4]))
    refused(net, weights, "--init_cast allows it")
    lines = started(tf.distribute.get_strategy(), net, weights, cast=True)
    np.testing.assert_array_equal(net.a, np.float64([1 / 3, 2, 3]).astype(np.float32))
    np.testing.assert_array_equal(net.b, np.float32([1 / 3, 4]).astype(ml_dtypes.bfloat16))
    assert lines["a"]["cast"] == "float64 -> float32" and lines["b"]["cast"] == "float32 -> bfloat16"
    assert lines["a"]["source_sha256"] == sha(np.float64([1 / 3, 2, 3])) != lines["a"]["after"]


def test_cast_that_overflows():
    net = module(a=tf.zeros(2, tf.float16))
    refused(net, memory(a=np.float32([1e6, 1])), "1 values are too large for float16", cast=True)


def adapted(text, source, initial):
    """The value of a variable that starts at `initial` after `--init_adapt='v TEXT'`."""
    net = module(v=initial)
    lines = started(tf.distribute.get_strategy(), net, memory(v=source), adapt=[f"v {text}"])
    assert lines["v"]["adapt"] == text
    return net.v.numpy()


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_channels():
    rgb, grey = noise(3, 3, 3, 2), np.zeros((3, 3, 1, 2), np.float32)
    image = noise(1, 5, 5, 1)
    response = tf.nn.conv2d(np.repeat(image, 3, -1), rgb, 1, "VALID")
    summed = adapted("sum_channels()", rgb, grey)
    np.testing.assert_allclose(tf.nn.conv2d(image, summed, 1, "VALID"), response, atol=1e-5)
    mean = adapted("mean_channels(axis=2)", rgb, grey)
    np.testing.assert_allclose(3 * tf.nn.conv2d(image, mean, 1, "VALID"), response, atol=1e-5)
    spread = adapted("repeat_channels()", summed, rgb)
    wide = np.repeat(image, 3, -1)
    np.testing.assert_allclose(tf.nn.conv2d(wide, spread, 1, "VALID"), response, atol=1e-5)


@pytest.mark.parametrize("old, new", [(7, 4), (4, 9), (5, 5)])
def test_resize_is_tensorflows_bilinear(old, new):
    table = noise(old, 3)
    wanted = tf.image.resize(table[:, None, :], (new, 1))[:, 0]
    np.testing.assert_allclose(
        adapted("resize(axis=0)", table, np.zeros((new, 3), np.float32)), wanted, atol=1e-6
    )
    grid = noise(1, 1 + old * old, 3)
    image = tf.image.resize(grid[:, 1:].reshape(1, old, old, 3), (new, new))
    got = adapted("resize_grid(keep=1)", grid, np.zeros((1, 1 + new * new, 3), np.float32))
    np.testing.assert_array_equal(got[:, 0], grid[:, 0])
    np.testing.assert_allclose(got[:, 1:], tf.reshape(image, (1, new * new, 3)), atol=1e-6)


def test_rows():
    kernel = np.float32([[1, 2, 3], [4, 5, 6]])
    got = adapted("rows([2, None, 0, 2])", kernel, np.full((2, 4), -1, np.float32))
    assert got.tolist() == [[3, -1, 1, 3], [6, -1, 4, 6]]
    assert adapted("rows([1])", np.float32([7, 8]), np.zeros(1, np.float32)).tolist() == [8]


@pytest.mark.parametrize(
    "text, source, initial, message",
    [
        ("rows([5])", (3,), (1,), "classes 0 to 2, the list names [5]"),
        ("rows([1, 2])", (3,), (1,), "2 entries and the variable 1 classes"),
        ("rows([1])", (2, 3), (4, 1), "differs from [4, 1] elsewhere too"),
        ("sum_channels()", (3, 3, 3, 2), (3, 3, 1, 9), "sum_channels() makes it float32[3, 3, 1, 2]"),
        ("sum_channels(axis=7)", (3, 2), (1, 2), "axis=7 is no axis"),
        ("repeat_channels()", (2, 2), (4, 2), "has 2 channels, not one"),
        ("resize_grid()", (1, 5, 2), (1, 4, 2), "5 positions are not a square grid"),
        ("resize(keep=9)", (1, 5, 2), (1, 4, 2), "keep=9"),
    ],
)
def test_adaptations_that_do_not_fit(text, source, initial, message):
    net = module(v=np.zeros(initial, np.float32))
    refused(net, memory(v=np.ones(source, np.float32)), message, adapt=[f"v {text}"])


def test_every_method_is_listed():
    """In the documentation, where people look for them."""
    page = (Path(__file__).parents[2] / "docs" / "restore.md").read_text()
    for name in [*adapt.METHODS, *adapt.COMBINERS]:
        assert f"`{name}(" in page, name
