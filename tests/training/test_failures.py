"""What fails inside the compiled step is one message, and the state before it is saved."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from tests.training.test_nonfinite import changed, loop, state
from tests.training.test_replicas import strategy
from trainer.errors import UserError
from trainer.run.train import _run

BATCH, BAD = 8, 3
HERE = "test_failures.py:"


def classifier() -> keras.Model:
    x = keras.Input((3,))
    return keras.Model(x, keras.layers.Dense(4, name="head")(x))


def arrays() -> dict[str, np.ndarray]:
    """Six batches; one label of the fourth is none of the four classes."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 6 * BATCH)
    labels[BAD * BATCH + 5] = 7
    return {"x": random.normal(size=(6 * BATCH, 3)).astype("float32"), "label": labels}


def crossed(model: Any, batch: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], model(batch["x"]))


def safe(model: Any, batch: dict[str, tf.Tensor]) -> tf.Tensor:
    return crossed(model, {**batch, "label": batch["label"] % 4})


def out_of_range(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
    return crossed(model, batch), {}


def asserted(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
    tf.debugging.assert_less(batch["label"], tf.constant(4, tf.int64), message="a label too large")
    return safe(model, batch), {}


def raised(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
    def host(labels: np.ndarray) -> np.ndarray:
        if labels.max() > 3:
            raise ValueError("no class of that number")
        return labels

    tf.numpy_function(host, [batch["label"]], tf.int64)
    return safe(model, batch), {}


def in_a_branch(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
    if tf.reduce_max(batch["label"]) > 3:  # noqa: SIM108
        extra = tf.strings.to_number("abc")
    else:
        extra = 0.0
    return safe(model, batch) + 0 * extra, {}


def in_a_metric(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
    hit = tf.debugging.check_numerics(tf.where(batch["label"] > 3, np.nan, 1.0), "a metric")
    return safe(model, batch), {"hit": hit}


FAILING: dict[Callable[..., Any], str] = {
    out_of_range: "Received a label value of 7 which is outside the valid range of [0, 4)",
    asserted: "assertion failed: [a label too large]",
    raised: "ValueError: no class of that number",
    in_a_branch: "could not correctly convert string: abc",
    in_a_metric: "a metric : Tensor had NaN values",
}


def make(loss: Callable[..., Any], replicas: int = 1, data: Any = None, **options: Any) -> harness.Made:
    options = {"on_nonfinite": "halt", "batch": BATCH, **options}
    rules = [".*/bias adam 0.1", ".* sgd(momentum=0.9) 0.1 name=rest"]
    return harness.make(classifier, loss, rules, data or arrays(), 6, strategy=strategy(replicas), **options)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("loss", FAILING, ids=lambda f: f.__name__)
def test_one_message_and_the_state_before(loss: Callable[..., Any], replicas: int) -> None:
    made, saved = make(loss, replicas), []
    with pytest.raises(UserError) as error:
        loop(made, saved, []).run()
    message = str(error.value)
    assert message.startswith("step 4 failed: the op ") and FAILING[loss] in message, message
    assert HERE in message and "The state after step 3 is saved" in message and "\n" not in message, message
    line = int(message.split(HERE)[1].split()[0])
    assert loss.__code__.co_firstlineno <= line or loss is out_of_range
    good = make(loss, replicas)
    good.train(0, BAD)
    assert [step for step, _ in saved] == [BAD]
    assert changed(state(good), saved[0][1]) == set()


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("options", [{"accumulate": 2}, {"accumulate": 2, "jit_compile": True}])
def test_in_an_accumulated_or_compiled_pass_too(options: dict[str, Any]) -> None:
    """The bad number is in the second batch of the fourth step."""
    loss = asserted if "jit_compile" not in options else in_a_branch
    made, saved = make(loss, **options), []
    with pytest.raises(UserError) as error:
        loop(made, saved, []).run()
    if "jit_compile" in options:
        assert "StringToNumber" in str(error.value) and "Leave out --jit_compile" in str(error.value)
        assert "No step was done" in str(error.value) and not saved
        return
    assert "step 4 failed" in str(error.value) and [step for step, _ in saved] == [BAD]
    good = make(loss, **options)
    good.train(0, BAD)
    assert changed(state(good), saved[0][1]) == set()


def test_without_the_guard_nothing_is_claimed_saved() -> None:
    made, saved = make(asserted, on_nonfinite="off"), []
    with pytest.raises(UserError, match="--on_nonfinite=off the step may be half done"):
        outside(loop(made, saved, []))
    assert not saved


def outside(inner: Any) -> None:
    """The loop as a run has it, which saves after an error what the loop could not; here it must not."""

    class Saved:
        step = 0

        def rescue(self) -> bool:
            raise AssertionError("a state that may be half a step on is saved")

    inner.reporter.screen = SimpleNamespace()
    _run(inner, Saved(), 0)  # type: ignore[arg-type]


def test_an_evaluation_that_fails_loses_no_step() -> None:
    def loss(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
        return (safe if training else crossed)(model, batch), {}

    made, saved = make(loss), []
    run = loop(made, saved, [])
    run.events.evaluate = 5
    feed = harness.ArrayFeed(made.feed.arrays, BATCH, mask=True)
    function = made.program.evaluator(feed)
    run.evaluate = lambda phase: {
        "loss": function(feed.chunk(0, feed.steps), tf.constant(feed.steps)).numpy()[0]
    }
    with pytest.raises(
        UserError, match=r"the evaluation after step 5 failed: .* label value of 7 .*step 5 is saved"
    ):
        run.run()
    good = make(loss)
    good.train(0, 5)
    assert [step for step, _ in saved] == [5] and changed(state(good), saved[0][1]) == set()
