"""`--layer_decay=0.75`, `--layer_decay='0.75 by=blocks/(\\d+)/.*'`: smaller rates for deeper layers."""

import re
from dataclasses import dataclass

from trainer.errors import UserError
from trainer.flags.calls import split_columns
from trainer.flags.durations import NUMBER
from trainer.flags.patterns import compiled


@dataclass(frozen=True)
class LayerDecay:
    """Each variable's rate is its group's times `factor` to the power of the variable's depth.

    Attributes:
      factor: above 0 and at most 1; 1 changes nothing.
      by: of whole names of variables; what it captures tells the levels apart. None counts the blocks.
      text: as the flag has it.
    """

    factor: float = 1.0
    by: re.Pattern[str] | None = None
    text: str = ""


def parse(text: str) -> LayerDecay:
    """What the flag says; empty is 1, no decay.

    Raises:
      UserError: not `FACTOR` or `FACTOR by=REGEX`, or one that has no effect.
    """
    if not text.strip():
        return LayerDecay()
    flag = f"--layer_decay={text}"
    number, *rest = split_columns(text, flag)
    factor = float(number) if re.fullmatch(NUMBER, number, re.ASCII) else float("nan")
    if not 0 < factor <= 1:
        raise UserError(f"{flag}: must be a number above 0 and at most 1, such as 0.75.")
    if not rest:
        return LayerDecay(factor, None, text)
    if len(rest) > 1 or not rest[0].startswith("by="):
        raise UserError(f"{flag}: write FACTOR or FACTOR by=REGEX, such as '0.75 by=blocks/(\\d+)/.*'.")
    if factor == 1:
        raise UserError(f"{flag}: by= has no effect on a factor of 1. Give a smaller one, or no by=.")
    by = compiled(rest[0].removeprefix("by="), flag)
    if not by.groups:
        raise UserError(
            f"{flag}: by= captures nothing. Put what tells levels apart into brackets: 'blocks/(\\d+)/.*'."
        )
    return LayerDecay(factor, by, text)
