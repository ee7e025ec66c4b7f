"""Every Keras optimizer in a group moves variables as Keras's own `apply` does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from trainer.errors import UserError
from trainer.flags.calls import parse_call
from trainer.groups import group_optimizer, optimizers

STEPS, BATCH = 20, 4
CALLS = {
    "sgd": "momentum=0.9, nesterov=True",
    "rmsprop": "momentum=0.5, centered=True",
    "adam": "amsgrad=True",
    "adamw": "",
    "adadelta": "",
    "adagrad": "",
    "adamax": "",
    "adafactor": "",
    "nadam": "",
    "ftrl": "beta=0.1",
    "lion": "",
    "lamb": "",
    "muon": "exclude_embeddings=False",
}
SHAPES = {"w": (5, 4), "b": (4,), "e": (3, 2)}


class Slopes(keras.Model):
    """A model whose gradients are the batch: its loss is the product of weights and batch."""

    def __init__(self) -> None:
        super().__init__()
        for index, (name, shape) in enumerate(SHAPES.items()):
            start = keras.initializers.RandomNormal(seed=index)
            setattr(self, name, self.add_weight(shape=shape, initializer=start, name=name))
        self.built = True


def slopes_loss(model: Slopes, batch: dict[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, dict]:
    losses = [
        tf.reduce_sum(getattr(model, n) * batch[n], axis=range(1, len(s) + 1)) for n, s in SHAPES.items()
    ]
    return tf.add_n(losses), {}


def slopes(dtype: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {n: random.normal(size=(STEPS * BATCH, *s)).astype(dtype) for n, s in SHAPES.items()}


def by_keras(call: str, arrays: dict[str, np.ndarray], decay: float | None) -> dict[str, np.ndarray]:
    """20 calls of Keras's own `apply` on the batches' mean gradients."""
    model = Slopes()
    optimizer = optimizers.make(parse_call(call, ""), "")
    optimizer.learning_rate = 0.01
    assert optimizer.weight_decay == decay
    optimizer.build(model.trainable_variables)
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        means = [tf.constant(arrays[n][rows].mean(0)) for n in SHAPES]
        optimizer.apply(means, [getattr(model, n) for n in SHAPES])
    return {n: getattr(model, n).numpy() for n in SHAPES}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_twenty_steps_equal_kerass_apply(name: str, replicas: int) -> None:
    decay = "weight_decay=0.015625" + (", adam_weight_decay=0.03125" if name == "muon" else "")
    call = f"{name}({', '.join(filter(None, (CALLS[name], decay)))})"
    for precision, tolerance in (("float32", 1e-6), ("float64", 1e-12)):
        harness.use_precision(precision)
        arrays = slopes(precision)
        expected = by_keras(call, arrays, 0.015625)
        made = harness.make(
            Slopes,
            slopes_loss,
            [f".* {call} 0.01"],
            arrays,
            STEPS,
            strategy=harness.mirrored() if replicas == 2 else None,
            precision=precision,
            batch=BATCH,
        )
        made.train(0, STEPS)
        for variable, value in made.values().items():
            assert np.abs(value - expected[variable]).max() <= tolerance, (variable, precision)
            assert value.dtype == precision
    harness.use_precision("float32")


def test_every_optimizer_of_keras_is_tested_here() -> None:
    assert set(optimizers.names()) == set(CALLS)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("adm", ["no optimizer is called 'adm'", "adam"]),
        ("adam(beta1=0.9)", ["beta1", "beta_1"]),
        ("adam(learning_rate=1)", ["learning_rate=", "column after the optimizer"]),
        ("sgd(clipnorm=1)", ["clipnorm=", "--clip_norm"]),
        ("sgd(clipvalue=1)", ["clipvalue=", "--clip_norm"]),
        ("sgd(global_clipnorm=1)", ["global_clipnorm=", "--clip_norm"]),
        ("adam(use_ema=True)", ["use_ema=", "--ema"]),
        ("adam(loss_scale_factor=2.0)", ["loss_scale_factor=", "--precision"]),
        ("adam(gradient_accumulation_steps=2)", ["gradient_accumulation_steps=", "--accumulate"]),
        ("adam(name='x')", ["name=", "name=ID"]),
        ("sgd(0.1)", ["by name"]),
        ("sgd(momentum=3epochs)", ["cannot be a duration"]),
        ("sgd(momentum=-1)", ["momentum=-1 of sgd", "from 0 to 1"]),
    ],
)
def test_arguments_are_honoured_or_refused(call: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        optimizers.make(optimizers.check(call, "--group=x"), "--group=x")
    assert all(word in str(error.value) for word in ["--group=x", *words]), str(error.value)


def test_no_decay_and_layer_decay_by_hand() -> None:
    arrays = slopes("float64")
    made = harness.make(
        Slopes,
        slopes_loss,
        [".* sgd(weight_decay=0.1) 0.5"],
        arrays,
        1,
        precision="float64",
        batch=BATCH,
        layer_decay=0.5,
        depth={"w": 2, "b": 0, "e": 1}.get,
        no_decay=["b"],
    )
    start = made.values()
    made.train(0, 1)
    for name, rate, decay in (("w", 0.125, 0.1), ("b", 0.5, 0.0), ("e", 0.25, 0.1)):
        expected = start[name] * (1 - rate * decay) - rate * arrays[name][:BATCH].mean(0)
        np.testing.assert_allclose(made.values()[name], expected, rtol=0, atol=1e-15)
    harness.use_precision("float32")


def test_state_is_named_by_variable_and_frozen_variables_own_none() -> None:
    rules = ["w adam 1", "b sgd(momentum=0.9) 1", "e frozen"]
    made = harness.make(Slopes, slopes_loss, rules, slopes("float32"), 1, batch=BATCH)
    assert sorted(group_optimizer.state(made.optimizers)) == [
        "optimizer/b/iterations",
        "optimizer/b/momentums",
        "optimizer/w/iterations",
        "optimizer/w/momentums",
        "optimizer/w/velocities",
    ]
    # Two float32 copies of 5 x 4, one of 4, and an int64 count each; Keras agrees.
    sizes = group_optimizer.state_bytes(made.optimizers)
    assert sizes == {"w": 2 * 80 + sizes_of_count(made), "b": 16 + sizes_of_count(made)}


def sizes_of_count(made: harness.Made) -> int:
    return tf.as_dtype(made.optimizers[0].keras.iterations.dtype).size


def test_an_optimizer_that_needs_keras_variables_says_so() -> None:
    class Plain(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, shape in SHAPES.items():
                setattr(self, name, tf.Variable(tf.ones(shape)))

    with pytest.raises(UserError, match="needs variables of Keras layers"):
        harness.make(Plain, slopes_loss, [".* muon 1"], slopes("float32"), 1, batch=BATCH)
