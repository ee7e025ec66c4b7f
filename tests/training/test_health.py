"""An update that makes weights or slots non-finite from finite gradients is met as the step it is."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import mnist_mlp
from models.mnist_cnn import loss as crossed
from tests.support import harness
from tests.training.test_failures import outside
from tests.training.test_nonfinite import changed, loop, state
from tests.training.test_program import operations, points, squared
from tests.training.test_replicas import assert_copies_equal, strategy
from trainer.errors import UserError
from trainer.flags.criteria import Criterion
from trainer.training.evaluation import evaluator

BATCH, BAD = 8, 3


class Net(tf.Module):
    """Weights that train in peace, and one whose gradient is the batch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(tf.ones([3, 1]))
        self.odd = tf.Variable(1.0)

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        return x @ self.w


def scaled(model: Net, batch: dict[str, tf.Tensor], training: bool) -> Any:
    losses, metrics = squared(model, batch, training)
    return losses + batch["scale"] * model.odd, metrics


RULES = ("odd sgd(momentum=0.5) 1e21 name=rest", ".* adam 0.1 name=good")


def make(mode: str, replicas: int = 1, rules: Any = RULES, **flags: Any) -> harness.Made:
    """The gradient of the fourth batch is 1e18: finite, and its norm too; 1e21 times it is not."""
    data = points(6 * BATCH)
    data["scale"] = np.zeros(6 * BATCH, "float32")
    data["scale"][BAD * BATCH : (BAD + 1) * BATCH] = 1e18
    options = {"batch": BATCH, "on_nonfinite": mode, "strategy": strategy(replicas), **flags}
    return harness.make(Net, scaled, list(rules), data, 6, **options)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2])
def test_halt_saves_the_state_before_and_names_the_optimizer(replicas: int) -> None:
    made, saved = make("halt", replicas), []
    with pytest.raises(UserError) as error:
        run = loop(made, saved, [])
        run._pace = 100.0
        run.run()
    message = str(error.value)
    assert "step 4 is finite and its update is not: sgd(momentum=0.5) (group rest) made model/odd" in message
    assert "good" not in message
    good = make("halt", replicas)
    good.train(0, BAD)
    assert [step for step, _ in saved] == [BAD] and changed(state(good), saved[0][1]) == set()
    assert changed(state(good), state(made)) == set()
    assert_copies_equal(made)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2])
def test_skip_equals_a_run_without_that_batch(replicas: int) -> None:
    made, said = make("skip", replicas, ema=0.9), []
    loop(made, [], said).run()
    assert any("sgd(momentum=0.5) (group rest)" in s and "step 4" in s for s in said), said
    assert any("1 non-finite steps changed nothing: 4" in s for s in said), said
    other = make("skip", replicas, ema=0.9)
    rows = slice(BAD * BATCH, (BAD + 1) * BATCH)
    other.feed.arrays = {n: np.delete(x, rows, 0) for n, x in other.feed.arrays.items()}
    other.train(0, 5)
    counters = {"step", "nonfinite/skipped", "nonfinite/recent"}
    assert (
        changed(state(other), state(made)) - {"window/sums"} == counters
    )  # which the last log point empties
    assert state(made)["step"] == 6 and state(made)["nonfinite/recent"][0] == 4
    assert all(np.all(np.isfinite(v)) for v in state(made).values())


def test_off_lets_it_through() -> None:
    made = make("off")
    loop(made, [], []).run()
    assert np.isinf(state(made)["model/odd"])


def test_an_optimizer_that_fails_in_its_first_step() -> None:
    """Keras's Adafactor on the perceptron, whose update of the first step is NaN from finite gradients."""
    arrays, saved = harness.digits(6 * 32, "float32"), []
    made = harness.make(
        mnist_mlp.build, crossed, [".* adafactor constant(1e-3)"], arrays, 6, batch=32, on_nonfinite="halt"
    )
    before = state(made)
    with pytest.raises(
        UserError, match=r"step 1 is finite and its update is not: adafactor \(group group0\) made"
    ):
        loop(made, saved, []).run()
    assert not saved and changed(before, state(made)) == set()


def test_what_starts_infinite_is_the_users_own() -> None:
    made = make("halt")
    made.program.state.named()["model/odd"].assign(np.inf)
    run = loop(made, [], [])
    assert run._health.sick() == []


def test_a_state_too_large_to_copy_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.training.health.room", lambda _: 0)
    made, saved = make("halt"), []
    with pytest.raises(
        UserError, match=r"sgd\(momentum=0.5\) \(group rest\) made .* too large to keep a copy of"
    ):
        outside(loop(made, saved, []))
    assert not saved


def weightless(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
    losses, _ = squared(model, batch, training)
    ones = tf.ones_like(losses)
    return losses + 0 * model.odd, {"m": (losses, batch["scale"] * 0), "n": (losses, ones)}


def test_weights_that_sum_to_nothing_are_said_once() -> None:
    arrays, said = {**points(48), "scale": np.zeros(48, "f4")}, []
    made = harness.make(Net, weightless, [".* sgd 0.1"], arrays, 6)
    run = loop(made, [], said)
    run.events.log = 2
    run.run()
    assert said == ["The weights of the metric m sum to 0 up to step 2: it is NaN."]


def test_and_in_evaluations_which_then_are_no_best_one() -> None:
    """Of the first evaluation on, once for each metric; the numbers are NaN, which no comparison takes."""
    arrays, said, records = {**points(16), "scale": np.zeros(16, "f4")}, [], []
    made = harness.make(Net, weightless, [".* sgd 0.1"], arrays, 4, eval_split="train")

    class Told:
        rows: Any = None

        def warn(self, text: str) -> None:
            said.append(text)

        def evaluation(self, record: dict[str, Any], arrays: Any) -> None:
            records.append(record)

    feed = harness.ArrayFeed(arrays, 8, mask=True)
    evaluate = evaluator(feed, made.program, Told(), ("raw",))  # type: ignore[arg-type]
    for _ in range(2):
        numbers = evaluate(made.phases[0])
    assert len(said) == 1 and "The weights of the metric m sum to 0 in an evaluation" in said[0]
    assert np.isnan(numbers["m"]) and np.isfinite([numbers["n"], numbers["loss"]]).all() and len(records) == 2
    assert not any(Criterion("m", end).better(numbers["m"], 1.0) for end in ("min", "max"))


def test_the_step_has_no_op_more() -> None:
    """The guard of updates is between calls: the compiled step is the same with it as without."""
    made = make("halt")
    before = operations(made.program.trainer(made.phases[0], made.feed))
    loop(made, [], [])
    assert operations(made.program.trainer(made.phases[0], made.feed)) == before
    assert before["IsFinite"] == 2  # of the norm and of the loss
