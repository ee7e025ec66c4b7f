"""A checkpoint of every format that was ever written is restored bit for bit."""

from pathlib import Path

import ml_dtypes
import numpy as np
import tensorflow as tf

from trainer.checkpoints import checkpoint, manifest

GOLDEN = Path(__file__).parent / "golden" / "v1"


def golden_state():
    """What golden/v1 holds; to make it, once a version: `python tests/checkpoints/test_golden.py`."""
    ramp = np.arange(18, dtype=np.float64) / 7 - 1  # no random numbers: NumPy may change those
    return {
        "model/conv1/kernel": tf.Variable(ramp.astype(np.float32).reshape(3, 3, 1, 2)),
        "model/bn/moving_mean": tf.Variable(np.array([1 / 3, -0.0])),
        "optimizer/conv1/kernel/momentum": tf.Variable(ramp.astype(np.float16)),
        "ema/conv1/kernel": tf.Variable(ramp.astype(ml_dtypes.bfloat16)),
        "model/dropout/seed_generator_state": tf.Variable(np.array([7, 4294967295], np.uint32)),
        "finite": tf.Variable(np.array([True, False])),
        "step": tf.Variable(1234567890123, dtype=tf.int64),
    }


def test_the_golden_checkpoint_of_version_1_is_restored():
    entry, notes = checkpoint.newest(GOLDEN, set_aside=False)
    assert notes == [] and entry.step == 1234 and entry.meta == {"plan": {"rows": ["ä"]}}
    read = {name: tf.Variable(tf.zeros_like(v)) for name, v in golden_state().items()}
    checkpoint.load(entry, read)
    for name, variable in golden_state().items():
        assert read[name].numpy().tobytes() == variable.numpy().tobytes(), name


def test_the_format_has_a_golden_checkpoint():
    assert (GOLDEN.parent / f"v{manifest.FORMAT}").is_dir()


if __name__ == "__main__":
    place = GOLDEN.parent / f"v{manifest.FORMAT}"
    print(checkpoint.save(place, 1234, golden_state(), {"plan": {"rows": ["ä"]}}))
