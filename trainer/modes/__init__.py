"""What can be done, a file each: `run(config) -> exit status` of a `--mode`.

Imports checkpoints, devices, flags, groups, model, readers, report, restore, run, training.
"""

import importlib

import tensorflow as tf

from trainer.devices import cluster
from trainer.errors import UserError, blame
from trainer.flags.config import Config

# Looks for a driver, and says so on file descriptor 2, the first time.
tf.config.list_physical_devices()


def run(config: Config) -> int:
    """Runs the mode that `config.mode` names and returns the exit status.

    Raises:
      UserError: whatever the mode refuses, or TensorFlow; with several workers, that another one is gone.
    """
    tf.get_logger().setLevel("ERROR")
    mode = importlib.import_module(f"trainer.modes.{config.mode}")
    try:
        return mode.run(config)
    except tf.errors.OpError as error:
        refusal = None
        if config.strategy == "multi_worker":
            refusal = cluster.lost(error, cluster.resolver(len(tf.config.list_physical_devices("GPU"))))
        raise refusal or UserError(f"--mode={config.mode}: TensorFlow {blame(error)}") from error
