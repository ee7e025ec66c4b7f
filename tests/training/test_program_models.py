"""Models of every make train in groups: sparse, nested, in lists and dicts, shared, with own state."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from tests.training.test_program import points, squared
from tests.training.test_replicas import assert_copies_equal, strategy
from trainer.model.names import walk

BATCH, STEPS = 8, 5
Build = Callable[[], Any]


class Words(tf.Module):
    """An embedding, read by rows or, the same by other means, by a product with one-hot vectors."""

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.table, self.head = keras.layers.Embedding(10, 3), keras.layers.Dense(1)
        self.table.build(None)
        self.head.build((None, 3))
        self.dense = dense

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        if self.dense:
            rows = tf.one_hot(ids, 10, dtype=self.table.embeddings.dtype) @ self.table.embeddings
        else:
            rows = self.table(ids)
        return self.head(tf.reduce_sum(rows, 1))[:, 0]


def spoken(model: Words, batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, dict]:
    return (model(batch["ids"]) - batch["y"]) ** 2, {}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5, "on_nonfinite": "skip"}, {"accumulate": 2}])
def test_sparse_gradients_equal_dense_ones(options: dict[str, Any]) -> None:
    random = np.random.default_rng(1)
    # Few words, so that a batch repeats some, within a replica and between them.
    arrays = {"ids": random.integers(0, 10, (STEPS * BATCH, 4)), "y": random.normal(size=STEPS * BATCH)}
    for optimizer in ("adam 0.1", "sgd(momentum=0.9, weight_decay=0.01) 0.1"):
        results = []
        for dense, replicas in ((True, 1), (False, 1), (False, 2)):
            made = harness.make(
                lambda dense=dense: Words(dense),
                spoken,
                [f"table/.* {optimizer}", "head/.* sgd 0.01"],
                arrays,
                STEPS,
                strategy=strategy(replicas),
                precision="float64",
                batch=BATCH,
                **options,
            )
            start = made.values()
            made.train(0, STEPS)
            assert_copies_equal(made)
            results.append(made.values())
        for name, value in results[0].items():
            assert np.abs(value - start[name]).max() > 1e-5, name
            for other in results[1:]:
                np.testing.assert_allclose(other[name], value, rtol=0, atol=1e-12, err_msg=name)


def test_sparse_gradients_are_never_made_dense() -> None:
    arrays = {"ids": np.zeros((BATCH, 4), np.int64), "y": np.zeros(BATCH, "float32")}
    for replicas in (1, 2):
        made = harness.make(
            lambda: Words(False),
            spoken,
            [".* sgd 0.1"],
            arrays,
            1,
            strategy=strategy(replicas),
            batch=BATCH,
            clip_norm=1.0,
        )
        compute = made.program.gradients(made.phases[0], made.feed)
        slope = compute(made.feed.chunk(0, 1))[0]["table/embeddings"]
        assert isinstance(slope, tf.IndexedSlices) and slope.values.shape[0] == 4 * BATCH


def nested() -> Any:
    def encoder(name: str) -> keras.Model:
        x = keras.Input((3,))
        return keras.Model(x, keras.layers.Dense(4, activation="tanh", name="fc")(x), name=name)

    x = keras.Input((3,))
    both = keras.layers.Add()([encoder("enc_a")(x), encoder("enc_b")(x)])
    return keras.Model(x, keras.layers.Dense(1, name="head")(both))


class Collections(keras.Model):
    """Layers in a list and in a dict, one of them used twice and held under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [keras.layers.Dense(4, activation="tanh") for _ in range(2)]
        self.heads = {"one": keras.layers.Dense(1), "two": keras.layers.Dense(1)}
        self.again = self.blocks[1]
        self(tf.zeros([1, 3], keras.config.floatx()))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = self.again(self.blocks[1](self.blocks[0](x)))
        return self.heads["one"](y) + self.heads["two"](y)


class Mixed(tf.Module):
    """A plain variable, plain lists and whole Keras models in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable(tf.ones([3], keras.config.floatx()))
        self.parts = [nested(), keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="fc")])]

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        return self.parts[0](self.scale * x, training=training) + self.parts[1](x)


TREES = {
    nested: (["enc_a/.*", "enc_b/.*", "head/.*"], 6),
    Collections: (["blocks/0/.*", "again/kernel", "blocks/1/bias", "heads/(one|two)/.*"], 8),
    Mixed: (["scale", "parts/0/enc_a/.*", "parts/0/enc_b/.*", "parts/0/head/.*", "parts/1/fc/.*"], 9),
}


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("build", TREES, ids=lambda b: b.__name__)
def test_groups_reach_every_part_of_a_tree(build: Build, replicas: int) -> None:
    """Each part by a rate of its own, against the slopes of a tape over the bare model."""
    patterns, count = TREES[build]
    rates = [0.1 * (k + 1) for k in range(len(patterns))]
    made = harness.make(
        build,
        squared,
        [f"{p} sgd {r}" for p, r in zip(patterns, rates, strict=True)],
        points(BATCH, "float64"),
        1,
        strategy=strategy(replicas),
        precision="float64",
        batch=BATCH,
    )
    assert len(made.variables) == count
    model = build()
    start, bare = made.values(), walk(model)
    for v in bare:
        v.value.assign(start[v.name])
    with tf.GradientTape() as tape:
        batch = {n: tf.constant(a) for n, a in made.feed.arrays.items()}
        mean = tf.reduce_mean(squared(model, batch, True)[0])
    slopes = tape.gradient(mean, [v.value for v in bare])
    made.train(0, 1)
    rate = {v.name: r for o, r in zip(made.optimizers, rates, strict=True) for v in o.group.variables}
    for v, slope in zip(bare, slopes, strict=True):
        expected = start[v.name] - rate[v.name] * slope.numpy()
        np.testing.assert_allclose(made.values()[v.name], expected, rtol=0, atol=1e-12, err_msg=v.name)


class Counts(keras.layers.Layer):
    """Counts its calls and the positive numbers that it saw, and keeps a running maximum, in training."""

    def build(self, shape: Any) -> None:
        own = {"shape": (), "initializer": "zeros", "trainable": False}
        self.calls = self.add_weight(name="calls", dtype="int32", **own)
        self.positive = self.add_weight(name="positive", dtype="int64", **own)
        self.running = self.add_weight(name="running", **own)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training:
            self.calls.assign_add(1)
            self.positive.assign_add(tf.reduce_sum(tf.cast(x > 0, tf.int64)))
            self.running.assign(0.5 * self.running + 0.5 * tf.reduce_max(x))
        return x


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_layer_may_assign_state_in_training(replicas: int) -> None:
    def build() -> keras.Model:
        x = keras.Input((3,))
        return keras.Model(x, keras.layers.Dense(1, name="head")(Counts(name="counts")(x)))

    arrays = points(STEPS * BATCH, "float64")
    made = harness.make(
        build,
        squared,
        [".* sgd 0.1"],
        arrays,
        STEPS,
        strategy=strategy(replicas),
        precision="float64",
        batch=BATCH,
    )
    made.train(0, STEPS)
    parts = arrays["x"].reshape(STEPS, replicas, -1)
    running = 0.0
    for step in parts:
        running = np.mean([0.5 * running + 0.5 * part.max() for part in step])
    values = made.values()
    assert values["counts/calls"] == STEPS
    assert values["counts/positive"] == (parts[:, 0] > 0).sum()  # of the first replica, where they differ
    assert abs(values["counts/running"] - running) < 1e-12
    assert_copies_equal(made)


class Plain(tf.Module):
    """A variable that the forward pass assigns, and one that nothing does, outside of Keras."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(tf.ones([3], tf.float64))
        mean, once = tf.VariableAggregation.MEAN, tf.VariableSynchronization.ON_READ
        self.mean = tf.Variable(tf.zeros([3], tf.float64), trainable=False, aggregation=mean)
        self.local = tf.Variable(
            tf.zeros([3], tf.float64), trainable=False, aggregation=mean, synchronization=once
        )
        self.table = tf.Variable(tf.fill([3], tf.constant(1 / 3, tf.float64)), trainable=False)

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        if training:
            self.mean.assign(0.5 * self.mean + 0.5 * tf.reduce_mean(x, 0))
            self.local.assign(0.5 * self.local + 0.5 * tf.reduce_mean(x, 0))
        return tf.reduce_sum(x * self.w * self.table, 1, keepdims=True)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_plain_module_may_assign_state(replicas: int) -> None:
    batch = 6
    arrays = points(STEPS * batch, "float64")
    made = harness.make(
        Plain,
        squared,
        [".* sgd 0.1"],
        arrays,
        STEPS,
        strategy=strategy(replicas),
        precision="float64",
        batch=batch,
        on_nonfinite="skip",
    )
    made.train(0, STEPS)
    mean = np.zeros(3)
    for x in arrays["x"].reshape(STEPS, batch, 3):
        mean = 0.5 * mean + 0.5 * x.mean(0)
    np.testing.assert_allclose(made.values()["mean"], mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(made.values()["local"], mean, rtol=0, atol=1e-12)
    assert made.values()["table"].tobytes() == np.full(3, 1 / 3).tobytes()
    assert_copies_equal(made)


class Recurrent(tf.Module):
    """Dropout inside a recurrence, and a normalisation adapted beforehand."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.normalise = keras.layers.Normalization()
        self.normalise.adapt(np.arange(12.0).reshape(6, 2))
        self.lstm = keras.layers.LSTM(4, dropout=dropout, recurrent_dropout=dropout)
        self.lstm.build((None, 3, 2))
        self.head = keras.layers.Dense(1)
        self.head.build((None, 4))

    def __call__(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        y = self.normalise(tf.reshape(tf.tile(x, [1, 2]), [-1, 3, 2]))
        return self.head(self.lstm(y, training=training))


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_recurrent_dropout_and_adapted_statistics(replicas: int) -> None:
    results = []
    for dropout in (0.0, 0.5, 0.5):
        made = harness.make(
            lambda dropout=dropout: Recurrent(dropout),
            squared,
            ["lstm/.* adam 0.01", ".* sgd 0.1"],
            points(2 * BATCH),
            2,
            strategy=strategy(replicas),
            batch=BATCH,
        )
        start = made.values()
        made.train(0, 2)
        assert_copies_equal(made)
        for name, value in made.values().items():
            still = name.startswith("normalise") or "generator" in name
            assert (value.tobytes() == start[name].tobytes()) == still, name
        results.append(made.values()["lstm/cell/kernel"].tobytes())
    assert results[1] == results[2] != results[0]


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_xla_on_replicas(replicas: int) -> None:
    def build() -> keras.Model:
        x = keras.Input((3,))
        # No dropout: XLA draws by a generator of its own.
        y = keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(4, use_bias=False, name="a")(x))
        return keras.Model(x, keras.layers.Dense(1, name="head")(y))

    results = []
    for jit in (False, True):
        made = harness.make(
            build,
            squared,
            ["a/.* adam 0.01", ".* sgd 0.1"],
            points(STEPS * BATCH),
            STEPS,
            strategy=strategy(replicas),
            batch=BATCH,
            clip_norm=1.0,
            on_nonfinite="skip",
            jit_compile=jit,
            accumulate=2,
        )
        made.train(0, STEPS)
        assert_copies_equal(made)
        results.append(made.values())
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_python_if_on_a_tensor_works_in_the_users_own_functions(replicas: int) -> None:
    """AutoGraph is for them alone: `loss` and what it calls branch on values."""

    def build() -> keras.Model:
        return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])

    def doubled(x: tf.Tensor) -> tf.Tensor:
        if tf.reduce_sum(x) > 0:  # noqa: SIM108
            y = 2 * x
        else:
            y = x
        return y

    def loss(model: Any, batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, dict]:
        return model(doubled(batch["x"]))[:, 0], {}

    arrays = {"x": np.array([[1.0], [1.0], [-1.0], [-1.0]], np.float32)}
    strategy = harness.mirrored() if replicas == 2 else None
    made = harness.make(build, loss, [".* sgd 1"], arrays, 2, strategy=strategy, batch=2)
    start = made.values()
    made.train(0, 2)
    # The slopes are the inputs: 2 in the first step, -1 in the second.
    (name,) = start
    np.testing.assert_allclose(made.values()[name], start[name] - 2 + 1, rtol=0, atol=1e-6)
