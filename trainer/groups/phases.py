"""When which group trains: groups with their steps, the phases of a run, and its events."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import UserError
from trainer.flags.durations import Clock
from trainer.groups.rules import Owned, Rule
from trainer.groups.states import State, still
from trainer.model.names import ModelVariable


@dataclass(frozen=True)
class Group:
    """Variables that one optimizer trains at one schedule from step `start` up to `stop`, exclusive."""

    name: str
    rule: Rule
    variables: tuple[ModelVariable, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Phase:
    """Steps `start` up to `stop`, exclusive, in which the same groups train.

    Attributes:
      active: those groups.
      still: names of the state that does not move.
    """

    start: int
    stop: int
    active: tuple[Group, ...]
    still: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """Names of the variables that train in this phase."""
        return frozenset(v.name for group in self.active for v in group.variables)


def resolve(owned: Sequence[Owned], clock: Clock, total: int) -> list[Group]:
    """Groups with their first and last steps, from durations; frozen rules make no group.

    Raises:
      UserError: a group that would start after the run's end, end after it, or end before its start.
    """
    groups = []
    for rule, variables in owned:
        if rule.optimizer is None:
            continue
        start = clock.steps(rule.start, rule.flag) if rule.start else 0
        stop = clock.steps(rule.until, rule.flag) if rule.until else total
        if not 0 <= start < stop or stop > total:
            raise UserError(
                f"{rule.flag}: trains from step {start} up to step {stop} in a run of {total} steps. "
                f"Let it start before it ends and end by step {total}, or lengthen --train_for."
            )
        groups.append(Group(rule.name, rule, variables, start, stop))
    return groups


def phases(groups: Sequence[Group], total: int, found: Sequence[State] = ()) -> list[Phase]:
    """The phases of a run, in order; together they cover steps 0 to `total`.

    Args:
      groups: of the run.
      total: steps of the run.
      found: the state of the model.

    Raises:
      UserError: nothing to train in some phase.
    """
    edges = sorted({0, total, *(g.start for g in groups), *(g.stop for g in groups)})
    result = []
    for start, stop in itertools.pairwise(edges):
        active = tuple(g for g in groups if g.start <= start and g.stop >= stop)
        if not active:
            raise UserError(
                f"--group: nothing to train from step {start} up to step {stop}: every variable is "
                "frozen there. Let a group start by then (from=) or end later (until=)."
            )
        names = frozenset(v.name for group in active for v in group.variables)
        result.append(Phase(start, stop, active, still(found, names, frozenset(g.name for g in active))))
    return result


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase of the last of `step` steps done; before the first, the first."""
    return next((phase for phase in phases if step <= phase.stop), phases[-1])


@dataclass
class Events:
    """At which steps something happens: multiples of each period, single ones, and the end."""

    log: int
    evaluate: int
    save: int
    total: int
    marks: tuple[int, ...] = ()

    def next(self, step: int, phase: Phase) -> int:
        """The first step after `step` at which the host must act."""
        due = [(step // period + 1) * period for period in (self.log, self.evaluate, self.save)]
        due += [mark for mark in self.marks if mark > step]
        return min(*due, phase.stop, self.total)

    def due(self, period: int, step: int) -> bool:
        """Whether an event of this period falls on `step`."""
        return step % period == 0 or step == self.total
