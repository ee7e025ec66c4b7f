"""Norms by group of the step that ends at a log point, against NumPy on the weights before and after it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness

RULES = [
    ".*/bias  sgd  0.5  name=biases",
    "a/kernel  sgd  0.25  name=first",
    ".*  sgd  0.1  name=rest from=4",
]


def build():
    return keras.Sequential(
        [
            keras.Input([5]),
            keras.layers.Dense(4, activation="tanh", name="a"),
            keras.layers.Dense(1, name="b"),
        ]
    )


def loss(model, batch, training):
    return (model(batch["x"], training=training)[:, 0] - batch["y"]) ** 2, {}


def made(rules=RULES, **more):
    random = np.random.default_rng(0)
    arrays = {"x": random.normal(size=[64, 5]), "y": random.normal(size=[64])}
    return harness.make(build, loss, rules, arrays, 8, precision="float64", **more)


def measured(run, start):
    """(numbers of the last of three steps from `start` on, values before that one, values after it)."""
    phase = next(p for p in run.phases if p.start <= start < p.stop)
    train = run.program.trainer(phase, run.feed)
    kept = run.program.state.named()
    kept = {name: (v, v.numpy()) for name, v in kept.items()}
    assert int(train(run.feed.chunk(start, 2), tf.constant(2))) == 2
    before = run.values()
    for v, value in kept.values():
        v.assign(value)
    assert int(train(run.feed.chunk(start, 3), tf.constant(3))) == 3
    return run.program.norms.numbers(phase), before, run.values()


def norm(arrays):
    return float(np.sqrt(sum((a**2).sum() for a in arrays)))


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("flags", [{}, {"clip_norm": 0.05}, {"on_nonfinite": "skip"}, {"accumulate": 2}])
def test_norms_are_those_of_numpy(replicas, flags):
    run = made(strategy=harness.mirrored() if replicas == 2 else None, **flags)
    for start in (0, 4):
        if start == 4:
            run.train(3, 4)
        numbers, before, after = measured(run, start)
        groups = {"biases": (["a/bias", "b/bias"], 0.5), "first": (["a/kernel"], 0.25)}
        if start == 4:
            groups["rest"] = (["b/kernel"], 0.1)
        assert numbers["weight_norm"].keys() == groups.keys()
        for group, (names, rate) in groups.items():
            moved = norm(after[n] - before[n] for n in names)
            weights = norm(after[n] for n in names)
            assert numbers["weight_norm"][group] == pytest.approx(weights, rel=1e-12)
            assert numbers["update_ratio"][group] == pytest.approx(moved / weights, rel=1e-9)
            # Plain SGD moves by rate times gradient.
            assert numbers["gradient_norm"][group] == pytest.approx(moved / rate, rel=1e-9)


def test_a_group_that_rests_has_a_norm_of_its_weights_only():
    run = made(["a/.* sgd 0.25 name=often", "b/.* sgd 0.5 name=seldom every=3"], on_nonfinite="skip")
    (phase,) = run.phases
    train = run.program.trainer(phase, run.feed)
    for step, due in ((0, True), (1, False), (2, False), (3, True)):
        before = run.values()
        assert int(train(run.feed.chunk(step, 1), tf.constant(1))) == 1
        numbers, after = run.program.norms.numbers(phase), run.values()
        assert set(numbers["weight_norm"]) == {"often", "seldom"}
        for number in ("gradient_norm", "update_ratio"):
            assert set(numbers[number]) == ({"often", "seldom"} if due else {"often"})
        for group, layer, rate in (("often", "a", 0.25), ("seldom", "b", 0.5)):
            moved = norm(after[n] - before[n] for n in (f"{layer}/kernel", f"{layer}/bias"))
            assert moved == pytest.approx(rate * numbers["gradient_norm"].get(group, 0.0), rel=1e-9)


def test_measuring_changes_no_bit():
    """However the steps are cut into calls, each of which measures its last one."""
    one, other = made(clip_norm=0.05), made(clip_norm=0.05)
    one.train(0, 4)
    for step in range(4):
        other.train(step, step + 1)
    for name, value in one.values().items():
        assert value.tobytes() == other.values()[name].tobytes(), name


@pytest.mark.parametrize(("flags", "branches"), [({}, 1), ({"clip_norm": 0.05}, 0)])
def test_the_step_carries_a_branch_only_where_it_has_no_norm_of_its_own(flags, branches):
    run = made(**flags)
    function = run.program.trainer(run.phases[0], run.feed).get_concrete_function()
    graph = function.graph.as_graph_def()
    ops = [node.op for node in graph.node] + [n.op for f in graph.library.function for n in f.node_def]
    assert sum(op in ("If", "StatelessIf") for op in ops) == branches
