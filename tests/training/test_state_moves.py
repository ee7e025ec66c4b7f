"""When the state of layers moves: with what its layer trains, else by the rule that matches it."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from tests.training.test_program import points, squared
from tests.training.test_replicas import strategy
from trainer.errors import UserError

BATCH, STEPS = 8, 4
layers = keras.layers


class Calls(layers.Layer):
    """Nothing to train, and a counter."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training:
            self.count.assign_add(1)
        return x


def trunk(x: Any) -> Any:
    x = layers.Dense(4, name="c1")(x)
    x = layers.BatchNormalization(name="full")(x)
    x = layers.BatchNormalization(scale=False, center=False, name="bare")(x)
    x = Calls(name="calls")(x)
    return layers.SpectralNormalization(layers.Dense(4, name="c3"), name="sn")(x)


def flat() -> keras.Model:
    x = keras.Input((3,))
    return keras.Model(x, layers.Dense(1, name="head")(trunk(x)))


def nested() -> keras.Model:
    x, inner = keras.Input((3,)), keras.Input((3,))
    return keras.Model(x, layers.Dense(1, name="head")(keras.Model(inner, trunk(inner), name="trunk")(x)))


class InModule(tf.Module):
    """The same Keras layers inside a `tf.Module`, with a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        inner = keras.Input((3,))
        self.trunk = keras.Model(inner, trunk(inner))
        self.head = layers.Dense(1)
        self.head.build((None, 4))
        mean = tf.VariableAggregation.MEAN
        self.seen = tf.Variable(tf.zeros([], tf.float32), trainable=False, aggregation=mean)

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        self.seen.assign_add(1.0)
        return self.head(self.trunk(x, training=training))


BUILDS = [flat, nested, InModule]


def make(build: Any, rules: list[str], replicas: int = 1, **options: Any) -> harness.Made:
    arrays = points(STEPS * BATCH)
    return harness.make(
        build, squared, rules, arrays, STEPS, batch=BATCH, strategy=strategy(replicas), **options
    )


def moving(made: harness.Made, start: int = 0, stop: int = STEPS) -> set[str]:
    """The state that moves in these steps, by the last parts of the names."""
    before = made.values()
    made.train(start, stop)
    state = [v.name for v in made.variables if not v.trainable and not v.random]
    moved = {n for n in state if made.values()[n].tobytes() != before[n].tobytes()}
    return {"/".join(n.split("/")[-2:]) for n in moved}


def said(made: harness.Made) -> dict[str, str]:
    """What the plan says of it."""
    return {"/".join(r["name"].split("/")[-2:]): r["moves"] for r in made.run.plan()["rows"] if r["moves"]}


FULL, BARE = {"full/moving_mean", "full/moving_variance"}, {"bare/moving_mean", "bare/moving_variance"}
ALL = FULL | BARE | {"calls/count", "sn/vector_u"}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.__name__)
def test_nothing_frozen_moves_by_a_bit(build: Any, replicas: int) -> None:
    own = (
        {"seen"} if build is InModule else set()
    )  # the module's: its layer, the whole model, trains the head
    made = make(build, ["head/.* sgd 0.1", "(?!seen).* frozen"], replicas)
    assert moving(made) == own
    assert {n for n, m in said(made).items() if m == "yes"} == own


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.__name__)
def test_everything_moves_where_everything_trains(build: Any) -> None:
    made = make(build, [".* sgd 0.1"])
    own = {"seen"} if build is InModule else set()
    assert moving(made) == ALL | own
    assert said(made) == dict.fromkeys(ALL | own, "yes")


@pytest.mark.slow
def test_the_rule_decides_where_a_layer_has_nothing_to_train() -> None:
    """`bare` and `calls` follow their rules; `full` and `sn` what trains in them, whatever a rule says."""
    rules = [
        ".*(bare|calls)/.*|c1/.* sgd 0.1 from=2 name=late",
        "(full/beta|full/moving_.*) frozen",
        "(sn/.*|full/.*) sgd 0.1 until=3 name=early",
        ".* sgd 0.1 name=rest",
    ]
    made = make(flat, rules)
    with_full = FULL | {"sn/vector_u"}
    assert moving(made, 0, 2) == with_full
    assert moving(made, 2, 3) == with_full | BARE | {"calls/count"}
    assert moving(made, 3, 4) == BARE | {"calls/count"}
    assert said(made) == {
        **dict.fromkeys(with_full, "0..3"),
        **dict.fromkeys(BARE | {"calls/count"}, "2..4"),
    }


def test_no_rule_means_it_moves() -> None:
    made = make(flat, ["(c1|full|sn)/.* frozen", "head/.* sgd 0.1"])
    assert moving(made) == BARE | {"calls/count"}


def test_a_frozen_rule_over_state_freezes_just_that() -> None:
    """BatchNormalization then uses the statistics it has, though its own variables train: as Keras's
    layer with `training=False`."""
    made = make(flat, ["full/moving_.* frozen", ".* sgd 0.1"], precision="float64")
    before = made.values()
    assert moving(made) == ALL - FULL
    assert made.values()["full/gamma"].tobytes() != before["full/gamma"].tobytes()
    assert not made.run.built.model.get_layer("full").trainable
    assert said(made)["full/moving_mean"] == "no"


def test_frozen_statistics_are_those_that_are_used() -> None:
    def build() -> keras.Model:
        x = keras.Input((3,))
        y = layers.BatchNormalization(moving_mean_initializer="ones", name="bn")(x)
        return keras.Model(x, layers.Dense(1, kernel_initializer="ones", use_bias=False, name="head")(y))

    made = make(build, ["bn/moving_.* frozen", ".* sgd 0.1"], precision="float64")
    made.train(0, 1)
    x = made.feed.arrays["x"][:BATCH]
    y = made.feed.arrays["y"][:BATCH]
    out = ((x - 1) / np.sqrt(1 + 1e-3)).sum(1)
    slope = (2 * (out - y)[:, None] * ((x - 1) / np.sqrt(1 + 1e-3))).mean(0)
    np.testing.assert_allclose(made.values()["bn/gamma"], 1 - 0.1 * slope, rtol=0, atol=1e-6)


def test_a_layer_that_the_model_declares_not_trainable_stays() -> None:
    def build() -> keras.Model:
        model = flat()
        model.get_layer("full").trainable = False
        return model

    made = make(build, [".* sgd 0.1"])
    assert moving(made) == ALL - FULL
    assert said(made)["full/moving_mean"] == "no" == said(made)["full/gamma"]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            [".* sgd 0.1", "bare/.* frozen"],
            ["is matched by an earlier rule: .* sgd 0.1", "narrower rule first"],
        ),
        (["bare/.* sgd 0.1", ".* sgd 0.1"], ["declares not trainable", "say `frozen`"]),
    ],
)
def test_rules_over_state_that_say_nothing_are_refused(rules: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make(flat, rules)
    assert all(word in str(error.value) for word in words), error.value


def test_evaluation_moves_nothing() -> None:
    """Not even a plain variable that the forward pass assigns whether it trains or not."""
    made = make(InModule, [".* sgd 0.1"])
    made.train(0, 1)
    before = made.values()
    feed = harness.ArrayFeed(made.feed.arrays, BATCH, mask=True)
    made.program.evaluator(feed)(feed.chunk(0, feed.steps), tf.constant(feed.steps))
    assert all(v.tobytes() == before[n].tobytes() for n, v in made.values().items())
