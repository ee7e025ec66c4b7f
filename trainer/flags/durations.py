"""Lengths of training as users write them, `500steps`, `3epochs`, `20%`, and what turns them into steps."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from trainer.errors import fault

NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
MOST = 10**12  # steps; a year of the fastest loop has fewer
_DURATION = re.compile(rf"({NUMBER})(steps?|epochs?|%)?")


@dataclass(frozen=True, repr=False)
class Duration:
    """A length of training: `value` in `unit`, which is "steps", "epochs" or "%" (of a whole)."""

    value: float
    unit: str

    def __repr__(self) -> str:
        """As a user writes it; `parse_duration` reads it back."""
        number = repr(int(self.value)) if self.value == int(self.value) else repr(self.value)
        return number + (self.unit.removesuffix("s") if number == "1" else self.unit)


@dataclass(frozen=True)
class Clock:
    """What turns durations into steps.

    `examples` in an epoch, examples in a global `batch`, `total` steps of what a `%` is a share
    of. None is unknown, and refused when it is needed.
    """

    examples: int | None
    batch: int
    total: int | None

    def steps(self, duration: Duration, flag: str = "") -> int:
        """Whole steps: epochs are ceil(n * examples / batch), shares rounded (halves up)."""
        steps = self._steps(duration, flag)
        if steps > MOST:
            raise fault(flag, duration, f"is {steps:.3g} steps. No run can have more than {MOST:.0e}.")
        return steps

    def _steps(self, duration: Duration, flag: str) -> int:
        # repr, so that 0.1 is a tenth and not the binary fraction just above it.
        value = Fraction(repr(duration.value))
        if duration.unit == "epochs":
            if self.examples is None:
                raise fault(flag, duration, "the number of examples is not known; give steps.")
            return math.ceil(value * self.examples / self.batch)
        if duration.unit == "%":
            if self.total is None:
                raise fault(flag, duration, "there is no length to take a share of; give steps.")
            return math.floor(value * self.total / 100 + Fraction(1, 2))
        return int(value)


def parse_duration(text: str, flag: str) -> Duration:
    """Read `500`, `500steps`, `3epochs`, `1epoch`, `2.5epochs` or `20%`."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise fault(flag, text, "not a length; write 500, 500steps, 3epochs, 2.5epochs or 20%.")
    return duration_of(match[1], match[2] or "steps", text, flag)


def duration_of(number: str, unit: str, text: str, flag: str) -> Duration:
    """The duration `number` `unit`, its unit in the plural; refused if it is not a real length."""
    value = float(number)
    unit = unit if unit == "%" else unit.removesuffix("s") + "s"
    if not math.isfinite(value):
        raise fault(flag, text, "not a finite length.")
    if value > MOST:
        raise fault(flag, text, f"longer than any run can be. Give at most {MOST:.0e}.")
    if unit == "steps" and value != int(value):
        raise fault(flag, text, "a step is never divided; give whole steps, or epochs.")
    if unit == "%" and value > 100:
        raise fault(flag, text, "a share is at most 100%; give steps or epochs for more.")
    return Duration(value, unit)
