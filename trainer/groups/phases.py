"""When which group trains: groups with their steps, the phases of a run, and its events."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from trainer.errors import UserError, listing
from trainer.flags.durations import Clock
from trainer.groups.rules import Owned, Rule
from trainer.groups.states import State, still
from trainer.model.names import ModelVariable

TURNS = 16  # sets of groups that `every=` may make of a phase; each is compiled
_AT_ONCE = 1 << 18  # steps that are looked at together


@dataclass(frozen=True)
class Group:
    """Variables that one optimizer trains at one schedule from step `start` up to `stop`, exclusive.

    With `every=N` it is due at steps `start`, `start` + N, ...; at others it rests.
    """

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
      rests: names of groups that are not due at the steps in question; at these the optimizer of such a
        group does nothing, while its layers run as in training.
    """

    start: int
    stop: int
    active: tuple[Group, ...]
    still: frozenset[str] = frozenset()
    rests: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """Names of the variables that train in this phase."""
        return frozenset(v.name for group in self.active for v in group.variables)

    @property
    def due(self) -> tuple[Group, ...]:
        """The groups that have an update."""
        return tuple(group for group in self.active if group.name not in self.rests)

    @property
    def loss_of(self) -> dict[str, str]:
        """By the name of each variable that has an update, the loss that moves it; "" for the sum of all."""
        return {v.name: group.rule.loss for group in self.due for v in group.variables}

    def at(self, step: int) -> "Phase":
        """The phase as it is at one of its steps."""
        resting = (g.name for g in self.active if (step - g.start) % g.rule.every)
        return replace(self, rests=frozenset(resting))

    @cached_property
    def turns(self) -> tuple["Phase", ...]:
        """The phase as it is at its steps, each set of groups once."""
        first: dict[frozenset[str], int] = {}
        cycle = math.lcm(*(group.rule.every for group in self.active))
        stop = min(self.stop, self.start + cycle)
        for start in range(self.start, stop if cycle > 1 else self.start + 1, _AT_ONCE):
            steps = np.arange(start, min(start + _AT_ONCE, stop))
            due = np.array([(steps - g.start) % g.rule.every == 0 for g in self.active])
            _, found = np.unique(np.packbits(due, axis=0), axis=1, return_index=True)
            for step in map(int, steps[found]):
                first.setdefault(self.at(step).rests, step)
        return tuple(replace(self, rests=rests) for rests in first)


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
      UserError: nothing to train in some phase, or at some step of it.
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
        _check_turns(result[-1])
    return result


def _check_turns(phase: Phase) -> None:
    """Refuses a phase in which at some step no group is due, or that would be compiled too often."""
    several = [g.rule.flag for g in phase.active if g.rule.every > 1]
    if any(not turn.due for turn in phase.turns):
        step = next(s for s in range(phase.start, phase.stop) if not phase.at(s).due)
        raise UserError(
            f"{listing(several)}: nothing would train at step {step}, at which no group is due. Let one "
            "train at every step, or let them take turns (every=2 from=1 beside every=2)."
        )
    if len(phase.turns) > TURNS:
        raise UserError(
            f"{listing(several)}: every= makes {len(phase.turns)} sets of groups that train together, each "
            f"compiled; {TURNS} are the most. Give multiples of each other, such as 2 and 4."
        )


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
