"""One file per `--mode`: `run(config) -> exit status`, composed from the floors below."""

import importlib

import tensorflow as tf

from trainer.config import Config

# Looks for a driver, and says so on file descriptor 2, the first time.
tf.config.list_physical_devices()


def run(config: Config) -> int:
    """Runs the mode that `config.mode` names and returns the exit status."""
    tf.get_logger().setLevel("ERROR")
    return importlib.import_module(f"trainer.modes.{config.mode}").run(config)
