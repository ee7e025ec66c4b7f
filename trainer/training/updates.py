"""The apply half of a step: what one reduced, checked gradient does to the variables of a run.

All of it is in cross-replica context, once for all groups.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from trainer.groups.group_optimizer import GroupOptimizer
from trainer.groups.phases import Phase
from trainer.groups.schedules import Schedule
from trainer.model.names import ModelVariable
from trainer.training import window
from trainer.training.gradients import Settings, StepResult
from trainer.training.state import LOSS_SCALE_GROWTH, RECENT, TrainState


def move(
    strategy: tf.distribute.Strategy,
    optimizers: tuple[GroupOptimizer, ...],
    schedules: Mapping[str, Schedule],
    phase: Phase,
    gradients: Mapping[str, Any],
    step: tf.Tensor,
) -> None:
    """The optimizer of each group that is due moves its variables by one update.

    Args:
      strategy: on whose replicas.
      optimizers: built; those whose group is due in `phase` are used.
      schedules: by group name, of the step since the group's start.
      phase: that `step` lies in.
      gradients: by variable name, reduced over the replicas.
      step: int64 scalar, steps done before this one.
    """
    due = {group.name for group in phase.due}
    for optimizer in optimizers:
        if optimizer.group.name not in due:
            continue
        rate = schedules[optimizer.group.name](step - optimizer.group.start)
        optimizer.begin()
        for v in optimizer.group.variables:
            args = (gradients[v.name], rate)
            strategy.extended.update(v.value, _mover(optimizer, v), args=args, group=False)
        optimizer.end()


@dataclass(frozen=True)
class Updates:
    """What a step does to the state of a run: moved, or passed over where it was not finite.

    Attributes:
      strategy: as `trainer.devices` chose it.
      state: of the run.
      schedules: by group name, of the step since the group's start.
      settings: see there.
      halted: bool scalar variable, set where a step ends the run.
    """

    strategy: tf.distribute.Strategy
    state: TrainState
    schedules: Mapping[str, Schedule]
    settings: Settings
    halted: tf.Variable

    def apply(self, phase: Phase, result: StepResult) -> None:
        """What the forward pass wrote, then the optimizers, the averages and the counters."""
        state, update = self.state, self.strategy.extended.update
        moved = state.moved(phase)
        gradients = {v.name: g for v, g in zip(moved, result.gradients, strict=True)}
        step = state.step.read_value()
        self.assign(result.updates)  # first: a weight moves from the value that its layer gave it
        move(self.strategy, state.optimizers, self.schedules, phase, gradients, step)
        for v in state.variables:
            if v.name in state.averages:
                update(state.averages[v.name], self._average, args=(v.value,), group=False)
        update(state.sums, _add, args=(result.sums,), group=False)
        if state.weightless is not None:
            update(state.weightless, self._count_weightless, args=(result.sums,), group=False)
        state.step.assign_add(1)
        if state.scale is not None and state.good is not None:
            more = state.scale * 2
            grow = state.good + 1 >= LOSS_SCALE_GROWTH
            state.scale.assign(tf.where(grow & tf.math.is_finite(more), more, state.scale))
            state.good.assign(tf.where(grow, tf.zeros([], tf.int64), state.good + 1))

    def skip(self, result: StepResult) -> None:
        """What a non-finite step leaves: its place in the counters, and a smaller loss scale."""
        state = self.state
        self.assign(result.before)
        halt = tf.constant(self.settings.on_nonfinite == "halt")
        if state.scale is not None and state.good is not None:
            halt = tf.logical_and(halt, state.scale <= 1)
            state.scale.assign(tf.maximum(state.scale / 2, 1))
            state.good.assign(tf.zeros([], tf.int64))
        self.halted.assign(halt)
        # A step that halts the run is not done: the same command meets it again.
        done = tf.cast(tf.logical_not(halt), tf.int64)
        slot = tf.cast(tf.reshape(state.skipped % RECENT, [1, 1]), tf.int32)
        seen = tf.tensor_scatter_nd_update(state.recent, slot, tf.reshape(state.step + 1, [1]))
        state.recent.assign(tf.where(halt, state.recent, seen))
        state.skipped.assign_add(done)
        state.step.assign_add(done)

    def assign(self, values: Mapping[str, Any]) -> None:
        """Gives model variables new values, by name."""
        for v in self.state.variables:
            if v.name in values:
                self.strategy.extended.update(
                    v.value, lambda to, x: to.assign(x), args=(values[v.name],), group=False
                )

    def _count_weightless(self, count: tf.Variable, sums: tf.Tensor) -> None:
        weights = list(window.weights(sums, self.state.means).values())
        count.assign_add(tf.cast(tf.reduce_any(tf.stack(weights) == 0), count.dtype))

    def _average(self, average: tf.Variable, value: tf.Variable) -> None:
        decay = tf.constant(self.settings.ema, average.dtype)
        average.assign(average * decay + value * (1 - decay))


def _mover(optimizer: GroupOptimizer, variable: ModelVariable) -> Callable[..., None]:
    return lambda value, gradient, rate: optimizer.update(variable, value, gradient, rate)


def _add(to: tf.Variable, value: tf.Tensor) -> None:
    to.assign_add(tf.cast(value, to.dtype))
