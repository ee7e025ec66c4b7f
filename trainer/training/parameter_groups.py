"""Parameter groups for a loop of one's own: the rules, one clip, and every group's update."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from trainer.errors import UserError
from trainer.flags.durations import Clock
from trainer.groups import group_optimizer
from trainer.groups.partition import Partition, partition
from trainer.groups.phases import Phase
from trainer.groups.rules import assign, parse_rules
from trainer.model.frozen import FrozenLayers
from trainer.model.names import walk
from trainer.training import packing
from trainer.training.updates import move


@dataclass(frozen=True)
class ParameterGroups:
    """Who trains what, how and when, over a model of one's own; made by `parameter_groups`.

    Attributes:
      parts: groups, phases, optimizers and schedules.
      strategy: on whose replicas the model lives.
      clip_norm: largest global norm of the gradient over all groups; None for no clip.
      step: int64 scalar variable, updates done.
      frozen: which layers run as `trainable=False`.

    Example:
      >>> import keras, trainer
      >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1, name="head")])
      >>> rules = [".*/bias sgd 0.1 from=50%", ".* adam 1e-3"]
      >>> groups = trainer.parameter_groups(model, rules, steps=10)
      >>> [(phase.start, phase.stop, len(groups.trainable(phase.start))) for phase in groups.phases]
      [(0, 5, 1), (5, 10, 2)]
    """

    parts: Partition
    strategy: tf.distribute.Strategy
    clip_norm: float | None
    step: tf.Variable
    frozen: FrozenLayers

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The runs of steps in which the same variables train, in order: each has `start` and `stop`."""
        return self.parts.phases

    @property
    def state(self) -> dict[str, tf.Variable]:
        """`{name: variable}` of the optimizers and the step, for a checkpoint of one's own."""
        return {"step": self.step, **group_optimizer.state(self.parts.optimizers)}

    def trainable(self, step: int) -> list[tf.Variable]:
        """The variables that train at `step`; layers whose variables are all frozen run frozen from now on.

        Call it before the step is traced: which variables train is fixed for the length of a phase.

        Args:
          step: any step of a phase.
        """
        phase = self._phase(step)
        self.frozen.enter(phase.names, phase.still)
        return [v.value for group in phase.active for v in group.variables]

    def apply(self, step: int, gradients: Sequence[Any]) -> None:
        """One update of every group that trains at `step`, at its own rate; counts the step.

        Under a strategy call it in replica context, as one calls `optimizer.apply_gradients`; the gradients
        of all replicas are summed in one reduce, then clipped by their global norm (Pascanu et al. 2013).

        Args:
          step: any step of the phase that `trainable` was asked for.
          gradients: of `trainable(step)`, in that order: `tf.Tensor` or `tf.IndexedSlices`.

        Raises:
          UserError: a variable has no gradient.
        """
        phase = self._phase(step)
        names = [v.name for group in phase.active for v in group.variables]
        lacking = [name for name, g in zip(names, gradients, strict=True) if g is None]
        if lacking:
            raise UserError(f"--group: the loss does not depend on {', '.join(lacking)}: freeze it.")
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            gradients, _ = packing.all_reduce(context, gradients, ())
        gradients = [packing.distinct(g) for g in gradients]
        if self.clip_norm is not None:
            factor = packing.shrink(tf.sqrt(packing.square_sums([gradients])[0]), self.clip_norm)
            gradients = [packing.scaled(g, factor) for g in gradients]

        def update(strategy: tf.distribute.Strategy, gradients: Sequence[Any]) -> None:
            named = dict(zip(names, gradients, strict=True))
            now = self.step.read_value()
            move(strategy, self.parts.optimizers, self.parts.schedules, phase, named, now)
            self.step.assign_add(1)

        context.merge_call(update, args=(list(gradients),))

    def _phase(self, step: int) -> Phase:
        for phase in self.phases:
            if phase.start <= step < phase.stop:
                return phase
        raise UserError(f"step={step}: the groups are for steps 0 to {self.parts.total - 1}.")


def parameter_groups(
    model: Any,
    rules: Sequence[str],
    *,
    steps: int,
    examples: int | None = None,
    batch_size: int = 1,
    clip_norm: float | None = None,
) -> ParameterGroups:
    """Groups of a model's variables by rules, for a loop of one's own. Call it in the strategy's scope.

    Args:
      model: a `keras.Model` or `tf.Module`, its variables created.
      rules: as `--group` has them, in order; the first that matches a variable's name owns it.
      steps: length of the run; what `%` in a rule is a share of.
      examples: in an epoch, where a rule counts in epochs.
      batch_size: examples of an update, where a rule counts in epochs.
      clip_norm: largest global norm of the gradient over all groups.

    Raises:
      UserError: as a run with these rules would.

    Example:
      >>> import keras, numpy as np, tensorflow as tf, trainer
      >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1, name="head")])
      >>> groups = trainer.parameter_groups(model, [".*/bias frozen", ".* sgd 0.1"], steps=10)
      >>> variables = groups.trainable(0)
      >>> with tf.GradientTape() as tape:
      ...     loss = tf.reduce_mean(model(tf.ones([4, 3])) ** 2)
      >>> groups.apply(0, tape.gradient(loss, variables))
      >>> [variable.shape.as_list() for variable in variables], int(groups.step.numpy())
      ([[3, 1]], 1)
    """
    strategy = tf.distribute.get_strategy()
    parsed, variables = parse_rules(rules), walk(model)
    for rule in parsed:
        if rule.loss or rule.every > 1:
            raise UserError(
                f"{rule.flag}: loss= and every= are for runs. In a loop of your own compute the gradients of "
                "each group by the loss that is its own, and call apply when it is to train."
            )
    clock = Clock(examples, batch_size, steps)
    parts = partition(assign(parsed, variables), clock, strategy, variables=variables)
    step = tf.Variable(0, dtype=tf.int64, trainable=False)
    return ParameterGroups(parts, strategy, clip_norm, step, FrozenLayers(variables))
