"""Norms by group at a log point: of the gradient, of the weights, and of what the step made of them.

Only the step that ends at a log point is measured. It is a call of its own, so that the weights before
and after it are there to be compared; the same compiled loop runs it, in which `GradientNorms` adds one
branch that every other step passes by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.groups.phases import Group, Phase
from trainer.training import packing


class GradientNorms:
    """The square norm of each group's gradient, kept of a step that is watched.

    Attributes:
      watched: bool variable; set it for a call whose last step is to be measured.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._names = list(dict.fromkeys(group.name for group in groups))
        with tf.device("CPU:0"):
            self.watched = tf.Variable(False, trainable=False)
            self._squares = tf.Variable(tf.zeros([len(self._names)], tf.float64), trainable=False)

    def see(self, phase: Phase, gradients: Mapping[str, Any]) -> None:
        """In a step, cross-replica context: keeps the norms of `gradients`, by variable name, if watched.

        They are what the optimizers get: reduced over the replicas, unscaled and clipped.
        """

        def keep() -> tf.Tensor:
            squares = {name: tf.zeros([], tf.float64) for name in self._names}
            for group in phase.due:
                own = [gradients[v.name] for v in group.variables]
                squares[group.name] += tf.cast(packing.square_sum(own), tf.float64)
            self._squares.assign(tf.stack(list(squares.values())))
            return tf.constant(True)

        tf.cond(self.watched.read_value(), keep, lambda: tf.constant(False))

    def numbers(self) -> dict[str, float]:
        """The norms of the last watched step, by group."""
        return dict(zip(self._names, map(float, np.sqrt(self._squares.numpy())), strict=True))


@dataclass
class Norms:
    """What is measured of the step that ends at a log point.

    Attributes:
      gradients: see there.
    """

    gradients: GradientNorms
    _by_group: dict[str, dict[str, float]] = field(default_factory=dict)
    _compiled: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def measured(self, phase: Phase, step: Any) -> int:
        """Runs `step()`, a call of one step that returns how many were done, and measures it.

        `phase` is as at that step: what rests has a norm of its weights only.
        """
        read, compare = self._functions(phase)
        before = read()
        self.gradients.watched.assign(True)
        try:
            done = int(step())
        finally:
            self.gradients.watched.assign(False)
        weights, updates = np.sqrt(compare(*before).numpy())
        of_gradients = self.gradients.numbers()
        self._by_group = {}
        if done:
            names, due = [group.name for group in phase.active], [group.name for group in phase.due]
            with np.errstate(invalid="ignore", divide="ignore"):
                ratios = updates / weights
            self._by_group = {
                "gradient_norm": {name: of_gradients[name] for name in due},
                "weight_norm": dict(zip(names, map(float, weights), strict=True)),
                "update_ratio": {n: float(r) for n, r in zip(names, ratios, strict=True) if n in due},
            }
        return done

    def taken(self) -> dict[str, dict[str, float]]:
        """`{number: {group: value}}` of the step measured last, once; {} where none was."""
        found, self._by_group = self._by_group, {}
        return found

    def _functions(self, phase: Phase) -> tuple[Any, Any]:
        """The weights of a phase's groups, flat, and of those before float64 [2, groups]: the square sums of
        what they are now and of the change.
        """
        if phase.start not in self._compiled:
            groups = [[v.value for v in group.variables] for group in phase.active]
            flat = [v for own in groups for v in own]

            @tf.function(autograph=False)
            def read() -> list[tf.Tensor]:
                return [v.read_value() for v in flat]

            @tf.function(autograph=False)
            def compare(*before: tf.Tensor) -> tf.Tensor:
                old, sums = iter(before), []
                for own in groups:
                    now = [v.read_value() for v in own]
                    sums.append((_square_sum(now), _square_sum([a - next(old) for a in now])))
                return tf.transpose(tf.stack(sums))

            # Concrete ones, as a call of hundreds of arguments spends its time on their types otherwise.
            specs = [tf.TensorSpec(v.shape, v.dtype) for v in flat]
            self._compiled = {
                phase.start: (read.get_concrete_function(), compare.get_concrete_function(*specs))
            }
        return self._compiled[phase.start]


def _square_sum(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.cast(packing.square_sum(tensors), tf.float64)
