"""A `decode` that would make other examples after a restart is refused; Python in a loss is told of."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer
from trainer.errors import UserError

COUNTER = tf.Variable(0.0, trainable=False)
NOISE = keras.layers.GaussianNoise(1.0)
own = np.random.default_rng(0)


def run(decode=None, loss=None, **flags):
    def build():
        x = keras.Input((2,))
        return keras.Model(x, keras.layers.Dense(1, name="head")(x))

    def squared(model, batch, training):
        return model(batch["x"])[:, 0] ** 2, {}

    module = trainer.ModelModule(build=build, loss=loss or squared, decode=decode)
    arrays = {"x": np.ones([8, 2], "float32")}
    flags = {"group": ".* sgd 0.1", "batch_size": 4, "train_for": 1, "eval_split": "none", **flags}
    return trainer.Run(model=module, dataset=arrays, **flags)


def noisy(draw):
    def decode(example):
        return {"x": example["x"] + draw(example["x"])}

    return decode


def host(function):
    return lambda x: tf.ensure_shape(tf.numpy_function(function, [x], tf.float32), [2])


def counting(x):
    COUNTER.assign_add(1.0)
    return COUNTER


DRAWS = {
    "RandomStandardNormal": lambda x: tf.random.normal([2]),
    "RandomUniform": lambda x: tf.image.random_brightness(tf.reshape(x, [1, 2, 1]), 0.5)[0, :, 0],
    "seed_generator_state": lambda x: NOISE(x, training=True),
    "while it is traced": lambda x: np.random.rand(),
    "no checkpoint holds": counting,
}


@pytest.mark.slow(but=5)
@pytest.mark.parametrize("words", DRAWS)
@pytest.mark.parametrize("residency", ["resident", "streaming"])
def test_a_draw_or_a_state_in_decode_is_refused(words, residency):
    with pytest.raises(UserError, match="the model's decode") as error:
        run(noisy(DRAWS[words]), data_residency=residency).plan()
    assert words in str(error.value)


def test_a_stateless_draw_by_what_is_stored_is_fine():
    fixed = noisy(lambda x: tf.random.stateless_normal([2], [1, tf.cast(x[0], tf.int32)]))
    assert run(fixed).train().step == 1


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("draw", [np.random.rand, own.random])
def test_python_in_decode_is_tried_twice(draw):
    random = noisy(host(lambda x: (x + draw(2)).astype("float32")))
    with pytest.raises(UserError, match="another example of split train each time"):
        run(random).plan()
    assert run(noisy(host(lambda x: x * 2))).train().step == 1


def test_python_in_the_loss_is_told_of(capsys):
    def loss(model, batch, training):
        kept = tf.numpy_function(lambda x: x, [batch["x"]], tf.float32)
        return model(tf.ensure_shape(kept, [4, 2]))[:, 0] ** 2, {}

    run(loss=loss).train(progress=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "calls Python (PyFunc at" in said and "test_decode_draws.py:" in said
    run().train(progress=True)
    assert "calls Python" not in capsys.readouterr().out
