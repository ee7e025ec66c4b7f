"""Fixtures of the tests in this folder."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.restores import pretrained
from trainer.model.names import walk


@pytest.fixture(scope="module")
def arrays():
    return {v.name: v.value.numpy() for v in walk(pretrained())}


@pytest.fixture(scope="module")
def npz(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "w.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(params=["one", "mirrored"])
def strategy(request):
    if request.param == "one":
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
