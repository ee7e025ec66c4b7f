"""The same weights on the same batches as MultiOptimizer for groups, as Keras `fit` if frozen, as by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import mnist_cnn
from tests.support import harness

BATCH, STEPS = 8, 100
EXPONENTIAL = "exponential(1e-3, decay_steps=30, decay_rate=0.9)"


def exponential() -> keras.optimizers.schedules.LearningRateSchedule:
    # Keras computes a schedule in the type of its numbers, and takes Python's for float32.
    return keras.optimizers.schedules.ExponentialDecay(np.float64(1e-3), 30, np.float64(0.9))


# Rules, and what Keras is given for the same variables, the last one for all the rest.
CASES = {
    "two groups": (
        ["conv1/.* sgd(momentum=0.9) 1e-2", f".* adam {EXPONENTIAL}"],
        lambda: {
            "conv1/.*": keras.optimizers.SGD(1e-2, momentum=0.9),
            ".*": keras.optimizers.Adam(exponential()),
        },
    ),
    "five groups": (
        [
            "conv1/.* sgd(momentum=0.9, nesterov=True) 1e-2",
            "conv2/kernel adamw(weight_decay=0.01) 1e-3",
            "conv2/bias rmsprop 1e-4",
            "dense1/.* nadam 1e-3",
            f".* adam {EXPONENTIAL}",
        ],
        lambda: {
            "conv1/.*": keras.optimizers.SGD(1e-2, momentum=0.9, nesterov=True),
            "conv2/kernel": keras.optimizers.AdamW(1e-3, weight_decay=0.01),
            "conv2/bias": keras.optimizers.RMSprop(1e-4),
            "dense1/.*": keras.optimizers.Nadam(1e-3),
            ".*": keras.optimizers.Adam(exponential()),
        },
    ),
}


def multi_optimizer(optimizers: dict[str, keras.optimizers.Optimizer]) -> keras.optimizers.MultiOptimizer:
    rest = optimizers.pop(".*")
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(rest, optimizers))


def fitted(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, arrays: dict[str, np.ndarray], steps: int
) -> dict[str, np.ndarray]:
    """Weights by name after `steps` of Keras's own `fit`, batches in order."""
    rows = slice(0, steps * BATCH)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(arrays["image"][rows], arrays["label"][rows], batch_size=BATCH, shuffle=False, verbose=0)
    return {v.path: v.numpy() for v in model.variables}


def network(precision: str, rules: list[str], batch_norm: bool = False) -> harness.Made:
    return harness.make(
        lambda: mnist_cnn.build(batch_norm=batch_norm),
        mnist_cnn.loss,
        rules,
        harness.digits(STEPS * BATCH, precision),
        STEPS,
        precision=precision,
        batch=BATCH,
    )


def same_start(made: harness.Made, model: keras.Model) -> dict[str, np.ndarray]:
    """Gives `model` the weights that `made` has, and returns them."""
    start = made.values()
    for v in model.variables:
        if v.path in start:
            v.assign(start[v.path])
    return start


def assert_equal(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float) -> None:
    for name, value in got.items():
        assert np.abs(value - wanted[name]).max() <= tolerance, name


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("precision", "steps", "tolerance"), [("float64", STEPS, 1e-9), ("float32", 1, 1e-6)]
)
@pytest.mark.parametrize("case", CASES)
def test_groups_equal_keras_multi_optimizer(case: str, precision: str, steps: int, tolerance: float) -> None:
    rules, optimizers = CASES[case]
    made = network(precision, rules)
    model = mnist_cnn.build()
    start = same_start(made, model)
    made.train(0, steps)
    got = made.values()
    assert_equal(got, fitted(model, multi_optimizer(optimizers()), dict(made.feed.arrays), steps), tolerance)
    # Every variable moved by far more than the tolerance, so that equal means trained alike.
    assert all(np.abs(got[name] - start[name]).max() > 10 * tolerance for name in got)
    harness.use_precision("float32")


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("precision", "steps", "tolerance"), [("float64", STEPS, 1e-9), ("float32", 1, 1e-6)]
)
def test_a_frozen_run_equals_trainable_false_in_fit(precision: str, steps: int, tolerance: float) -> None:
    rules = ["(conv1|bn1)/.* frozen", ".* adam 1e-3"]
    made = network(precision, rules, batch_norm=True)
    model = mnist_cnn.build(batch_norm=True)
    start = same_start(made, model)
    for layer in ("conv1", "bn1"):
        model.get_layer(layer).trainable = False
    made.train(0, steps)
    got = made.values()
    assert_equal(got, fitted(model, keras.optimizers.Adam(1e-3), dict(made.feed.arrays), steps), tolerance)
    for name in got:
        frozen = name.startswith(("conv1", "bn1"))
        assert (got[name].tobytes() == start[name].tobytes()) == frozen, name
    harness.use_precision("float32")


class Three(tf.Module):
    """y = a b x + c: three parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (tf.Variable(tf.constant(v, tf.float64)) for v in (2.0, 3.0, 5.0))


def squared(model: Three, batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, dict]:
    error = model.a * model.b * batch["x"] + model.c - batch["y"]
    return error**2, {}


def test_three_parameters_by_hand() -> None:
    """Two steps of SGD with momentum on a, of Adam on b, c frozen; every number is worked out below."""
    arrays = {"x": np.array([1.0, 2.0, 1.0, -1.0]), "y": np.array([9.0, 20.0, 8.0, 1.0])}
    # Keras takes Adam's decays through float32 on the way to its bias correction: these two fit.
    adam = "adam(beta_1=0.5, beta_2=0.75)"
    rules = ["a sgd(momentum=0.5) 0.001", f"b {adam} piecewise([0], [0.1, 0.2])", "c frozen"]
    made = harness.make(Three, squared, rules, arrays, 2, precision="float64", batch=2)
    made.train(0, 1)
    # Batch 1: errors 6 + 5 - 9 = 2 and 12 + 5 - 20 = -3; d loss / d(ab) = 2 (2 * 1 - 3 * 2) / 2 = -4.
    # a: gradient -4 b = -12, velocity 0.012. b: gradient -4 a = -8, so that m = -4 and v = 16; corrected by
    # sqrt(1 - 0.75) / (1 - 0.5) = 1 the step is 0.1 * 4 / (4 + epsilon).
    a, b = 2.012, 3 + 0.4 / (4 + 1e-7)
    np.testing.assert_allclose(list(made.values().values()), [a, b, 5.0], rtol=1e-14)
    made.train(1, 2)
    errors = a * b * np.array([1.0, -1.0]) + 5 - np.array([8.0, 1.0])
    slope = (2 * errors * [1.0, -1.0]).mean()
    velocity = 0.5 * 0.012 - 0.001 * slope * b
    m, v = 0.5 * -4 + 0.5 * slope * a, 0.75 * 16 + 0.25 * (slope * a) ** 2
    rate = 0.2 * np.sqrt(1 - 0.75**2) / (1 - 0.5**2)
    expected = [a + velocity, b - rate * m / (np.sqrt(v) + 1e-7), 5.0]
    np.testing.assert_allclose(list(made.values().values()), expected, rtol=1e-14)
    harness.use_precision("float32")
