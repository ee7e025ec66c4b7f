"""The one kind of error that is the user's to mend, and how its message is made.

What users bring (a model module, a schedule, a builder) may raise anything, `SystemExit` among it: it
is called by `guarded`, which makes a message of it.
"""

import difflib
import re
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from trainer.text import printable, shortened

T = TypeVar("T")

# Frames that are not the user's own.
_FOREIGN = re.compile(r"site-packages|<frozen|/lib/python3\.\d+/")
_REWRITTEN = "__autograph_generated"


class UserError(ValueError):
    """A flag, file or model module that cannot be used as given.

    The message names the flag, its value and the next step; `run.py` prints it and exits 1, no traceback.
    Control characters in it are spelt out, and what is too long to be read is cut.

    Example:
      >>> import trainer
      >>> try:
      ...     trainer.Run(batch_size=0)
      ... except trainer.UserError as error:
      ...     print(error)
      --batch_size=0: must lie from 1 to 2147483648.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(message)))


def fault(flag: str, value: object, why: str) -> UserError:
    """One message: the flag, with or without its value, the value, what is wrong and what to do."""
    where = flag if flag.endswith(f"={value}") else f"{flag}: {value}" if flag else str(value)
    return UserError(f"{where}: {why}")


def guarded(function: Callable[[], T], what: str) -> T:
    """`function()`, which is the user's own; whatever it raises becomes a message with the line it came from.

    A `KeyboardInterrupt` is the one thing that passes. `sys.exit` does not: a run that was asked for and did
    not happen has not succeeded.

    Raises:
      UserError: `function` raised.
    """
    try:
        return function()
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserError(f"{what} {blame(error)}") from error


def blame(error: BaseException) -> str:
    """`raised KIND at FILE:LINE: what it says of itself`; of `sys.exit`, that it was called."""
    frames: list[Any] = traceback.extract_tb(error.__traceback__)
    kind, reason = type(error).__name__, message_of(error)
    if staged := getattr(error, "ag_error_metadata", None):  # code that AutoGraph has rewritten
        frames = staged.translated_stack[::-1]
        kind, _, reason = staged.cause_message.partition(": ")
        if kind == UserError.__name__:
            raise UserError(reason) from None
        reason = " ".join(reason.split())[:1000]
    own = [f for f in frames if not _FOREIGN.search(f.filename)] or frames
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    if own and _REWRITTEN in own[-1].filename:  # what is no Exception AutoGraph does not trace back
        where = f" in {own[-1].name.removeprefix('tf__')}"
    if isinstance(error, SystemExit):
        status = message_of(error)
        return f"called sys.exit({status}){where}, which ends a program and not a run. Remove the call."
    return f"raised {kind}{where}: {reason}"


def message_of(error: BaseException, lines: bool = False) -> str:
    """What an error says of itself, on one line or as it is; of one that cannot even do that, its kind."""
    try:
        return str(error) if lines else " ".join(str(error).split())[:1000]
    except (Exception, SystemExit):
        return f"a {type(error).__name__} that cannot be shown"


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
