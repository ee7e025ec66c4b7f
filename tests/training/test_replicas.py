"""One replica or several: the same batches, losses and weights, and what must differ."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import mnist_cnn
from tests.support import harness
from tests.training.test_program import operations, points, squared

BATCH = 8


def strategy(replicas: int) -> tf.distribute.Strategy | None:
    return harness.mirrored(replicas) if replicas > 1 else None


def assert_copies_equal(made: harness.Made) -> None:
    """Every replica's copy of all that a run is, bit for bit."""
    for name, variable in made.program.state.named().items():
        copies = [v.numpy().tobytes() for v in getattr(variable, "values", (variable,))]
        assert len(copies) == made.program.replicas and len(set(copies)) == 1, name


def trained(replicas: int, optimizer: str, precision: str, steps: int = 100) -> harness.Made:
    """The article's network, narrower, after `steps` of two groups, in three phases, clipped."""
    rules = [f"conv1/.* {optimizer} name=first from=10", f".* {optimizer} name=rest"]
    made = harness.make(
        lambda: mnist_cnn.build(filters=4, dense=16),
        mnist_cnn.loss,
        rules,
        harness.digits(steps * BATCH, precision, 28),
        steps,
        strategy=strategy(replicas),
        precision=precision,
        batch=BATCH,
        clip_norm=1.0,
        on_nonfinite="skip",
    )
    made.train(0, steps)
    assert_copies_equal(made)
    return made


RUNS = [("adam 1e-3", "float64", 1e-10), ("sgd 0.01", "float64", 1e-10), ("sgd 0.01", "float32", 1e-5)]


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize(("optimizer", "precision", "tolerance"), RUNS)
def test_replicas_do_not_change_the_numbers(
    optimizer: str, precision: str, tolerance: float, replicas: int
) -> None:
    one, many = (trained(n, optimizer, precision) for n in (1, replicas))
    for name, value in one.values().items():
        assert np.abs(many.values()[name] - value).max() <= tolerance * np.abs(value).max(), name
    np.testing.assert_allclose(many.program.state.sums, one.program.state.sums, rtol=tolerance)


def normalised() -> keras.Model:
    x = keras.Input((3,))
    y = keras.layers.BatchNormalization(momentum=0.75, name="bn")(x)
    return keras.Model(x, keras.layers.Dense(1, name="head")(y))


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batch_statistics_are_averaged_by_hand(accumulate: int) -> None:
    made = harness.make(
        normalised,
        squared,
        [".* sgd 0.1"],
        points(3 * BATCH, "float64"),
        3,
        strategy=strategy(2),
        precision="float64",
        batch=BATCH,
        accumulate=accumulate,
    )
    made.train(0, 3)
    mean, variance = np.zeros(3), np.ones(3)
    for step in range(3):
        batch = made.feed.arrays["x"][step * BATCH : (step + 1) * BATCH]
        # Accumulated batches follow each other; each is shared by the replicas, whose states are averaged.
        parts = np.split(batch, 2 * accumulate)
        ends = []
        for replica in range(2):
            m, v = mean, variance
            for part in parts[replica::2]:
                m, v = 0.75 * m + 0.25 * part.mean(0), 0.75 * v + 0.25 * part.var(0)
            ends.append((m, v))
        mean, variance = np.mean(ends, 0)
    np.testing.assert_allclose(made.values()["bn/moving_mean"], mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(made.values()["bn/moving_variance"], variance, rtol=0, atol=1e-12)
    assert_copies_equal(made)


def test_one_packed_reduce_a_step() -> None:
    def build(batch_norm: bool, embedding: bool) -> keras.Model:
        x = keras.Input((3,))
        y = keras.layers.BatchNormalization()(x) if batch_norm else x
        if embedding:
            row = keras.layers.Lambda(lambda t: tf.cast(tf.abs(t[:, 0]), tf.int32) % 5)(x)
            y = keras.layers.Concatenate()([y, keras.layers.Embedding(5, 2, name="e")(row)])
        y = keras.layers.Dense(4, name="a")(y)
        return keras.Model(x, keras.layers.Dense(1, name="head")(y))

    for batch_norm, embedding, reduces in ((False, False, 1), (True, False, 2), (True, True, 2)):
        made = harness.make(
            lambda a=batch_norm, b=embedding: build(a, b),
            squared,
            ["a/kernel adam 0.1", "a/bias sgd 0.1", "head/.* rmsprop 0.1", ".* sgd 0.2"][
                : 4 if batch_norm or embedding else 3
            ],
            points(BATCH),
            1,
            strategy=strategy(2),
            batch=BATCH,
            clip_norm=1.0,
            ema=0.9,
            on_nonfinite="halt",
        )
        found = operations(made.program.trainer(made.phases[0], made.feed))
        collective = {op: n for op, n in found.items() if op.startswith(("Collective", "Nccl"))}
        assert sum(n for op, n in collective.items() if "Reduce" in op) == 2 * reduces, collective
        # Of the embedding TensorFlow gathers rows and their numbers, with ops of its own for ragged ones.
        assert any("Gather" in op for op in collective) == embedding, collective


class Masked(tf.Module):
    """A weight, and a dropout whose mask shows in the metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(1.0)
        self.dropout = keras.layers.Dropout(0.5)


def masks(model: Masked, batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, dict]:
    kept = model.dropout(tf.ones([len(batch["row"]), 32]), training=training)
    mark = tf.reduce_sum(kept * tf.random.stateless_uniform([32], [1, 2]), 1)
    first = tf.cast(batch["row"] % BATCH < BATCH // 2, tf.float32)
    return model.w * mark, {"first": (mark, first), "second": (mark, 1 - first)}


def marks(replicas: int, seed: int, accumulate: int = 1) -> tuple[float, float]:
    """What the masks of the first and of the second half of the batches add up to, over two steps."""
    made = harness.make(
        Masked,
        masks,
        [".* sgd 1e-3"],
        {"row": np.arange(2 * BATCH)},
        2,
        strategy=strategy(replicas),
        seed=seed,
        batch=BATCH,
        accumulate=accumulate,
    )
    made.train(0, 2)
    sums = made.program.state.sums.numpy()
    return float(sums[2]), float(sums[4])


@pytest.mark.slow
def test_dropout_differs_by_replica_and_repeats_with_the_seed() -> None:
    first, second = marks(2, 0)
    assert first != second
    assert marks(2, 0) == (first, second)
    assert not {first, second} & set(marks(2, 1))
    one = marks(1, 0, accumulate=2)
    assert one == (first, second)  # the parts of a batch have masks of their own, wherever they are computed


class Kept(keras.Model):
    """Weights that are held small in each of the ways that Keras has."""

    def __init__(self) -> None:
        super().__init__()
        l2 = keras.regularizers.L2(0.05)
        self.a = keras.layers.Dense(4, kernel_regularizer=l2, activity_regularizer=l2, name="a")
        self.adds = AddsLoss(name="adds")
        self.head = keras.layers.Dense(1, bias_regularizer=keras.regularizers.L1(0.01), name="head")
        self(tf.zeros([1, 3], keras.config.floatx()))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.head(self.adds(self.a(x)))


class AddsLoss(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        self.add_loss(0.1 * tf.reduce_mean((self.scale * x - 1) ** 2))
        return x


class Holder(tf.Module):
    """Keras layers that add losses, in a module that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Kept()

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        return self.inside(x, training=training)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("build", [Kept, Holder])
@pytest.mark.parametrize(("replicas", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_regularisation_is_scaled_once_as_keras_scales_it(build: Any, replicas: int, accumulate: int) -> None:
    made = harness.make(
        build,
        squared,
        [".* sgd 0.1"],
        points(10 * BATCH, "float64"),
        10,
        strategy=strategy(replicas),
        precision="float64",
        batch=BATCH,
        accumulate=accumulate,
    )
    model = Kept()
    for v, start in zip(model.variables, made.values().values(), strict=True):
        v.assign(start)
    x, y = made.feed.arrays["x"], made.feed.arrays["y"]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    logged = model.fit(x, y[:, None], batch_size=BATCH, shuffle=False, verbose=0).history["loss"]
    made.train(0, 10)
    for v, value in zip(model.variables, made.values().values(), strict=True):
        np.testing.assert_allclose(value, v.numpy(), rtol=0, atol=1e-9, err_msg=v.path)
    sums = made.program.state.sums.numpy()
    np.testing.assert_allclose(sums[0] / sums[1], logged[0], rtol=1e-6)
    # And in evaluation: the same weights, a ragged batch.
    feed = harness.ArrayFeed({"x": x[:BATCH], "y": y[:BATCH]}, BATCH, mask=True)
    got = made.program.evaluator(feed)(feed.chunk(0, 1), tf.constant(1))[0].numpy()
    np.testing.assert_allclose(
        got[0] / got[1], model.evaluate(x[:BATCH], y[:BATCH, None], verbose=0), rtol=1e-6
    )
