"""What the tests of checkpoint share."""

import os
from pathlib import Path

import tensorflow as tf

from trainer.checkpoints import checkpoint


def state(value=0.0, size=3):
    return {
        "model/dense.a/kernel": tf.Variable(tf.fill([size, 2], tf.constant(value, tf.float32))),
        "optimizer/dense.a/kernel/momentum": tf.Variable(tf.fill([size, 2], value + 1)),
        "step": tf.Variable(int(value), dtype=tf.int64),
    }


def saved(directory, *steps, **meta):
    for step in steps:
        checkpoint.save(directory, step, state(float(step)), {"plan": "p", **meta})
    return directory


def names(directory):
    return sorted(os.listdir(directory))


def content(directory):
    return {
        str(p.relative_to(directory)): (p.read_bytes(), p.stat().st_ino)
        for p in Path(directory).rglob("*")
        if p.is_file()
    }


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
