"""Fixtures of the tests in this folder."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from tests.support.weight_files import functional, randomised, v1


@pytest.fixture(scope="module")
def model():
    keras.backend.clear_session()
    model = randomised(functional())
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((2, 8, 8, 1)), np.ones((2, 2)))
    return model


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """One small file of each format."""
    at = tmp_path_factory.mktemp("files")
    model.save_weights(at / "k.weights.h5")
    model.save(at / "k.keras")
    model.save(at / "k.h5")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer, step=tf.Variable(3)).save(str(at / "ck"))
    save_file({"conv.weight": np.ones((2, 3), ml_dtypes.bfloat16), "x": np.eye(4)}, at / "t.safetensors")
    np.savez(at / "n.npz", **{"conv/kernel": np.arange(6.0).reshape(2, 3), "global_step": np.int64(5)})
    return at


@pytest.fixture(scope="module")
def tf1(tmp_path_factory):
    at = tmp_path_factory.mktemp("tf1")
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("net/fc"):
            w = v1.get_variable("weights", initializer=np.arange(12, dtype=np.float32).reshape(4, 3))
            b = v1.get_variable("biases", (3,))
        step = v1.train.get_or_create_global_step()
        train = v1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum(w * w + b), global_step=step)
        with tf.control_dependencies([train]):
            average = v1.train.ExponentialMovingAverage(0.5).apply([w])
        session.run(v1.global_variables_initializer())
        session.run(average)
        v1.train.Saver().save(session, str(at / "v2"))
        values = session.run([w, b])
        v1.train.Saver(write_version=v1.train.SaverDef.V1).save(session, str(at / "v1"))
        v1.train.Saver(write_version=v1.train.SaverDef.V1, sharded=True).save(session, str(at / "v1s"))
    return at, values
