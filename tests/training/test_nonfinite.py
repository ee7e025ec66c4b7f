"""A step that is not finite changes nothing but the step, its counter and the loss scale."""

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from trainer.errors import UserError
from trainer.groups.phases import Events
from trainer.training.loop import Loop

BATCH, BAD = 8, 3


class Net(tf.Module):
    """Keras layers and a state of its own, which every forward pass moves."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = (
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        )
        self.hidden.build((None, 3))
        self.norm.build((None, 4))
        self.head.build((None, 4))
        mean = tf.VariableAggregation.MEAN
        self.seen = tf.Variable(tf.zeros([3]), trainable=False, aggregation=mean)
        self.factor = tf.Variable(1.0)


def loss(model: Net, batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, dict]:
    model.seen.assign_add(tf.reduce_mean(batch["x"], 0))
    y = model.head(model.norm(model.hidden(batch["x"]), training=training))[:, 0]
    # The slope of the square root is infinite at 0: a gradient that is not finite by a loss that is.
    root = tf.sqrt(tf.abs(model.factor) * batch["z"])
    return (tf.cast(y, tf.float32) - 1) ** 2 + root, {"watched": batch["m"]}


def arrays(name: str, value: float) -> dict[str, np.ndarray]:
    """Six batches, the fourth with one bad number."""
    random = np.random.default_rng(0)
    data = {
        "x": random.normal(size=(6 * BATCH, 3)).astype("float32"),
        "z": np.ones(6 * BATCH, "float32"),
        "m": np.ones(6 * BATCH, "float32"),
    }
    data[name][BAD * BATCH + 5] = value
    return data


def make(bad: tuple[str, float], mode: str, replicas: int = 1, **options: Any) -> harness.Made:
    rules = ["hidden/.* adam 0.01", "norm/.* sgd(momentum=0.9) 0.1", ".* sgd 0.1 name=rest"]
    strategy = harness.mirrored(replicas) if replicas > 1 else None
    options = {"batch": BATCH, "ema": 0.9, "on_nonfinite": mode, **options}
    made = harness.make(Net, loss, rules, arrays(*bad), 6, strategy=strategy, **options)
    if made.program.state.scale is not None:
        assert made.program.state.scale.numpy() == 2.0**15
        made.program.state.scale.assign(256.0)  # at which nothing of these batches overflows
    return made


def state(made: harness.Made) -> dict[str, np.ndarray]:
    return {name: v.numpy() for name, v in made.program.state.named().items()}


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {n for n in before if before[n].tobytes() != after[n].tobytes() and "generator" not in n}


# A NaN in the forward pass, and a loss of 1 with the slope 0 * inf.
@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("bad", [("x", np.nan), ("z", 0.0)])
def test_a_skipped_step_changes_its_counters_only(bad: tuple[str, float], replicas: int) -> None:
    made = make(bad, "skip", replicas)
    made.train(0, BAD)
    before = state(made)
    made.train(BAD, BAD + 1)
    after = state(made)
    assert changed(before, after) == {"step", "nonfinite/skipped", "nonfinite/recent"}
    assert (after["step"], after["nonfinite/skipped"], after["nonfinite/recent"][0]) == (BAD + 1, 1, BAD + 1)
    made.train(BAD + 1, 6)
    moved = changed(after, state(made))
    assert {"model/seen", "model/norm/moving_mean", "model/hidden/kernel", "window/sums"} <= moved
    assert all(np.all(np.isfinite(v)) for v in state(made).values())
    assert state(made)["nonfinite/skipped"] == 1


def test_a_run_that_skips_equals_one_without_that_batch() -> None:
    made = make(("x", np.nan), "skip")
    made.train(0, 6)
    other = make(("m", 1.0), "skip")
    rows = slice(BAD * BATCH, (BAD + 1) * BATCH)
    other.feed.arrays = {n: np.delete(x, rows, 0) for n, x in other.feed.arrays.items()}
    other.train(0, 5)
    counters = {"step", "nonfinite/skipped", "nonfinite/recent"}
    assert changed(state(other), state(made)) == counters


def test_off_lets_it_through() -> None:
    made = make(("x", np.nan), "off")
    made.train(0, BAD + 1)
    assert np.isnan(made.values()["hidden/kernel"]).all()


def test_a_metric_that_is_not_finite_stops_nothing() -> None:
    made = make(("m", np.inf), "halt")
    made.train(0, 6)
    assert state(made)["step"] == 6 and state(made)["nonfinite/skipped"] == 0
    assert np.isinf(state(made)["window/sums"][2]) and np.isfinite(state(made)["window/sums"][0])


def loop(made: harness.Made, saved: list[Any], said: list[str]) -> Loop:
    quiet = {name: lambda *args, **rest: None for name in ("progress", "log", "note", "evaluation")}
    reporter = SimpleNamespace(**quiet, warn=said.append, stop=False, steps_per_epoch=6.0)
    events = Events(log=100, evaluate=100, save=100, total=6)
    save = lambda step, metrics: saved.append((step, state(made)))  # noqa: E731
    return Loop(made.program, tuple(made.phases), events, made.feed, reporter, None, save)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2])
def test_halt_saves_the_state_before_and_names_the_variables(replicas: int) -> None:
    made, saved = make(("z", 0.0), "halt", replicas), []
    with pytest.raises(UserError) as error:
        loop(made, saved, []).run()
    assert "step 4 is not finite" in str(error.value) and "the gradients of factor" in str(error.value)
    assert "hidden" not in str(error.value) and "so is the loss" not in str(error.value)
    good = make(("z", 0.0), "halt", replicas)
    good.train(0, BAD)
    assert [step for step, _ in saved] == [BAD]
    assert changed(state(good), saved[0][1]) == set()
    assert changed(state(good), state(made)) == set()  # the diagnosis, too, changes nothing


def test_halt_tells_of_the_loss() -> None:
    with pytest.raises(UserError, match=r"step 4 is not finite: .*hidden/kernel.* so is the loss"):
        loop(make(("x", np.nan), "halt"), [], []).run()


def test_skipped_steps_are_reported_by_step() -> None:
    made, said = make(("x", np.nan), "skip"), []
    made.feed.arrays["x"][5 * BATCH] = np.inf
    loop(made, [], said).run()
    assert " ".join(said).count("changed nothing") == len(said)
    assert any("4" in s for s in said) and any("6" in s for s in said), said


def test_an_overflow_of_float16_skips_and_halves_the_scale() -> None:
    made = make(("x", 1e30), "halt", precision="mixed_float16")
    made.train(0, BAD)
    assert (state(made)["loss_scale/scale"], state(made)["loss_scale/good"]) == (256, 3)
    made.train(BAD, 6)
    after = state(made)
    assert (after["loss_scale/scale"], after["loss_scale/good"], after["step"]) == (128, 2, 6)
    assert after["nonfinite/skipped"] == 1 and after["nonfinite/recent"][0] == BAD + 1


def test_float16_halts_only_at_the_smallest_scale() -> None:
    made, saved, said = make(("x", np.nan), "halt", precision="mixed_float16"), [], []
    made.feed.arrays["x"][BAD * BATCH :] = np.nan
    made.program.state.scale.assign(4.0)
    with pytest.raises(UserError, match="step 6 is not finite"):
        loop(made, saved, said).run()
    # Steps 4 and 5 halve it to 2 and 1; step 6 meets the minimum and is not done.
    assert state(made)["loss_scale/scale"] == 1 and state(made)["step"] == 5
    assert [step for step, _ in saved] == [5]
    assert "The loss scale is now" in " ".join(said)


@pytest.mark.slow
def test_the_scale_doubles_after_two_thousand_good_steps() -> None:
    made = make(("m", 1.0), "skip", precision="mixed_float16")
    made.program.state.good.assign(1998)
    made.train(0, 1)
    assert (state(made)["loss_scale/scale"], state(made)["loss_scale/good"]) == (256, 1999)
    made.train(1, 2)
    assert (state(made)["loss_scale/scale"], state(made)["loss_scale/good"]) == (512, 0)


def test_the_scale_stays_finite() -> None:
    def flat(model: Net, batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, dict]:
        losses, metrics = loss(model, batch, training)
        return 0 * losses, metrics

    made = harness.make(
        Net, flat, [".* sgd 0.1"], arrays("m", 1.0), 2, precision="mixed_float16", batch=BATCH
    )
    made.program.state.scale.assign(2.0**127)
    made.program.state.good.assign(1999)
    made.train(0, 1)
    assert (state(made)["loss_scale/scale"], state(made)["step"]) == (2.0**127, 1)


@pytest.mark.slow
def test_the_scale_is_taken_out_of_the_gradients_before_clipping() -> None:
    results = []
    for precision in ("float32", "mixed_float16"):
        made = make(("m", 1.0), "skip", precision=precision, clip_norm=0.5)
        start = made.values()
        made.train(0, 1)
        results.append({n: v - start[n] for n, v in made.values().items()})
    for name in ("factor", "head/kernel", "norm/gamma"):
        np.testing.assert_allclose(results[1][name], results[0][name], rtol=0.02, atol=1e-4)
        assert np.abs(results[0][name]).max() > 1e-3
