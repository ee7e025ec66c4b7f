"""When a run ends before its last step: conditions on its evaluations, as `--stop_when` has them."""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from trainer.errors import UserError
from trainer.flags.criteria import Criterion, criterion
from trainer.flags.durations import NUMBER

_COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_THRESHOLD = re.compile(rf"(\S+?)\s*(>=|<=|>|<)\s*([+-]?{NUMBER})(%?)")
_STALL = re.compile(r"(\S+)\s+stalls\s+(\d+)\s+evaluations?")


@dataclass(frozen=True)
class Condition:
    """A metric that passes a threshold, or has not been better for some evaluations.

    Attributes:
      text: as the flag has it.
      metric: its name; with a direction, `loss:min`, where it stalls.
      compare: `>=`, `<=`, `>` or `<`; empty where it stalls.
      threshold: what it is compared with.
      evaluations: how many in a row without a better one.
    """

    text: str
    metric: str
    compare: str = ""
    threshold: float = 0.0
    evaluations: int = 0

    @property
    def name(self) -> str:
        """The metric without its direction."""
        return self.metric if self.compare else self.metric.rpartition(":")[0] or self.metric

    def reached(self, value: float) -> bool:
        """Whether the metric has passed the threshold; NaN never has."""
        return _COMPARED[self.compare](value, self.threshold)

    def criterion(self, stated: Mapping[str, str] | None) -> Criterion:
        """By what a stalling metric is better.

        Raises:
          UserError: nothing states the direction.
        """
        return criterion(self.metric, stated, f"--stop_when={self.text}: by")


def parse(texts: Iterable[str]) -> tuple[Condition, ...]:
    """The conditions, any of which ends a run.

    Raises:
      UserError: one that cannot be read.

    Example:
      >>> [c.name for c in parse(["accuracy >= 0.992", "loss:min stalls 3 evaluations"])]
      ['accuracy', 'loss']
    """
    return tuple(map(_parsed, texts))


def _parsed(text: str) -> Condition:
    if match := _THRESHOLD.fullmatch(text.strip()):
        value = float(match[3]) / (100 if match[4] else 1)
        if math.isfinite(value):
            return Condition(text, match[1], match[2], value)
    if (match := _STALL.fullmatch(text.strip())) and 0 < int(match[2][:9]) < 10**8:
        condition = Condition(text, match[1], evaluations=int(match[2]))
        if condition.name == match[1] or match[1].endswith((":min", ":max")):
            return condition
    raise UserError(
        f"--stop_when={text}: not a condition. Write METRIC >= NUMBER (or <=, >, <), such as "
        "'accuracy >= 0.992', or METRIC:min stalls N evaluations, such as 'loss:min stalls 3 evaluations'."
    )
