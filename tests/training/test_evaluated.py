"""What an evaluation counts: regularisers of what trains, rows that are real, draws that do not repeat."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from tests.training.test_program import points, squared
from tests.training.test_replicas import strategy

BATCH = 8
layers = keras.layers


def penalised() -> keras.Model:
    x, l2 = keras.Input((3,)), keras.regularizers.L2(0.1)
    y = layers.Dense(4, activation="tanh", kernel_regularizer=l2, name="h")(x)
    return keras.Model(x, layers.Dense(1, kernel_regularizer=l2, name="head")(y))


def evaluated(
    made: harness.Made, arrays: dict[str, np.ndarray], active: Any = None, batch: int = BATCH
) -> Any:
    feed = harness.ArrayFeed(arrays, batch, mask=True)
    return made.program.evaluator(feed, active)(feed.chunk(0, feed.steps), tf.constant(feed.steps))[0].numpy()


@pytest.mark.parametrize("rules", [["h/.* frozen", ".* sgd 1e-12"], [".* sgd 1e-12"]])
def test_a_frozen_regulariser_counts_in_neither(rules: list[str]) -> None:
    """Keras's own `evaluate` of the same model, frozen or not, gives the same."""
    arrays = points(BATCH, "float64")
    made = harness.make(penalised, squared, rules, arrays, 1, batch=BATCH, precision="float64")
    model = made.run.built.model
    got = evaluated(made, arrays, made.phases[0].names)
    model.get_layer("h").trainable = len(rules) == 1
    model.compile(loss="mse")
    expected = model.evaluate(arrays["x"], arrays["y"][:, None], BATCH, verbose=0)
    np.testing.assert_allclose(got[0] / got[1], expected, rtol=1e-6)
    made.train(0, 1)
    training = made.program.state.sums.numpy()
    np.testing.assert_allclose(training[0] / training[1], got[0] / got[1], rtol=1e-9)


def test_an_evaluation_uses_what_trains_at_its_step() -> None:
    rules = ["h/.* sgd 1e-12 until=2", "head/.* sgd 1e-12"]
    arrays = points(BATCH)
    made = harness.make(penalised, squared, rules, arrays, 4, batch=BATCH)
    both, head = (evaluated(made, arrays, phase.names)[0] for phase in made.phases)
    kernel = made.values()["h/kernel"]
    np.testing.assert_allclose(both - head, BATCH * 0.1 * (kernel**2).sum(), rtol=1e-4)
    assert len({made.program.evaluated_otherwise & p.names for p in made.phases}) == 2


class OfABatch(layers.Layer):
    """Adds the variance over its batch, which depends on every row."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        self.add_loss(keras.ops.var(x))
        return x


def adds() -> keras.Model:
    x = keras.Input((3,))
    return keras.Model(x, layers.Dense(1, name="head")(OfABatch(name="adds")(x)))


@pytest.mark.slow(but=3)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("examples", [16, 19, 12])
def test_padding_counts_in_no_loss(examples: int, replicas: int) -> None:
    arrays = points(examples, "float64")
    made = harness.make(
        adds, squared, [".* sgd 1"], arrays, 1, batch=BATCH, precision="float64", strategy=strategy(replicas)
    )
    sums = evaluated(made, arrays)
    out = np.asarray(made.values()["head/kernel"])
    expected = ((arrays["x"] @ out)[:, 0] + made.values()["head/bias"] - arrays["y"]) ** 2
    total = expected.sum()
    size = BATCH // replicas
    for first in range(0, examples, size):
        part = arrays["x"][first : first + size]
        total += part.var() * len(part)
    np.testing.assert_allclose(sums, [total, examples], rtol=1e-9)


class Noise(layers.Layer):
    """Draws in evaluation too, as a variational autoencoder does."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + keras.random.normal(keras.ops.shape(x), dtype=x.dtype, seed=self.seed_generator)


def noisy() -> keras.Model:
    x = keras.Input((3,))
    return keras.Model(x, layers.Dense(1, name="head")(Noise(name="noise")(x)))


def drawn(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
    """The losses are what was drawn, of the layer and of `preprocess`."""
    out = model.get_layer("noise")(batch["x"])
    return tf.reduce_sum(out, 1) + 0 * model(batch["x"])[:, 0], {"pre": batch["pre"]}


def preprocess(batch: dict[str, tf.Tensor], training: bool, seed: tf.Tensor) -> dict[str, tf.Tensor]:
    return {**batch, "pre": tf.random.stateless_normal(tf.shape(batch["y"]), seed, dtype=batch["y"].dtype)}


def per_batch(examples: int, batch: int = BATCH, replicas: int = 1, **options: Any) -> np.ndarray:
    """Loss and metric of each evaluation batch of zeros: the draws alone."""
    zeros = {"x": np.zeros((examples, 3)), "y": np.zeros(examples)}
    options = {"precision": "float64", "strategy": strategy(replicas), "preprocess": preprocess, **options}
    made = harness.make(noisy, drawn, [".* sgd 1"], zeros, 1, batch=batch, **options)
    feed = harness.ArrayFeed(zeros, batch, mask=True)
    function = made.program.evaluator(feed)
    totals = [
        function(feed.chunk(0, feed.steps), tf.constant(n))[0].numpy()[[0, 2]] for n in range(feed.steps + 1)
    ]
    return np.diff(totals, axis=0)


@pytest.mark.slow
def test_no_two_batches_of_an_evaluation_draw_the_same() -> None:
    sums = per_batch(5 * BATCH)
    assert len(np.unique(sums.round(9), axis=0)) == 5 and len(np.unique(sums[:, 0].round(9))) == 5
    assert per_batch(5 * BATCH).tobytes() == sums.tobytes()
    assert not np.intersect1d(per_batch(5 * BATCH, seed=1).round(9), sums.round(9)).size


def test_a_share_draws_by_the_position_of_its_first_example() -> None:
    """Two replicas with 4 rows each draw what one does with batches of 4: shares start at the same rows."""
    one, two = per_batch(5 * BATCH, batch=4), per_batch(5 * BATCH, batch=8, replicas=2)
    np.testing.assert_allclose(one.reshape(5, 2, 2).sum(1), two, rtol=0, atol=1e-9)
