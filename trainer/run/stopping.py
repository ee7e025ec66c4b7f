"""Whether a run ends before its last step: `--stop_when`, judged on its evaluations.

What is counted travels in the checkpoints, so that a run that was interrupted ends where it would have ended.
Conditions are no part of the plan: a run may go on with others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from trainer.devices.agreement import from_first
from trainer.errors import UserError, near
from trainer.flags import conditions
from trainer.flags.conditions import Condition
from trainer.flags.criteria import Criterion

_GO_ON = "(go on)"


@dataclass
class Judge:
    """What has been seen of a run's evaluations, and whether that ends it.

    Attributes:
      conditions: any of which ends the run.
      criteria: of those that stall, by condition's text.
      total: steps of the whole run.
      seen: by `metric:direction`, the best value so far and how many evaluations there were since.
      ended: the condition that ended the run; empty as long as none did.
    """

    conditions: tuple[Condition, ...] = ()
    criteria: Mapping[str, Criterion] = field(default_factory=dict)
    total: int = 0
    seen: dict[str, dict[str, float]] = field(default_factory=dict)
    ended: str = ""

    def judge(self, numbers: Mapping[str, float], strategy: tf.distribute.Strategy) -> str:
        """The condition that these results of an evaluation fulfil, or ""; the first worker decides.

        Raises:
          UserError: a condition on what the evaluation does not yield.
        """
        if not self.conditions:
            return ""
        for condition in self.conditions:
            _check(condition, numbers)
        for criterion in set(self.criteria.values()):
            self._count(criterion, numbers[criterion.metric])
        met = [c.text for c in self.conditions if self._met(c, numbers)]
        answer = from_first(strategy, lambda: met[0] if met else _GO_ON)
        self.ended = "" if answer == _GO_ON else answer
        return self.ended

    def recorded(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ended = {"by": self.ended, "total": self.total} if self.ended else {}
        return {"seen": self.seen, "ended": ended}

    def restore(self, kept: Any) -> None:
        """Takes over what a checkpoint has kept, as far as it is of use and well-formed."""
        kept = kept if isinstance(kept, dict) else {}
        seen, ended = kept.get("seen"), kept.get("ended")
        for name in {str(c) for c in self.criteria.values()}:
            entry = seen.get(name) if isinstance(seen, dict) else None
            if isinstance(entry, dict) and all(
                isinstance(entry.get(k), int | float) for k in ("best", "since")
            ):
                self.seen[name] = {"best": float(entry["best"]), "since": int(entry["since"])}
        if isinstance(ended, dict) and ended.get("total") == self.total:
            by = ended.get("by")
            self.ended = by if by in [c.text for c in self.conditions] else ""

    def _count(self, criterion: Criterion, value: float) -> None:
        entry = self.seen.get(str(criterion))
        if entry is None or criterion.better(value, entry["best"]):
            # The first value counts as better than nothing, unless it is none.
            if not math.isnan(value):
                self.seen[str(criterion)] = {"best": float(value), "since": 0}
            return
        entry["since"] += 1

    def _met(self, condition: Condition, numbers: Mapping[str, float]) -> bool:
        if condition.compare:
            return condition.reached(numbers[condition.name])
        entry = self.seen.get(str(self.criteria[condition.text]))
        return entry is not None and entry["since"] >= condition.evaluations


def judge(texts: Sequence[str], names: Sequence[str], sure: bool, better: Any) -> Judge:
    """The judge of a run, which has seen nothing yet.

    Args:
      texts: values of --stop_when.
      names: of the numbers that an evaluation yields.
      sure: whether there can be no others.
      better: of the model module.

    Raises:
      UserError: a condition on what no evaluation yields, or that stalls in no stated direction.
    """
    found = conditions.parse(texts)
    stated = better if isinstance(better, Mapping) else {}
    for condition in found:
        if sure:
            _check(condition, dict.fromkeys(names, 0.0))
    criteria = {c.text: c.criterion(stated) for c in found if not c.compare}
    return Judge(found, criteria)


def _check(condition: Condition, numbers: Mapping[str, float]) -> None:
    if condition.name not in numbers or condition.name == "examples":
        raise UserError(
            f"--stop_when={condition.text}: no evaluation yields {condition.name}. "
            f"{near(condition.name, [n for n in numbers if n != 'examples'])}"
        )
