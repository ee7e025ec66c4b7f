"""What a run changes in its process and puts back: Keras's settings and every random generator."""

import contextlib
import random
import threading
from collections.abc import Iterator

import keras
import numpy as np
from keras.src.backend.common import global_state
from tensorflow.python.eager import context


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """Keras's name counters, dtype policy and float type, and all generators, are after it as before it.

    Keras keeps its counters, seeds and policies in two objects, which `clear_session` replaces; inside, Keras
    is as a fresh process has it.
    """
    names, settings = global_state.GLOBAL_STATE_TRACKER, global_state.GLOBAL_SETTINGS_TRACKER
    floatx = keras.config.floatx()
    python, numpy = random.getstate(), np.random.get_state()
    eager = context.context()
    seed, generator = eager._seed, getattr(eager, "_rng", None)  # a new seed makes a new generator
    global_state.GLOBAL_STATE_TRACKER = threading.local()
    global_state.GLOBAL_SETTINGS_TRACKER = threading.local()
    try:
        yield
    finally:
        global_state.GLOBAL_STATE_TRACKER, global_state.GLOBAL_SETTINGS_TRACKER = names, settings
        keras.config.set_floatx(floatx)
        random.setstate(python)
        np.random.set_state(numpy)
        eager._seed, eager._rng = seed, generator
