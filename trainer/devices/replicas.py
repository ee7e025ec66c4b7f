"""The replicas of a strategy: how many, in which process, and the copies of a variable that they hold."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from trainer.devices import cluster


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes checkpoints, logs and event files; alone, it does."""
    return worker(strategy)[0] == 0


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """(index of this process, how many there are): (0, 1) for a strategy of one process."""
    resolver = strategy.cluster_resolver
    if resolver is None or not _is_multi_worker(strategy):
        return 0, 1
    workers = list(cluster.tasks(resolver))
    return workers.index(f"{resolver.task_type} {resolver.task_id}"), len(workers)


def replicas(strategy: tf.distribute.Strategy) -> int:
    """How many replicas share a batch, over all workers."""
    return int(strategy.num_replicas_in_sync)


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """How many of the replicas run in this process."""
    if _is_multi_worker(strategy):
        return len(strategy.extended.worker_devices)
    return replicas(strategy)


@dataclass(frozen=True)
class Share:
    """How a global batch is shared out: over replicas, over workers, over accumulated batches.

    Attributes:
      strategy: whose replicas take the parts.
      accumulate: batches in a row whose gradients one update sums; each is shared by all replicas.
    """

    strategy: tf.distribute.Strategy
    accumulate: int = 1

    @property
    def replicas(self) -> int:
        """How many replicas share a batch, over all workers."""
        return replicas(self.strategy)

    @property
    def worker(self) -> int:
        """Index of this process among the workers."""
        return worker(self.strategy)[0]

    @property
    def workers(self) -> int:
        """How many processes share a batch."""
        return worker(self.strategy)[1]

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of this process's replicas."""
        try:
            return tuple(self.strategy.extended.worker_devices)
        except RuntimeError:  # TensorFlow's default strategy does not tell
            return ("GPU:0",) if tf.config.list_logical_devices("GPU") else ("CPU:0",)


def copies(variable: tf.Variable) -> tuple[tf.Variable, ...]:
    """The variable of each replica of this process: several of a mirrored one, else itself."""
    return tuple(variable.values) if isinstance(variable, tf.distribute.DistributedValues) else (variable,)


def assign(variable: tf.Variable, value: Any) -> None:
    """Gives `value` (of the variable's shape and dtype) to every replica of this process, eagerly."""
    for copy in copies(variable):
        copy.assign(tf.constant(value, copy.dtype))


def _is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
