"""The one kind of error that is the user's to mend, and how near names are found for its message."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A flag, file or model module that cannot be used as given.

    The message names the flag, its value and the next step; `run.py` prints it and exits 1, no traceback.

    Example:
      >>> import trainer
      >>> try:
      ...     trainer.Run(batch_size=0)
      ... except trainer.UserError as error:
      ...     print(error)
      --batch_size=0: must lie from 1 to 2147483648.
    """


def fault(flag: str, value: object, why: str) -> UserError:
    """One message: the flag, with or without its value, the value, what is wrong and what to do."""
    where = flag if flag.endswith(f"={value}") else f"{flag}: {value}" if flag else str(value)
    return UserError(f"{where}: {why}")


def listing(names: Iterable[str], most: int = 12) -> str:
    """`a, b, c and 9 more`, in the given order; `nothing` when empty."""
    names = list(names)
    if not names:
        return "nothing"
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def near(word: str, names: Iterable[str]) -> str:
    """A sentence that offers the names most like `word`, or all names when none is like it."""
    names = sorted(set(names))
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"There is: {listing(names)}."
