"""`100:120`: steps from one to another, as `--profile` takes them."""

import re

from trainer.errors import UserError


def span(text: str, flag: str) -> tuple[int, int] | None:
    """(first, last) of `first:last`, steps that are done before and after; None of no text.

    Raises:
      UserError: it is not of that form, or the last is not after the first.

    Example:
      >>> span("100:120", "--profile")
      (100, 120)
    """
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d{1,15})\s*:\s*(\d{1,15})\s*", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"{flag}={text}: not two steps, the first before the last, such as 100:120.")
    return int(match[1]), int(match[2])
