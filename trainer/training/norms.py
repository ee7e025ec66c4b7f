"""Norms by group of the last step of a call: of the gradient, of the weights, and of what the step changed.

A call of the compiled loop runs its steps in two legs: all but the last one, then that one. The weights are
read where a leg begins and compared where it ends, so that no step carries anything of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.devices.replicas import copies
from trainer.groups.phases import Phase
from trainer.training import packing

NAMES = ("gradient_norm", "weight_norm", "update_ratio")


def by_group(phase: Phase, values: Mapping[str, Any]) -> list[list[Any]]:
    """What stands in `values` by variable name, for the variables of each group that is due."""
    return [[values[v.name] for v in group.variables] for group in phase.due]


def of_active(phase: Phase, norms: tf.Tensor) -> tf.Tensor:
    """[active groups] from the [due groups] of a phase: -1 for one that rests."""
    if not phase.rests:
        return norms
    own = iter(tf.unstack(norms))
    rests = tf.constant(-1, norms.dtype)
    return tf.stack([rests if group.name in phase.rests else next(own) for group in phase.active])


class Norms:
    """What the last call of the compiled loop has measured of its last step."""

    def __init__(self) -> None:
        with tf.device("CPU:0"):
            self._found = tf.Variable(tf.zeros([3, 0], tf.float64), trainable=False, shape=[3, None])

    def weights(self, phase: Phase) -> list[list[tf.Tensor]]:
        """The weights that train in a phase, by group, as they stand. In a step; no copy until one moves."""
        return [[copies(v.value)[0].read_value() for v in group.variables] for group in phase.active]

    def of(self, phase: Phase, before: Sequence[Sequence[tf.Tensor]], gradients: tf.Tensor) -> tf.Tensor:
        """float64 [3, groups] of a phase: norms of gradients, of the weights, and of their change.

        Args:
          phase: of the step.
          before: `weights` before it.
          gradients: [groups], the norms of what the optimizers got in it; -1 of one that rested.
        """
        now = self.weights(phase)
        moved = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(now, before, strict=True)]
        squares = [packing.square_sums(groups) for groups in (now, moved)]
        return tf.stack([tf.cast(x, tf.float64) for x in (gradients, *map(tf.sqrt, squares))])

    def keep(self, found: tf.Tensor) -> None:
        """Keeps what `of` gave, for the host to ask for."""
        self._found.assign(found)

    def numbers(self, phase: Phase) -> dict[str, dict[str, float]]:
        """`{number: {group: value}}` of the last step of the last call, which was of `phase`.

        A group that rested in it has a norm of its weights only.
        """
        gradients, weights, updates = self._found.numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            rows = gradients, weights, updates / weights
        groups = [group.name for group in phase.active]
        rested = {name for name, norm in zip(groups, gradients, strict=True) if norm < 0}
        found = {
            name: dict(zip(groups, map(float, row), strict=True))
            for name, row in zip(NAMES, rows, strict=True)
        }
        for name in ("gradient_norm", "update_ratio"):
            found[name] = {group: value for group, value in found[name].items() if group not in rested}
        return found
