"""What a trace of the loss refuses before data are read, and what it leaves alone."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.support import harness
from tests.training.test_program import points, squared
from tests.training.test_replicas import strategy
from trainer.errors import UserError
from trainer.model.checks import LossTrace
from trainer.model.names import walk

BATCH = 8
layers = keras.layers


def linear() -> keras.Model:
    x = keras.Input((3,))
    return keras.Model(x, layers.Dense(1, name="head")(x))


def made(
    loss: Callable[..., Any] = squared, build: Callable[[], Any] = linear, **options: Any
) -> harness.Made:
    options = {"batch": BATCH, "eval_split": "train", **options}
    return harness.make(build, loss, [".* sgd 0.1"], points(4 * BATCH), 4, **options)


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as error:
        made(**options)
    return str(error.value)


def with_metrics(metrics: Callable[[tf.Tensor, bool], dict[Any, Any]]) -> Callable[..., Any]:
    def loss(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
        losses, _ = squared(model, batch, training)
        return losses, metrics(losses, training)

    return loss


# --- randomness that is not the step's ---

GENERATOR = tf.random.Generator.from_seed(1)
DRAWS: dict[str, Callable[[tf.Tensor], Any]] = {
    "RandomStandardNormal": lambda x: tf.reduce_sum(tf.random.normal(tf.shape(x))),
    "RandomUniform": lambda x: tf.random.uniform([]),
    "RandomShuffle": lambda x: tf.reduce_sum(tf.random.shuffle(x)),
    "StatefulStandardNormalV2|RngReadAndSkip": lambda x: GENERATOR.normal([]),
    "RandomUniform|RandomStandardNormal": lambda x: tf.cond(
        tf.reduce_sum(x) > 0, lambda: tf.random.normal([]), lambda: tf.random.uniform([])
    ),
}


@pytest.mark.parametrize("op", DRAWS)
def test_a_stateful_draw_is_refused_with_its_line(op: str) -> None:
    def loss(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
        losses, metrics = squared(model, batch, training)
        return losses + 0 * tf.cast(DRAWS[op](batch["x"]), losses.dtype), metrics

    message = refusal(loss=loss)
    assert any(name in message for name in op.split("|")) and "tf.random.stateless_" in message, message
    assert "test_trace.py:" in message


def test_a_draw_in_preprocess_or_in_the_model_is_refused_too() -> None:
    def preprocess(batch: Any, training: bool, seed: tf.Tensor) -> Any:
        return {**batch, "x": tf.image.random_brightness(batch["x"][..., None], 0.1)[..., 0]}

    class Own(layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return x + tf.random.normal([])

    def build() -> keras.Model:
        x = keras.Input((3,))
        return keras.Model(x, layers.Dense(1, name="head")(Own(name="own")(x)))

    assert "RandomUniform" in refusal(preprocess=preprocess)
    assert "RandomStandardNormal" in refusal(build=build)


def test_a_draw_in_evaluation_alone_is_found() -> None:
    def loss(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
        losses, metrics = squared(model, batch, training)
        return losses if training else losses + tf.random.normal([]), metrics

    assert "in evaluation draws random numbers" in refusal(loss=loss)
    made(loss=loss, eval_split="none")  # which is never evaluated


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), lambda: random.random()])
def test_numbers_drawn_while_tracing_are_refused(draw: Callable[[], float]) -> None:
    def loss(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
        losses, metrics = squared(model, batch, training)
        return losses * draw(), metrics

    assert "while it is traced" in refusal(loss=loss)


def test_layers_outside_of_the_model_draw_from_the_step() -> None:
    """A Keras layer in `preprocess`, and `keras.random` without a seed: the same after a restart in the
    middle, other numbers at each step and in each of the two."""
    noise = layers.GaussianNoise(1.0)
    seen: list[np.ndarray] = []

    def preprocess(batch: Any, training: bool, seed: tf.Tensor) -> Any:
        return {**batch, "noise": noise(tf.zeros([BATCH, 3]), training=True)}

    def loss(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
        out = model(batch["x"])[:, 0]
        drawn = keras.random.normal([BATCH])
        return (out - batch["y"]) ** 2 + out * drawn + out * batch["noise"][:, 0], {
            "loss_draw": drawn,
            "pre_draw": batch["noise"][:, 0],
        }

    def values(edges: list[int]) -> dict[str, np.ndarray]:
        keras.backend.clear_session()
        run = made(loss=loss, preprocess=preprocess)
        state = run.program.state
        for first, stop in itertools.pairwise(edges):
            state.sums.assign(tf.zeros_like(state.sums))
            run.train(first, stop)
            seen.append(state.sums.numpy())
        return run.values()

    whole = values([0, 1, 2, 3, 4])
    # A restart: another process has its generators elsewhere, and comes to step 2 with the state of step 2.
    run = made(loss=loss, preprocess=preprocess)
    run.train(0, 2)
    half = run.program.state.named()
    noise(tf.zeros([1, 3]), training=True), keras.random.normal([1])
    again = made(loss=loss, preprocess=preprocess)
    for name, variable in again.program.state.named().items():
        variable.assign(half[name].read_value())
    again.train(2, 4)
    assert all(v.tobytes() == whole[n].tobytes() for n, v in again.values().items())
    draws = np.stack(seen)[:, [2, 4]]
    assert len(np.unique(draws.round(6))) == 8  # four steps, two places, all different


# --- what is written ---


def test_state_that_is_not_the_models_is_refused() -> None:
    outside, metric = tf.Variable(0.0, trainable=False), keras.metrics.Mean(name="running")

    def plain(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
        outside.assign_add(1.0)
        return squared(model, batch, training)

    def kept(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
        losses, metrics = squared(model, batch, training)
        metric.update_state(losses)
        return losses, metrics

    assert "writes Variable, which is no variable of the model" in refusal(loss=plain)
    assert "running/" in refusal(loss=kept)


# --- metrics ---


@pytest.mark.slow(but=4)
@pytest.mark.parametrize(
    "name",
    [
        "kind",
        "epoch",
        "step",
        "weights",
        "examples",
        "learning_rate",
        "examples_per_second",
        "skipped_steps",
        "loss",
    ],
)
def test_a_name_that_the_records_use_is_refused(name: str) -> None:
    message = refusal(loss=with_metrics(lambda x, _: {name: x}))
    assert repr(name) in message and f"my_{name}" in message


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (lambda x, _: {"m": tf.complex(x, x)}, ["'m' is complex64", "real part"]),
        (lambda x, _: {"m": tf.fill([BATCH], "a")}, ["'m' is string"]),
        (lambda x, _: {"m": (x, tf.zeros([BATCH]))}, ["weights of the metric 'm' are all 0"]),
        (lambda x, _: {"": x}, ["is called ''"]),
        (lambda x, _: {"a\x1b[31m": x}, ["is called 'a\\x1b[31m'"]),
        (lambda x, training: {"a" if training else "b": x}, ["a in training and b in evaluation"]),
        (lambda x, training: {"a": x} if training else {}, ["a in training and nothing in evaluation"]),
    ],
)
def test_metrics_that_say_nothing_are_refused(metrics: Any, words: list[str]) -> None:
    message = refusal(loss=with_metrics(metrics))
    assert all(word in message for word in words), message


# --- rows and shapes ---


@pytest.mark.parametrize("only", [True, False])
def test_a_preprocess_that_changes_the_rows_is_refused(only: bool) -> None:
    """In training, and in evaluation alone."""

    def preprocess(batch: Any, training: bool, seed: tf.Tensor) -> Any:
        return {k: v[::2] for k, v in batch.items()} if training == only else batch

    assert "makes 4 rows of the 8 of 'x'" in refusal(preprocess=preprocess)


def test_rows_that_are_known_only_when_it_runs_are_an_error_then() -> None:
    def preprocess(batch: Any, training: bool, seed: tf.Tensor) -> Any:
        return {k: tf.boolean_mask(v, batch["y"] > 0) for k, v in batch.items()}

    with pytest.raises(tf.errors.InvalidArgumentError):
        made(preprocess=preprocess).train(0, 1)


def test_a_variable_of_no_fixed_shape_is_refused_by_name() -> None:
    class Grows(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = tf.Variable(tf.zeros([2, 3]), shape=tf.TensorShape([None, 3]))

    message = refusal(build=Grows)
    assert "the variable memory has the shape (None, 3)" in message


def test_features_may_be_nested() -> None:
    def loss(model: Any, batch: dict[str, Any], training: bool) -> Any:
        return squared(model, {"x": batch["in"]["x"], "y": batch["y"]}, training)

    spec = {"in": {"x": tf.TensorSpec([3], tf.float32)}, "y": tf.TensorSpec([], tf.float32)}
    model = linear()
    trace = LossTrace(trainer.ModelModule(build=linear, loss=loss), model, walk(model), {})
    assert trace.check(spec, BATCH, tf.distribute.get_strategy()).means.metrics == ()


def trimmed(batch: Any, training: bool, seed: tf.Tensor) -> Any:
    """Rows as long as the longest of the batch."""
    used = tf.reduce_max(tf.cast(batch["n"], tf.int32))
    return {**batch, "x": tf.reshape(batch["x"], [batch["n"].shape[0], 6, 2])[:, :used]}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_norm": 0.1, "on_nonfinite": "skip"}])
def test_gradients_of_unknown_shape_on_two_replicas_equal_one(options: dict[str, Any]) -> None:
    def build() -> keras.Model:
        x = keras.Input((None, 2))
        y = layers.Dense(4, activation="tanh", name="d")(x)
        return keras.Model(x, layers.Dense(1, name="head")(layers.GlobalMaxPooling1D()(y)))

    random = np.random.default_rng(0)
    arrays = {
        "x": random.normal(size=(4 * BATCH, 12)),
        "y": random.normal(size=4 * BATCH),
        # Every share has a row of full length, so that the cut does not depend on the shares.
        "n": np.tile([6, 2], 2 * BATCH),
    }
    results = []
    for replicas in (1, 2):
        run = harness.make(
            build,
            squared,
            [".* sgd 0.1"],
            arrays,
            2,
            batch=2 * BATCH,
            precision="float64",
            strategy=strategy(replicas),
            preprocess=trimmed,
            **options,
        )
        before = run.values()
        run.train(0, 2)
        assert all(v.tobytes() != before[n].tobytes() for n, v in run.values().items())
        results.append(run.values())
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"jit_compile": True}])
def test_a_forward_pass_that_communicates_where_it_cannot_is_refused(options: dict[str, Any]) -> None:
    def build() -> keras.Model:
        x = keras.Input((3,))
        return keras.Model(x, layers.Dense(1, name="head")(layers.BatchNormalization(synchronized=True)(x)))

    message = refusal(build=build, strategy=strategy(2), **options)
    flag = "--accumulate=2" if "accumulate" in options else "--jit_compile"
    assert message.startswith(flag) and "synchronized=True" in message, message


def test_synchronised_statistics_are_those_of_the_whole_batch() -> None:
    def build() -> keras.Model:
        x = keras.Input((3,))
        norm = layers.BatchNormalization(momentum=0.5, synchronized=True, name="bn")
        return keras.Model(x, layers.Dense(1, name="head")(norm(x)))

    run = made(build=build, strategy=strategy(2), precision="float64", eval_split="none")
    run.train(0, 1)
    x = run.feed.arrays["x"][:BATCH]
    np.testing.assert_allclose(run.values()["bn/moving_mean"], 0.5 * x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(run.values()["bn/moving_variance"], 0.5 + 0.5 * x.var(0), rtol=1e-6)
