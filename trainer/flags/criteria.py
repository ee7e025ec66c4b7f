"""Which of two evaluations is the better one: the one answer for all that compares them.

A name does not tell whether less is better (`rmse`, `brier`, `fpr` are, `r2` and `auc` are not), so it is
stated, by the flag or by the model module, and never guessed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import UserError, near

DIRECTIONS = ("min", "max")
KNOWN = {"loss": "min", "accuracy": "max"}


@dataclass(frozen=True)
class Criterion:
    """A metric and which end of it is the good one; as text `rmse:min`.

    Attributes:
      metric: its name.
      direction: `min` or `max`.
    """

    metric: str
    direction: str

    def better(self, value: float, than: float) -> bool:
        """Whether `value` is the better one of two different numbers; NaN never is."""
        return value < than if self.direction == "min" else value > than

    def __str__(self) -> str:
        """As the flag has it."""
        return f"{self.metric}:{self.direction}"


def split(text: str, flag: str = "--keep_best") -> tuple[str, str]:
    """(metric, direction) of `rmse:min`; the direction is empty where the text has none.

    Raises:
      UserError: what follows the last colon is no direction, or nothing stands before it.
    """
    metric, colon, direction = text.rpartition(":")
    if not colon:
        return text, ""
    if direction not in DIRECTIONS or not metric:
        raise UserError(f"{flag}={text}: write METRIC:min or METRIC:max, such as {flag}=rmse:min.")
    return metric, direction


def criterion(text: str, stated: Mapping[str, str] | None = None, flag: str = "--keep_best") -> Criterion:
    """What `text` asks for, its direction from the text, else from `stated`, else as of loss and accuracy.

    Args:
      text: `METRIC` or `METRIC:min` or `METRIC:max`.
      stated: `better` of the model module.
      flag: that gave the text, for messages.

    Raises:
      UserError: nothing states the direction, or two do and differ; with the words to write.

    Example:
      >>> str(criterion("accuracy")), str(criterion("rmse", {"rmse": "min"})), str(criterion("r2:max"))
      ('accuracy:max', 'rmse:min', 'r2:max')
    """
    metric, written = split(text, flag)
    module = (stated or {}).get(metric, "")
    if written and module and written != module:
        raise UserError(
            f"{flag}={text}: the model module says better = {{{metric!r}: {module!r}}}. Write "
            f"{flag}={metric}:{module}, or change the module."
        )
    direction = written or module or KNOWN.get(metric, "")
    if not direction:
        raise UserError(
            f"{flag}={text}: a name does not tell whether less of it is better. Write {flag}={metric}:min or "
            f"{flag}={metric}:max, or state it in the model module: better = {{{metric!r}: 'min'}}."
        )
    return Criterion(metric, direction)


def check_stated(better: Any, metrics: Iterable[str], flag: str) -> None:
    """Refuses a `better` of a model module that is none of `{metric: "min" or "max"}`.

    Args:
      better: of the module; None where it has none.
      metrics: all that an evaluation yields.
      flag: `--model=...`, for the message.
    """
    if better is None:
        return
    if not isinstance(better, Mapping):
        raise UserError(f"{flag}: its better is {better!r}. Write better = {{'rmse': 'min'}}.")
    names = list(metrics)
    for metric, direction in better.items():
        if metric not in names:
            raise UserError(f"{flag}: its better names {metric!r}, no metric. {near(str(metric), names)}")
        if direction not in DIRECTIONS:
            raise UserError(f"{flag}: its better says {metric!r}: {direction!r}. Write 'min' or 'max'.")
