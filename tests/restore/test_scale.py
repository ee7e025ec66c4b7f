"""Many variables in little time, large ones in little memory."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from trainer.readers import buffers
from trainer.restore import pieces
from trainer.restore.weights import restore_weights

PEAK = """
import resource, sys
import numpy as np
import tensorflow as tf
from trainer.restore.weights import restore_weights

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

side, path = 4096, sys.argv[1]
net = tf.Module()
net.block = [tf.Module() for _ in range(5)]
for k, block in enumerate(net.block):
    block.kernel = tf.Variable(tf.fill((side, side), float(k)))
before = peak()
restore_weights(net, path)
assert [float(b.kernel[0, 0]) for b in net.block] == [1, 2, 3, 4, 5]
print((peak() - before) / (side * side * 4 / 2**20))
"""


@pytest.mark.slow
def test_peak_memory_is_the_model_and_little_more_than_its_largest_tensor(tmp_path):
    side = np.ones((4096, 4096), np.float32)
    save_file({f"block/{k}/kernel": side * (k + 1) for k in range(5)}, tmp_path / "w.safetensors")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "w.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    # Of 64 MiB; 24 MiB more are the program's own.
    assert float(done.stdout) < 1.3 + 24 / 64


def test_five_hundred_variables(tmp_path):
    x = inputs = keras.Input((4,))
    for k in range(250):
        x = keras.layers.Dense(4, name=f"block{k}")(x)
    model = keras.Model(inputs, x)
    model.save_weights(tmp_path / "m.weights.h5")
    receipt = restore_weights(model, tmp_path / "m.weights.h5")
    lines = str(receipt).splitlines()
    receipt.write(tmp_path)
    assert len(receipt.restored) == 500 and len(lines) < 60


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "bool", "bfloat16"])
@pytest.mark.parametrize("aligned", [True, False])
def test_large_arrays_arrive_whole_and_are_nobody_elses(dtype, aligned, monkeypatch):
    monkeypatch.setattr(pieces, "_LARGE", 1 << 10)
    monkeypatch.setattr(buffers, "PIECE", 1 << 9)
    monkeypatch.setattr(buffers, "LARGE", 1 << 10)
    values = np.random.default_rng(0).integers(0, 2, (64, 40))
    wanted = values.astype(tf.as_dtype(dtype).as_numpy_dtype)
    array = wanted.T.copy().T
    if aligned:
        array = buffers.room(wanted.nbytes).view(wanted.dtype).reshape(wanted.shape)
        array[...] = wanted
    two = [tf.Variable(tf.zeros((64, 40), dtype)) for _ in range(2)]
    pieces.assign(two, array)
    del array
    for variable in two:
        np.testing.assert_array_equal(variable.numpy(), wanted)
        assert pieces.checksum_of(variable) == pieces.checksum(wanted)
    if dtype in ("float32", "int32"):
        two[0].assign_add(tf.ones((64, 40), dtype))
        np.testing.assert_array_equal(two[1].numpy(), wanted)
        np.testing.assert_array_equal(two[0].numpy(), wanted + np.ones((), wanted.dtype))


def test_checksums_are_those_of_the_bytes():
    import hashlib

    for shape in ((), (0, 3), (1, 1 << 24), (5000, 4000), (3,)):
        array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        assert pieces.checksum(array) == hashlib.sha256(array.tobytes()).hexdigest()
    turned = np.arange(12.0).reshape(3, 4).T
    assert pieces.checksum(turned) == hashlib.sha256(turned.tobytes()).hexdigest()
