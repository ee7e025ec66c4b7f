"""A step on one replica: phases, frozen variables, clipping, accumulation, averages, precision, XLA."""

from collections import Counter
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import mnist_cnn
from tests.support import harness
from trainer.groups.group_optimizer import state_bytes

BATCH = 8


def perceptron() -> keras.Model:
    x = keras.Input((3,))
    hidden = keras.layers.Dense(4, activation="tanh", name="a")(x)
    hidden = keras.layers.Dense(4, activation="tanh", name="b")(hidden)
    return keras.Model(x, keras.layers.Dense(1, name="head")(hidden))


def squared(model: Any, batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, dict]:
    return (tf.cast(model(batch["x"], training=training)[:, 0], batch["y"].dtype) - batch["y"]) ** 2, {}


def points(examples: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    x = random.normal(size=(examples, 3)).astype(dtype)
    return {"x": x, "y": np.sin(x).sum(1).astype(dtype)}


def small(rules: list[str], steps: int, dtype: str = "float32", **options: Any) -> harness.Made:
    options = {"batch": BATCH, **options}
    arrays = points(steps * options["batch"], dtype)
    return harness.make(perceptron, squared, rules, arrays, steps, precision=dtype, **options)


def test_a_phase_is_exact_to_the_step_and_traced_once() -> None:
    traces: Counter[bool] = Counter()

    def counted(model: Any, batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, dict]:
        traces[training] += 1
        return squared(model, batch, training)

    rules = [
        "head/.* adam 0.01 name=head",
        "b/.* sgd(momentum=0.9) 0.01 name=b from=3 until=7",
        "a/.* adam linear(0.1) name=a from=5",
    ]
    made = harness.make(perceptron, counted, rules, points(10 * BATCH), 10, batch=BATCH)
    assert [(p.start, p.stop) for p in made.phases] == [(0, 3), (3, 5), (5, 7), (7, 10)]
    traces.clear()
    moved, before = {}, made.values()
    for phase in made.phases:
        train = made.program.trainer(phase, made.feed)
        for step in range(phase.start, phase.stop):
            train(made.feed.chunk(step, 1), tf.constant(1))
            after = made.values()
            moved[step] = {n.split("/")[0] for n in after if after[n].tobytes() != before[n].tobytes()}
            before = after
    assert traces == {True: len(made.phases)}
    expected = {
        s: {"head"} | ({"b"} if 3 <= s < 7 else set()) | ({"a"} if s >= 5 else set()) for s in range(10)
    }
    assert moved == expected
    assert {o.group.name: int(o.keras.iterations.numpy()) for o in made.optimizers} == {
        "head": 10,
        "b": 4,
        "a": 5,
    }


def test_a_later_group_starts_its_schedule_and_its_optimizer_then() -> None:
    """Training from step 2 on is training from step 0 on, with the weights and batches of step 2."""
    late = small(["a/.* adam linear(0.1) from=2", "b/.* frozen", "head/.* sgd 1e-9"], 5)
    start = late.values()
    late.train(0, 5)
    early = small(["a/.* adam linear(0.1)", "b/.* frozen", "head/.* sgd 1e-9"], 3)
    early.feed.arrays = {n: x[2 * BATCH :] for n, x in late.feed.arrays.items()}
    early.train(0, 3)
    for name, value in early.values().items():
        np.testing.assert_allclose(value, late.values()[name], atol=1e-7)
    assert np.abs(early.values()["a/kernel"] - start["a/kernel"]).max() > 0.05


def test_state_of_a_closed_group_is_kept() -> None:
    made = small(["a/.* adam 0.1 until=2", ".* sgd 0.1"], 4)
    made.train(0, 2)
    kept = {n: v.numpy() for n, v in made.program.state.named().items() if n.startswith("optimizer/a")}
    assert np.abs(kept["optimizer/a/kernel/momentums"]).max() > 0
    made.train(2, 4)
    for name, value in kept.items():
        assert made.program.state.named()[name].numpy().tobytes() == value.tobytes(), name


def operations(function: Any) -> Counter[str]:
    """How often each op stands in a compiled function and all that it calls."""
    graph = function.get_concrete_function().graph.as_graph_def()
    return Counter(
        n.op for f in (graph, *graph.library.function) for n in getattr(f, "node", None) or f.node_def
    )


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("rules", "convolutions", "products"),
    [
        # Two dense layers forward; backward the slope of each trained kernel and of what is below it.
        ([".* adam 1e-3"], 2, 2 + 4),
        (["conv1/.* frozen", ".* adam 1e-3"], 1, 2 + 4),
        (["(conv1|conv2|dense1)/.* frozen", ".* adam 1e-3"], 0, 2 + 1),
    ],
)
def test_frozen_variables_cost_no_gradient_and_no_state(
    rules: list[str], convolutions: int, products: int
) -> None:
    arrays = harness.digits(BATCH, "float32")
    made = harness.make(mnist_cnn.build, mnist_cnn.loss, rules, arrays, 1, batch=BATCH)
    found = operations(made.program.trainer(made.phases[0], made.feed))
    assert (found["Conv2DBackpropFilter"], found["MatMul"]) == (convolutions, products)
    active = made.phases[0].names
    # Adam: two float32 for each parameter, and one count for the group.
    count = tf.as_dtype(made.optimizers[0].keras.iterations.dtype).size
    parameters = sum(v.size for v in made.variables if v.name in active)
    assert sum(state_bytes(made.optimizers).values()) == 8 * parameters + count
    before = made.values()
    made.train(0, 1)
    for name, value in made.values().items():
        assert (value.tobytes() == before[name].tobytes()) == (name not in active), name


def test_the_statistics_of_a_frozen_layer_do_not_move_by_a_bit() -> None:
    def build() -> keras.Model:
        x = keras.Input((3,))
        y = keras.layers.Dense(4, name="a")(x)
        y = keras.layers.BatchNormalization(momentum=0.5, name="bn")(y)
        y = keras.layers.Dense(4, name="b")(y)
        y = keras.layers.BatchNormalization(scale=False, center=False, name="bare")(y)
        return keras.Model(x, keras.layers.Dense(1, name="head")(y))

    rules = ["bn/.* sgd 0.1 from=2 until=4", ".* sgd 0.1"]
    made = harness.make(build, squared, rules, points(6 * BATCH), 6, batch=BATCH)
    seen = [made.values()]
    for step in range(6):
        made.train(step, step + 1)
        seen.append(made.values())
    for name in ("bn/moving_mean", "bn/moving_variance", "bn/gamma"):
        moved = [seen[k][name].tobytes() != seen[k + 1][name].tobytes() for k in range(6)]
        assert moved == [False, False, True, True, False, False], name
    # A normalisation with nothing to train in it is as frozen as the model around it: not at all.
    assert all(
        seen[k]["bare/moving_mean"].tobytes() != seen[k + 1]["bare/moving_mean"].tobytes() for k in range(6)
    )


def slopes(made: harness.Made, step: int = 0) -> dict[str, np.ndarray]:
    """The gradients at a step's batch, as the program computes them before clipping."""
    function = made.program.gradients(made.phases[0], made.feed)
    return {name: g.numpy() for name, g in function(made.feed.chunk(step, 1))[0].items()}


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_clipping_is_by_the_norm_over_all_groups(clip: float) -> None:
    rules = ["a/.* sgd 0.5", "b/kernel sgd 0.25", ".* sgd 1.0"]
    made = small(rules, 1, "float64", clip_norm=clip)
    start, gradients = made.values(), slopes(made)
    assert all(start[n].tobytes() == v.tobytes() for n, v in made.values().items())  # computed, not applied
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert 0.05 < norm < 100
    made.train(0, 1)
    for name, g in gradients.items():
        rate = 0.5 if name.startswith("a/") else 0.25 if name == "b/kernel" else 1.0
        expected = start[name] - rate * g * min(1.0, clip / norm)
        np.testing.assert_allclose(made.values()[name], expected, rtol=0, atol=1e-12)


def test_gradients_equal_numpys_differences() -> None:
    made = small([".* sgd 1"], 1, "float64")
    x, y = (made.feed.arrays[n] for n in ("x", "y"))

    def loss(w: dict[str, np.ndarray]) -> float:
        h = np.tanh(x @ w["a/kernel"] + w["a/bias"])
        h = np.tanh(h @ w["b/kernel"] + w["b/bias"])
        return float((((h @ w["head/kernel"] + w["head/bias"])[:, 0] - y) ** 2).mean())

    for name, g in slopes(made).items():
        w, at = made.values(), (0,) * g.ndim
        low, high = ({**w, name: w[name].copy()} for _ in range(2))
        low[name][at] -= 1e-5
        high[name][at] += 1e-5
        assert abs((loss(high) - loss(low)) / 2e-5 - g[at]) < 1e-8, name


def test_accumulation_equals_the_larger_batch() -> None:
    whole = small([".* adam 0.01"], 5, batch=4 * BATCH)
    parts = small([".* adam 0.01"], 5, batch=4 * BATCH, accumulate=4)
    start = whole.values()
    for made in (whole, parts):
        made.train(0, 5)
    for name, value in parts.values().items():
        np.testing.assert_allclose(value, whole.values()[name], rtol=0, atol=1e-6)
        assert np.abs(value - start[name]).max() > 1e-2
    np.testing.assert_allclose(parts.program.state.sums, whole.program.state.sums, rtol=1e-6)
    assert parts.program.state.step.numpy() == 5


def test_averages_against_numpy() -> None:
    made = small(["a/.* frozen", ".* sgd 0.1"], 4, "float64", ema=0.75)
    expected = {n: v for n, v in made.values().items() if not n.startswith("a/")}
    for step in range(4):
        made.train(step, step + 1)
        expected = {n: 0.75 * e + 0.25 * made.values()[n] for n, e in expected.items()}
    averages = made.program.state.averages
    assert averages.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(averages[name], value, rtol=0, atol=1e-15)
    raw = made.values()
    made.program.state.swap_averages(made.program.strategy)
    for name, value in expected.items():
        np.testing.assert_allclose(made.values()[name], value, rtol=0, atol=1e-15)
    made.program.state.swap_averages(made.program.strategy)
    assert all(v.tobytes() == raw[n].tobytes() for n, v in made.values().items())


@pytest.mark.slow
def test_xla_computes_the_same() -> None:
    rules, results = ["a/.* adam 0.01", ".* sgd 0.1"], []
    for jit in (False, True):
        made = small(rules, 10, clip_norm=1.0, on_nonfinite="skip", jit_compile=jit)
        made.train(0, 10)
        compiled = operations(made.program.trainer(made.phases[0], made.feed))
        assert (compiled["StatefulPartitionedCall"] + compiled["PartitionedCall"] > 0) == jit
        results.append(made.values())
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_float32_weights_by_half_products(precision: str) -> None:
    steps, losses = 60, []
    arrays = points(steps * 32)
    for kind in ("float32", precision):
        made = harness.make(perceptron, squared, [".* adam 0.02"], arrays, steps, precision=kind, batch=32)
        for first in (0, steps - 10):
            made.program.state.sums.assign([0.0, 0.0])
            made.train(first, steps - 10 if first == 0 else steps)
        losses.append(made.program.state.sums.numpy()[0] / 320)
        assert {v.value.dtype for v in made.variables} == {tf.float32}
    half = tf.as_dtype(precision.removeprefix("mixed_")).as_datatype_enum
    function = made.program.trainer(made.phases[0], made.feed).get_concrete_function()
    graph = function.graph.as_graph_def()
    products = [n for f in graph.library.function for n in f.node_def if n.op == "MatMul"]
    assert products and all(n.attr["T"].type == half for n in products)
    # From about 1.3 at the start.
    assert losses[0] < 0.2 and abs(losses[1] - losses[0]) < 0.1, losses


def test_a_constraint_of_a_layer_is_kept_as_keras_keeps_it() -> None:
    def build() -> keras.Model:
        x = keras.Input((3,))
        unit = keras.constraints.UnitNorm(axis=0)
        return keras.Model(x, keras.layers.Dense(1, kernel_constraint=unit, name="head")(x))

    made = harness.make(
        build, squared, [".* sgd 0.1"], points(BATCH, "float64"), 1, precision="float64", batch=BATCH
    )
    model = build()
    for v in model.variables:
        v.assign(made.values()[v.path])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.train_on_batch(made.feed.arrays["x"], made.feed.arrays["y"])
    made.train(0, 1)
    for v in model.variables:
        np.testing.assert_allclose(made.values()[v.path], v.numpy(), rtol=0, atol=1e-12)
    assert abs(np.linalg.norm(made.values()["head/kernel"]) - 1) < 1e-6


def test_evaluation_is_exact_with_a_ragged_last_batch() -> None:
    made = small([".* sgd 0.1"], 1)
    x, y = (points(13)[n] for n in ("x", "y"))
    feed = harness.ArrayFeed({"x": x, "y": y}, 4, mask=True)
    sums = made.program.evaluator(feed)(feed.chunk(0, feed.steps), tf.constant(feed.steps))[0].numpy()
    expected = ((np.asarray(made.program.network.model(x))[:, 0] - y) ** 2).sum(dtype=np.float64)
    np.testing.assert_allclose(sums, [expected, 13], rtol=1e-6)
