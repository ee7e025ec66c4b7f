"""The trainable variables of a model, parted into groups with their optimizers, schedules and phases."""

import dataclasses
from collections.abc import Mapping, Sequence

import tensorflow as tf

from trainer.flags.durations import Clock
from trainer.groups import optimizers, phases, schedules
from trainer.groups.group_optimizer import GroupOptimizer
from trainer.groups.phases import Group, Phase
from trainer.groups.rules import Owned
from trainer.groups.schedules import Schedule
from trainer.groups.states import states
from trainer.model.names import ModelVariable


@dataclasses.dataclass(frozen=True)
class PerVariable:
    """What single variables have other than their group.

    Attributes:
      multipliers: of the group's rate, by variable name; 1 where none is given.
      no_decay: names of the variables that no weight decay touches.
      depths: of the layers, which the multipliers follow from, by variable name; {} without `--layer_decay`.
    """

    multipliers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    no_decay: frozenset[str] = frozenset()
    depths: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Partition:
    """Who trains what, how and when.

    Attributes:
      owned: each rule with the variables that it owns.
      clock: `total` is the run's length in steps.
      groups: of the rules that train, in their order.
      phases: of the run, in order.
      optimizers: built, one for each group (or more, see `cohorts`).
      schedules: by group name, of the step since the group's start.
      per_variable: see there.
    """

    owned: tuple[Owned, ...]
    clock: Clock
    groups: tuple[Group, ...]
    phases: tuple[Phase, ...]
    optimizers: tuple[GroupOptimizer, ...]
    schedules: Mapping[str, Schedule]
    per_variable: PerVariable = PerVariable()

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        assert self.clock.total is not None
        return self.clock.total

    @property
    def owner(self) -> dict[str, GroupOptimizer]:
        """By variable name, what trains it."""
        return {v.name: o for o in self.optimizers for v in o.group.variables}

    def rates(self, group: Group, steps: Sequence[int]) -> list[float | None]:
        """The group's learning rate at each of `steps`; None where it does not train."""
        schedule = self.schedules[group.name]
        return [
            float(schedule(tf.constant(s - group.start, tf.int64))) if group.start <= s < group.stop else None
            for s in steps
        ]

    def cohorts(self, counts: Mapping[str, int], strategy: tf.distribute.Strategy) -> "Partition":
        """With an optimizer for each number of updates that a group's variables have behind them.

        Adam and others correct their averages by that number, which Keras keeps once per optimizer:
        variables that come from different groups of a checkpoint must not share it.

        Args:
          counts: updates so far by variable name; 0 for what is not named.
          strategy: in whose scope the optimizers are made.
        """
        parts = []
        for group in self.groups:
            by_count: dict[int, list[ModelVariable]] = {}
            for v in group.variables:
                by_count.setdefault(counts.get(v.name, 0), []).append(v)
            parts += [dataclasses.replace(group, variables=tuple(own)) for own in by_count.values()]
        if len(parts) == len(self.groups):
            return self
        return dataclasses.replace(self, optimizers=_optimizers(parts, self.per_variable, strategy))


def partition(
    owned: Sequence[Owned],
    clock: Clock,
    strategy: tf.distribute.Strategy,
    per_variable: PerVariable = PerVariable(),
    only_shapes: bool = False,
    variables: Sequence[ModelVariable] = (),
) -> Partition:
    """The parts of a model whose rules own `owned`.

    Args:
      owned: as `rules.assign` gives it.
      clock: of the run, its total known.
      strategy: in whose scope the optimizers are made.
      per_variable: see there.
      only_shapes: as `GroupOptimizer.build` has it.
      variables: of the model, for the state among them.

    Raises:
      UserError: groups or phases that do not fit the run's length, a schedule that does not fit its
        group, or an optimizer that refuses its arguments or variables.
    """
    total = clock.total or 0
    groups = phases.resolve(owned, clock, total)
    found = states([rule for rule, _ in owned], variables)
    run_phases = phases.phases(groups, total, found)
    rates = {}
    for group in groups:
        assert group.rule.schedule is not None
        call, flag = group.rule.schedule, group.rule.flag
        rates[group.name] = schedules.build(call, clock, group.stop - group.start, flag)
    built = _optimizers(groups, per_variable, strategy, only_shapes)
    return Partition(tuple(owned), clock, tuple(groups), tuple(run_phases), built, rates, per_variable)


def _optimizers(
    groups: Sequence[Group],
    per_variable: PerVariable,
    strategy: tf.distribute.Strategy,
    only_shapes: bool = False,
) -> tuple[GroupOptimizer, ...]:
    built = []
    for group in groups:
        assert group.rule.optimizer is not None
        with strategy.scope():
            own = optimizers.make(group.rule.optimizer, group.rule.flag)
            built.append(GroupOptimizer(group, own, per_variable.multipliers, per_variable.no_decay))
            built[-1].build(only_shapes)
    return tuple(built)
