r"""Regular expressions as users write them: compiled, and never matched for ever.

Python's matcher tries one way after another, of which `(a+)+b` has 2**n on a name of n letters, and nothing
can stop it from within. A pattern with too many ways is therefore tried on the names in a process of its own
first, which may use so many seconds of processor time, whatever else the machine does. Most have few ways.
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterable

from trainer.errors import UserError

SECONDS = 1  # of processor time in which all names must be matched
_WAYS = 1e7  # so many are tried in a fraction of a second

_CHILD = f"""
import json, re, resource, sys, warnings
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, resource.getrlimit(resource.RLIMIT_CPU)[1]))
texts, names = json.load(sys.stdin)
for index, text in enumerate(texts):
    print(index, flush=True)
    for name in names:
        re.fullmatch(text, name)
print("done")
"""


def compiled(text: str, flag: str) -> re.Pattern[str]:
    """The pattern `text` of the flag `flag`, as its user wrote that with its value.

    Raises:
      UserError: it is no regular expression.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of brackets that may come to mean more
            return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{flag}: the pattern {text!r} is not a regular expression: {error}.") from None


def check_bounded(patterns: Iterable[tuple[str, re.Pattern[str]]], names: Collection[str]) -> None:
    """Refuses a pattern that would be matched for ever on one of `names`; to be called before it is.

    Args:
      patterns: each with its flag, for the message.
      names: all that they are to be matched with.

    Raises:
      UserError: names the first such flag and its pattern.
    """
    longest = max(map(len, names), default=0)
    many = [(flag, pattern) for flag, pattern in patterns if not few_ways(pattern.pattern, longest)]
    if not many:
        return
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([[pattern.pattern for _, pattern in many], list(names)]),
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise UserError(f"{many[0][0]}: cannot be tried: no process can be started ({error}).") from error
    *_, last = ["0", *tried.stdout.split()]
    if last != "done":
        flag, pattern = many[int(last)]
        raise UserError(
            f"{flag}: the pattern {pattern.pattern!r} takes more than {SECONDS} s on {len(names)} names of "
            f"up to {longest} letters: it has too many ways. Write no repeat of a repeat, such as (a+)+."
        )


def few_ways(text: str, length: int = 200) -> bool:
    """Whether the pattern can be matched with any name of so many letters in a moment."""
    return _ways(text, length) <= _WAYS


def _ways(text: str, length: int) -> float:
    """At least as many ways as the pattern has of matching a name; it may count a literal sign as more.

    A repeat has as many as the name has letters, an alternative two, a repeat of a group no bound.
    """
    if re.search(r"\)[*+{]", text):
        return float("inf")
    repeats, choices = len(re.findall(r"[*+{]", text)), len(re.findall(r"[|?]", text))
    return float(max(length, 2)) ** min(repeats, 100) * 2.0 ** min(choices, 100)
