"""The kinds of argument that schedules take: each checks a value and makes it what a schedule uses.

A kind's function takes a value as written, or with its durations resolved, and returns it as a schedule
uses it, or raises ValueError with what it should have been.
"""

import math
from itertools import pairwise
from typing import Annotated, Any

from trainer.flags.durations import Duration


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError("it must be a finite number, 0 or more")
    return float(value)


def _positive(value: Any) -> float:
    if _rate(value) == 0:
        raise ValueError("it must be above 0")
    return float(value)


def _steps(value: Any) -> int | Duration:
    if isinstance(value, Duration):
        return value
    if _rate(value) != int(value):
        raise ValueError("it must be whole steps, or a duration such as 2epochs or 5%")
    return int(value)


def _period(value: Any) -> int | Duration:
    if _steps(value) == 0:
        raise ValueError("it must be at least 1 step")
    return _steps(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be True or False")
    return value


def _rates(value: Any) -> list[float]:
    if not isinstance(value, list | tuple):
        raise ValueError("it must be a list of learning rates, such as [1e-2, 1e-3]")
    return [_rate(item) for item in value]


def _boundaries(value: Any) -> list[int | Duration]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("it must be a list of steps or durations, such as [2epochs, 50%]")
    steps = [_steps(item) for item in value]
    plain = [item for item in steps if isinstance(item, int)]
    if any(after <= before for before, after in pairwise(plain)):
        raise ValueError("each boundary must be later than the one before")
    return steps


Rate = Annotated[float, _rate]
Rates = Annotated[list[float], _rates]
Positive = Annotated[float, _positive]
Steps = Annotated[int, _steps]
Period = Annotated[int, _period]
Boundaries = Annotated[list[int], _boundaries]
Switch = Annotated[bool, _switch]
