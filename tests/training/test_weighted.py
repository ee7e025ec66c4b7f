"""A loss with weights: the update of many small passes is that of the one big batch, computed by hand."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from tests.training.test_health import loop
from tests.training.test_program import points
from tests.training.test_replicas import Kept, strategy
from trainer.errors import UserError
from trainer.training import window

BATCH, STEPS, TOKENS = 16, 4, 5
CLIP, RATE = 0.4, 0.1


@pytest.fixture(autouse=True)
def float32_again() -> Any:
    yield
    harness.use_precision("float32")


def arrays(dtype: str = "float64") -> dict[str, np.ndarray]:
    """Points, some of them of a rare kind; `count` tokens each, in step 1 none in two of eight passes, in
    step 2 none at all."""
    random = np.random.default_rng(3)
    count = random.integers(0, TOKENS + 1, STEPS * BATCH)
    count[BATCH : BATCH + 4], count[2 * BATCH : 3 * BATCH] = 0, 0
    found = points(STEPS * BATCH, dtype)
    return {**found, "count": count, "rare": (found["x"][:, 0] > 1).astype("int64")}


def linear() -> keras.Model:
    return keras.Sequential([keras.Input([3]), keras.layers.Dense(1, name="head")])


def each(model: Any, batch: Any, training: bool) -> tf.Tensor:
    return (tf.cast(model(batch["x"], training=training)[:, 0], batch["y"].dtype) - batch["y"]) ** 2


def of_tokens(model: Any, batch: Any, training: bool) -> Any:
    """Each token has an error of its own; the mean over an example's, by their number."""
    there = tf.cast(
        tf.range(TOKENS)[tf.newaxis] < tf.cast(batch["count"], tf.int32)[:, tf.newaxis], tf.float64
    )
    errors = each(model, batch, training)[:, tf.newaxis] * tf.range(1, TOKENS + 1, dtype=tf.float64)
    count = tf.reduce_sum(there, 1)
    mean = tf.reduce_sum(errors * there, 1) / tf.maximum(count, 1)
    return (mean, count), {"plain": errors[:, 0]}


def of_classes(model: Any, batch: Any, training: bool) -> Any:
    losses = each(model, batch, training)
    return (losses, 1 + 9 * batch["rare"]), {"plain": losses}


def of_samples(model: Any, batch: Any, training: bool) -> Any:
    losses = each(model, batch, training)
    return (losses, tf.cast(batch["count"], tf.float64) / 3), {"plain": losses}


def by_hand(
    loss: Callable[..., Any], model: Any, data: dict[str, np.ndarray], momentum: dict[str, float]
) -> list[float]:
    """Trains `model` by plain code, a whole batch at once; `momentum` by the layer's name. Logged losses."""
    velocities, logged = [tf.zeros_like(v) for v in model.trainable_variables], []
    for step in range(STEPS):
        batch = {n: tf.constant(a[step * BATCH : (step + 1) * BATCH]) for n, a in data.items()}
        with tf.GradientTape() as tape:
            (losses, weights), _ = loss(model, batch, True)
            weights = tf.cast(weights, tf.float64)
            mean = tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))
            total = mean + sum(model.losses)
        gradients = tape.gradient(total, model.trainable_variables)
        gradients, _ = tf.clip_by_global_norm(gradients, tf.constant(CLIP, tf.float64))
        for k, (v, g) in enumerate(zip(model.trainable_variables, gradients, strict=True)):
            # As Keras has it, whose momentum goes through float32: 0.5 is the same in both.
            velocities[k] = (
                momentum[v.path.split("/")[-2]] * velocities[k] - tf.constant(RATE, tf.float64) * g
            )
            v.assign_add(velocities[k])
        logged.append(float(total) if float(tf.reduce_sum(weights)) else np.nan)
    return logged


GROUPS = {
    "one group": ([f".* sgd {RATE}"], {"a": 0.0, "adds": 0.0, "head": 0.0}),
    "groups": (
        [f"a/.* sgd(momentum=0.5) {RATE}", f"adds/.* sgd {RATE}", f"head/.* sgd(momentum=0.25) {RATE}"],
        {"a": 0.5, "adds": 0.0, "head": 0.25},
    ),
}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("loss", "groups", "replicas", "accumulate"),
    [
        (of_tokens, "groups", 2, 4),
        (of_classes, "groups", 2, 4),
        (of_samples, "one group", 2, 4),
        (of_tokens, "one group", 1, 1),
        (of_samples, "groups", 1, 4),
        (of_samples, "groups", 2, 1),
    ],
)
def test_the_update_is_that_of_the_one_big_batch(
    loss: Callable[..., Any], groups: str, replicas: int, accumulate: int
) -> None:
    """With activity regularisers, weight regularisers and an added loss, clipped."""
    rules, momentum = GROUPS[groups]
    data = arrays()
    made = harness.make(
        Kept,
        loss,
        rules,
        data,
        STEPS,
        strategy=strategy(replicas),
        precision="float64",
        batch=BATCH,
        accumulate=accumulate,
        clip_norm=CLIP,
        on_nonfinite="skip",
    )
    model = Kept()
    for v, start in zip(model.variables, made.values().values(), strict=True):
        v.assign(start)
    logged, state = [], made.program.state
    train = made.program.trainer(made.phases[0], made.feed)
    for step in range(STEPS):
        state.sums.assign(tf.zeros_like(state.sums))
        train(made.feed.chunk(step, 1), tf.constant(1))
        sums = state.sums.numpy()
        logged.append(window.means_of(sums, state.means)["loss"])
        assert window.examples(sums) == BATCH
    # The whole batch at once: what the model adds is a mean over examples, as over passes of one size.
    expected = by_hand(loss, model, data, momentum)
    for v, value in zip(model.variables, made.values().values(), strict=True):
        np.testing.assert_allclose(value, v.numpy(), rtol=0, atol=1e-12, err_msg=v.path)
    np.testing.assert_allclose(logged, expected, rtol=1e-12)
    assert np.isnan(logged[2]) == (loss is not of_classes)
    assert int(state.skipped.numpy()) == 0


def test_an_evaluation_is_exact_over_a_ragged_last_batch() -> None:
    data = {name: value[:13] for name, value in arrays().items()}
    made = harness.make(
        linear,
        of_samples,
        [".* sgd 0.1"],
        data,
        1,
        strategy=strategy(2),
        batch=4,
        precision="float64",
    )
    feed = harness.ArrayFeed(data, 4, mask=True)
    sums = made.program.evaluator(feed)(feed.chunk(0, feed.steps), tf.constant(feed.steps))[0].numpy()
    kernel, bias = made.values().values()
    losses, weights = ((data["x"] @ kernel + bias)[:, 0] - data["y"]) ** 2, data["count"] / 3
    got = window.means_of(sums, made.program.state.means)
    assert window.examples(sums) == 13
    np.testing.assert_allclose(got["loss"], (losses * weights).sum() / weights.sum(), rtol=1e-13)
    np.testing.assert_allclose(got["plain"], losses.mean(), rtol=1e-13)


@pytest.mark.slow
def test_half_precision_holds_weights_that_are_large() -> None:
    """The same weights times 10,000: a sum of such losses times the loss scale overflows half precision."""

    def train(factor: float, precision: str) -> harness.Made:
        def loss(model: Any, batch: Any, training: bool) -> Any:
            losses = each(model, batch, training)
            return (losses, factor * tf.cast(batch["count"], losses.dtype)), {}

        made = harness.make(
            linear,
            loss,
            [".* sgd 0.1"],
            arrays("float32"),
            STEPS,
            precision=precision,
            batch=BATCH,
            accumulate=2,
        )
        for v, value in zip(made.variables, (np.ones([3, 1]), np.zeros([1])), strict=True):
            v.value.assign(value)
        if made.program.state.scale is not None:
            made.program.state.scale.assign(256.0)  # at which the mean of these losses does not overflow
        made.train(0, STEPS)
        return made

    small, large, exact = train(1, "mixed_float16"), train(1e4, "mixed_float16"), train(1, "float32")
    assert int(large.program.state.skipped.numpy()) == 0 and int(large.program.state.step.numpy()) == STEPS
    for name, value in exact.values().items():
        np.testing.assert_allclose(large.values()[name], value, rtol=2e-2, atol=1e-3)
        np.testing.assert_allclose(large.values()[name], small.values()[name], rtol=1e-3)


def messages(loss: Callable[..., Any], steps: int = STEPS, every: int = 1, **flags: Any) -> list[str]:
    """What a run warns of, with a log point at each `every` steps."""
    said: list[str] = []
    made = harness.make(linear, loss, [".* sgd 0.1"], arrays("float32"), steps, batch=BATCH, **flags)
    run = loop(made, [], said)
    run.events.log = every
    run.run()
    return said


def test_a_step_without_weight_is_said_once() -> None:
    def loss(model: Any, batch: Any, training: bool) -> Any:
        losses = each(model, batch, training)
        return (losses, tf.zeros_like(losses) * losses), {}

    said = messages(loss, every=2)
    assert said == [
        "The weights of the loss sum to 0 up to step 2: it is NaN.",
        "In 2 of the steps up to 2 the weights of a loss sum to 0: such a step has no gradient of it.",
    ]


def test_negative_weights_end_the_run_in_one_message() -> None:
    def loss(model: Any, batch: Any, training: bool) -> Any:
        losses = each(model, batch, training)
        return (losses, batch["x"][:, 0]), {}

    with pytest.raises(UserError, match=r"step 1 failed: .* weights of a loss are negative.*least is"):
        messages(loss, on_nonfinite="halt")
    with pytest.raises(UserError, match="step 1 is not finite"):  # XLA leaves assertions out
        messages(loss, 1, on_nonfinite="halt", jit_compile=True)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda x: (x, tf.constant(-1.0, shape=[BATCH])), "weights of the loss are negative"),
        (lambda x: (x, tf.zeros([BATCH])), "weights of the loss are all 0"),
        (lambda x: (x, tf.ones([])), r"weight of the loss has shape \(\)"),
        (lambda x: (x, x, x), "the loss has 3 parts"),
        (lambda x: (x, tf.cast(x, tf.complex64)), "complex64"),
    ],
)
def test_weights_that_are_none_are_refused(returned: Callable[..., Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        messages(lambda model, batch, training: (returned(each(model, batch, training)), {}))
