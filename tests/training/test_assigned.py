"""What a layer assigns to its own variables in `call` counts as under Keras's `fit`, unless it is frozen."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from tests.training.test_program import points, squared
from tests.training.test_replicas import assert_copies_equal, strategy
from trainer.errors import UserError

BATCH, STEPS = 8, 6


class InPlace(keras.layers.Layer):
    """Scales its own kernel by its norm at each call, and is called twice by the model."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(
            shape=(shape[-1], shape[-1]), name="kernel", initializer="glorot_uniform"
        )

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training:
            self.kernel.assign(1.5 * self.kernel / keras.ops.norm(self.kernel))
        return keras.ops.tanh(x @ self.kernel)


def spectral() -> keras.Model:
    """Two spectrally normalised layers, one of them with a regulariser, and one in place, used twice."""
    wide, l2 = keras.initializers.RandomNormal(stddev=1.0, seed=3), keras.regularizers.L2(0.05)
    x = keras.Input((3,))
    first = keras.layers.Dense(
        4, activation="tanh", kernel_initializer=wide, kernel_regularizer=l2, name="fc"
    )
    y = keras.layers.SpectralNormalization(first, power_iterations=2, name="sn")(x)
    twice = InPlace(name="twice")
    y = twice(twice(y))
    return keras.Model(x, keras.layers.Dense(1, name="head")(y))


def start(made: harness.Made) -> keras.Model:
    """A model of Keras's own that starts from the same values."""
    model = spectral()
    for mine, theirs in zip(made.run.built.model.variables, model.variables, strict=True):
        theirs.assign(mine.numpy())
    return model


def run(optimizer: str, steps: int = STEPS, **options: Any) -> harness.Made:
    options = {"precision": "float64", "batch": BATCH, **options}
    rules = options.pop("rules", [f".* {optimizer}"])
    return harness.make(spectral, squared, rules, points(STEPS * 16, "float64"), steps, **options)


def assert_equal(made: harness.Made, model: keras.Model, tolerance: float = 1e-12) -> None:
    for mine, theirs in zip(made.run.built.model.variables, model.variables, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=tolerance, err_msg=mine.path)


OPTIMIZERS = [
    ("sgd 0.1", lambda: keras.optimizers.SGD(0.1)),
    ("sgd(momentum=0.5) 0.1", lambda: keras.optimizers.SGD(0.1, momentum=0.5)),
    ("adam 0.01", lambda: keras.optimizers.Adam(0.01)),
]


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(("rule", "optimizer"), OPTIMIZERS, ids=lambda x: x if isinstance(x, str) else "")
def test_as_fit_leaves_it(rule: str, optimizer: Any) -> None:
    made = run(rule)
    model, before = start(made), made.values()
    made.train(0, STEPS)
    model.compile(optimizer(), "mse")
    x, y = (made.feed.arrays[n][: STEPS * BATCH] for n in ("x", "y"))
    model.fit(x, y, BATCH, epochs=1, shuffle=False, verbose=0)
    assert_equal(made, model)
    sn = made.run.built.model.get_layer("sn")
    assert np.abs(made.values()["sn/layer/kernel"] - before["sn/layer/kernel"]).max() > 0.1, sn
    # The logged loss is that of the value which the layers assigned.
    assert made.program.state.sums.numpy()[1] == STEPS * BATCH


def test_the_spectral_norm_is_one_and_evaluation_agrees() -> None:
    made = run("sgd 1e-12", rules=[".* sgd 1e-12"])
    made.program.state.sums.assign([0.0, 0.0])
    made.train(0, STEPS)
    kernel = made.values()["sn/layer/kernel"]
    assert abs(np.linalg.svd(kernel)[1][0] - 1) < 1e-3
    made.program.state.sums.assign([0.0, 0.0])
    train = made.program.trainer(made.phases[0], made.feed)
    train(made.feed.chunk(0, 1), tf.constant(1))
    training = made.program.state.sums.numpy()[0] / BATCH
    feed = harness.ArrayFeed({n: a[:BATCH] for n, a in made.feed.arrays.items()}, BATCH, mask=True)
    sums = made.program.evaluator(feed)(feed.chunk(0, 1), tf.constant(1))[0].numpy()
    assert abs(sums[0] / sums[1] - training) < 1e-3 * training


def test_two_replicas_equal_one() -> None:
    """The state of the power iteration does not depend on the data, so the replicas assign the same."""
    one, two = run("adam 0.01"), run("adam 0.01", strategy=strategy(2))
    for made in (one, two):
        made.train(0, STEPS)
    assert_copies_equal(two)
    for name, value in one.values().items():
        np.testing.assert_allclose(two.values()[name], value, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_accumulated_batches_assign_one_after_another_as_keras_has_them(replicas: int) -> None:
    made = run("sgd 0.1", batch=2 * BATCH, accumulate=2, strategy=strategy(replicas))
    model = start(made)
    made.train(0, STEPS)
    if replicas > 1:
        assert_copies_equal(made)
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
    x, y = (made.feed.arrays[n][: 2 * STEPS * BATCH] for n in ("x", "y"))
    model.fit(x, y, BATCH, epochs=1, shuffle=False, verbose=0)
    assert_equal(made, model, 1e-10)


def test_a_skipped_step_takes_back_what_was_assigned() -> None:
    made = run("adam 0.01", on_nonfinite="skip")
    made.feed.arrays = {n: a.copy() for n, a in made.feed.arrays.items()}
    made.feed.arrays["y"][2 * BATCH] = np.nan
    made.train(0, 2)
    before = made.values()
    made.train(2, 3)
    assert made.program.state.skipped.numpy() == 1
    assert all(v.tobytes() == before[n].tobytes() for n, v in made.values().items())
    made.train(3, 4)
    assert made.values()["sn/layer/kernel"].tobytes() != before["sn/layer/kernel"].tobytes()


@pytest.mark.slow
def test_averages_are_of_the_weights_after_the_step() -> None:
    made = run("sgd 0.1", ema=0.5)
    average = made.values()["twice/kernel"]
    for step in range(3):
        made.train(step, step + 1)
        average = 0.5 * average + 0.5 * made.values()["twice/kernel"]
    np.testing.assert_allclose(made.program.state.averages["twice/kernel"], average, rtol=0, atol=1e-14)


def test_frozen_means_not_a_bit_whatever_is_assigned() -> None:
    made = run("", rules=["head/.* sgd 0.1", "sn/.* sgd 0.1 from=3", ".* frozen"])
    before = made.values()
    made.train(0, 3)
    moved = {n for n, v in made.values().items() if v.tobytes() != before[n].tobytes()}
    assert moved == {"head/kernel", "head/bias"}
    before = made.values()
    made.train(3, 4)
    moved = {n for n, v in made.values().items() if v.tobytes() != before[n].tobytes()}
    assert moved == {"head/kernel", "head/bias", "sn/layer/kernel", "sn/layer/bias", "sn/vector_u"}


def test_a_frozen_weight_has_one_value_in_training_and_evaluation() -> None:
    made = run("", rules=["head/.* sgd 1e-12", ".* frozen"])
    made.train(0, 1)
    training = made.program.state.sums.numpy()
    feed = harness.ArrayFeed({n: a[:BATCH] for n, a in made.feed.arrays.items()}, BATCH, mask=True)
    function = made.program.evaluator(feed, made.phases[0].names)
    np.testing.assert_allclose(function(feed.chunk(0, 1), tf.constant(1))[0].numpy(), training, rtol=1e-9)


class Plain(tf.Module):
    """Weights of its own, of which the forward pass normalises one in place."""

    def __init__(self) -> None:
        super().__init__()
        mean = tf.VariableAggregation.MEAN
        self.w = tf.Variable(tf.constant([3.0, 4.0, 12.0], tf.float64), aggregation=mean)
        self.free = tf.Variable(tf.ones([3], tf.float64))

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        if training:
            self.w.assign(self.w / tf.norm(self.w))
        return tf.reduce_sum(x * self.w * self.free, 1, keepdims=True)


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("rule", [".* sgd 0.1", "w frozen"])
def test_a_plain_variable_too(rule: str, replicas: int) -> None:
    """Against the same by hand: normalise, slope at the normalised value, descend."""
    rules = [rule] if rule.startswith(".*") else [rule, ".* sgd 0.1"]
    arrays = points(STEPS * BATCH, "float64")
    arrays["y"][2 * BATCH] = np.nan  # skipped: nothing of step 3 stays
    options = {"precision": "float64", "batch": BATCH, "on_nonfinite": "skip", "strategy": strategy(replicas)}
    made = harness.make(Plain, squared, rules, arrays, STEPS, **options)
    made.train(0, STEPS)
    w, free = np.array([3.0, 4.0, 12.0]), np.ones(3)
    xs, ys = arrays["x"].reshape(STEPS, BATCH, 3), arrays["y"].reshape(STEPS, BATCH)
    for x, y in zip(np.delete(xs, 2, 0), np.delete(ys, 2, 0), strict=True):
        at = w / np.linalg.norm(w)
        slope = 2 * ((x * at * free).sum(1) - y)[:, None] * x / BATCH
        free_slope, w_slope = (slope * at).sum(0), (slope * free).sum(0)
        free = free - 0.1 * free_slope
        w = w if len(rules) == 2 else at - 0.1 * w_slope
    np.testing.assert_allclose(made.values()["free"], free, rtol=0, atol=1e-12)
    if len(rules) == 2:
        assert made.values()["w"].tobytes() == np.array([3.0, 4.0, 12.0]).tobytes()
    np.testing.assert_allclose(made.values()["w"], w, rtol=0, atol=1e-12)
    assert_copies_equal(made)


class InACond(keras.layers.Layer):
    """Assigns where no value comes out."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(3, 1), name="kernel")

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training:
            tf.cond(
                tf.reduce_sum(x) > 0, lambda: self.kernel.assign(self.kernel * 2), lambda: self.kernel * 1
            )
        return x @ self.kernel


def test_what_cannot_be_honoured_is_refused_by_name() -> None:
    def build() -> keras.Model:
        x = keras.Input((3,))
        return keras.Model(x, InACond(name="odd")(x))

    with pytest.raises(UserError, match=r"--model=.*odd/kernel is assigned inside of a tf\.cond"):
        harness.make(build, squared, [".* sgd 0.1"], points(BATCH), 1)
