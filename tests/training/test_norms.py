"""Norms by group of the step that ends at a log point, against NumPy on the weights before and after it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from trainer.training.norms import Norms

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


def made(**more):
    random = np.random.default_rng(0)
    arrays = {"x": random.normal(size=[64, 5]), "y": random.normal(size=[64])}
    return harness.make(build, loss, RULES, arrays, 8, precision="float64", **more)


def measured(run, start):
    """(numbers of step `start`, values before it, values after it)."""
    phase = next(p for p in run.phases if p.start <= start < p.stop)
    train, norms = run.program.trainer(phase, run.feed), Norms(run.program.gradient_norms)
    before = run.values()
    assert norms.measured(phase, lambda: int(train(run.feed.chunk(start, 1), tf.constant(1)))) == 1
    return norms.taken(), before, run.values()


def norm(arrays):
    return float(np.sqrt(sum((a**2).sum() for a in arrays)))


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("flags", [{}, {"clip_norm": 0.05}, {"on_nonfinite": "skip"}, {"accumulate": 2}])
def test_norms_are_those_of_numpy(replicas, flags):
    run = made(strategy=harness.mirrored() if replicas == 2 else None, **flags)
    for start in (0, 4):
        if start == 4:
            run.train(1, 4)
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


def test_measuring_changes_no_bit():
    one, other = made(), made()
    one.train(0, 3)
    other.train(0, 2)
    measured(other, 2)
    for name, value in one.values().items():
        assert value.tobytes() == other.values()[name].tobytes(), name


def test_numbers_are_taken_once_and_only_of_a_step_that_was_done():
    run = made()
    norms = Norms(run.program.gradient_norms)
    assert norms.taken() == {}
    norms.measured(run.phases[0], lambda: 0)
    assert norms.taken() == {}
    numbers, *_ = measured(run, 0)
    assert set(numbers) == {"gradient_norm", "weight_norm", "update_ratio"}


def test_the_compiled_step_gains_one_branch_and_little_else(monkeypatch):
    def nodes(run):
        function = run.program.trainer(run.phases[0], run.feed).get_concrete_function()
        graph = function.graph.as_graph_def()
        return [node.op for node in graph.node] + [n.op for f in graph.library.function for n in f.node_def]

    with_norms = nodes(made())
    monkeypatch.setattr("trainer.training.norms.GradientNorms.see", lambda *_: None)
    without = nodes(made())
    branches = [sum(op in ("If", "StatelessIf") for op in ops) for ops in (with_norms, without)]
    assert branches == [1, 0]
    # Two square sums and a few scalars for each of three variables, all of them inside the branch.
    assert len(with_norms) - len(without) < 60
