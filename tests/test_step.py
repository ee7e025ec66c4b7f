"""One step, one replica: phases, what frozen variables cost, clipping, accumulation, averages, precision, XLA."""

from collections import Counter
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import mnist_cnn
from tests import harness
from trainer.optimizers import state_bytes

BATCH = 8


def perceptron() -> keras.Model:
    x = keras.Input((3,))
    hidden = keras.layers.Dense(4, activation="tanh", name="a")(x)
    hidden = keras.layers.Dense(4, activation="tanh", name="b")(hidden)
    return keras.Model(x, keras.layers.Dense(1, name="head")(hidden))


def squared(model: Any, batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, dict]:
    return (model(batch["x"], training=training)[:, 0] - batch["y"]) ** 2, {}


def points(examples: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    x = random.normal(size=(examples, 3)).astype(dtype)
    return {"x": x, "y": np.sin(x).sum(1).astype(dtype)}


def small(rules: list[str], steps: int, dtype: str = "float32", **options: Any) -> harness.Made:
    options = {"batch": BATCH, **options}
    arrays = points(steps * options["batch"], dtype)
    return harness.make(perceptron, squared, rules, arrays, steps, precision=dtype, **options)


@pytest.fixture(autouse=True)
def float32_again() -> Any:
    yield
    harness.use_precision("float32")


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
    expected = {s: {"head"} | ({"b"} if 3 <= s < 7 else set()) | ({"a"} if s >= 5 else set()) for s in range(10)}
    assert moved == expected
    assert {o.group.name: int(o.keras.iterations.numpy()) for o in made.optimizers} == {
        "head": 10,
        "b": 4,
        "a": 5,
    }


def test_a_later_group_starts_its_schedule_and_its_optimizer_then() -> None:
    """Training from step 2 on is training from step 0 on, with the weights and batches of step 2."""
    late = small(["a/.* adam linear(0.1) from=2", ".* frozen", ][:1] + ["b/.* frozen", "head/.* sgd 1e-9"], 5)
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
    return Counter(n.op for f in (graph, *graph.library.function) for n in getattr(f, "node", None) or f.node_def)


@pytest.mark.parametrize(
    ("rules", "convolutions", "products"),
    [
        ([".* adam 1e-3"], 2, 4),
        (["conv1/.* frozen", ".* adam 1e-3"], 1, 4),
        (["(conv1|conv2|dense1)/.* frozen", ".* adam 1e-3"], 0, 2),
    ],
)
def test_frozen_variables_cost_no_gradient_and_no_state(
    rules: list[str], convolutions: int, products: int
) -> None:
    made = harness.make(
        mnist_cnn.build, mnist_cnn.loss, rules, harness.digits(BATCH, "float32"), 1, batch=BATCH
    )
    found = operations(made.program.trainer(made.phases[0], made.feed))
    assert found["Conv2DBackpropFilter"] == convolutions
    # Two dense layers forward, then the slope of each trained kernel and of what feeds the second.
    assert found["MatMul"] == 2 + products - (1 if products == 2 else 0) or found["MatMul"] == 2 + products
    trained = [v for v in made.variables if not any(v.name.startswith(r) for r in rules[0].split("/")[0])]
    sizes = state_bytes(made.optimizers)
    active = made.phases[0].names
    # Adam: two float32 for each parameter, and one count for the group.
    count = tf.as_dtype(made.optimizers[0].keras.iterations.dtype).size
    assert sum(sizes.values()) == 8 * sum(v.size for v in made.variables if v.name in active) + count
    del trained
    before = made.values()
    made.train(0, 1)
    for name, value in made.values().items():
        assert (value.tobytes() == before[name].tobytes()) == (name not in active), name
