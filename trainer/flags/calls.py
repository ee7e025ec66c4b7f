"""What users write in flags, read without running any of it: calls, durations, columns.

`cosine(1e-3, warmup=5%)` becomes a `Call` whose arguments are Python literals and `Duration`s. The
text is parsed by `ast` alone; nothing is evaluated or imported. In every function here `flag` is
the flag as its user writes it, with or without its value (`--group`), for the messages.
"""

import ast
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from trainer.errors import UserError, near

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_DURATION = re.compile(rf"({_NUMBER})(steps?|epochs?|%)?")
# A string literal (left as it is), or a duration that stands by itself.
_STRING_OR_DURATION = re.compile(
    r"('''|\"\"\").*?\1"
    r"|'(?:\\.|[^'\\])*'"
    r'|"(?:\\.|[^"\\])*"'
    rf"|(?<![\w.])(?P<number>{_NUMBER})(?P<unit>steps?|epochs?|%)(?!\w)",
    re.DOTALL,
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


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
        # repr, so that 0.1 is a tenth and not the binary fraction just above it.
        value = Fraction(repr(duration.value))
        if duration.unit == "epochs":
            if self.examples is None:
                raise _fault(flag, duration, "the number of examples is not known; give steps.")
            return math.ceil(value * self.examples / self.batch)
        if duration.unit == "%":
            if self.total is None:
                raise _fault(flag, duration, "there is no length to take a share of; give steps.")
            return math.floor(value * self.total / 100 + Fraction(1, 2))
        return int(value)


@dataclass(frozen=True)
class Call:
    """`name(*args, **kwargs)` as read from `text`; arguments are literals and durations."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    text: str = ""


def parse_duration(text: str, flag: str) -> Duration:
    """Read `500`, `500steps`, `3epochs`, `1epoch`, `2.5epochs` or `20%`."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise _fault(flag, text, "not a length; write 500, 500steps, 3epochs, 2.5epochs or 20%.")
    return _duration(match[1], match[2] or "steps", text, flag)


def parse_call(text: str, flag: str) -> Call:
    """Read `name`, `name(...)` or `package.module.name(...)`; anything else is a UserError."""
    text = " ".join(text.split("\n")).strip()
    source, durations = _blank_durations(text, flag)
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        why = getattr(error, "msg", None) or "too deep"
        raise _fault(flag, text, f"not readable ({why}); write name(argument=value).") from None
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    name = _dotted(call.func)
    if name is None:
        raise _fault(flag, text, "neither a name nor a call; write name(argument=value).")
    for node in ast.walk(call):
        if isinstance(node, ast.Constant) and node.col_offset in durations:
            node.value = durations[node.col_offset]  # type: ignore[assignment]
    args = tuple(_literal(node, source, text, flag) for node in call.args)
    kwargs: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in kwargs:
            what = f"{keyword.arg} is given twice" if keyword.arg else "** is not read here"
            raise _fault(flag, text, f"{what}; give each argument once, by its name.")
        kwargs[keyword.arg] = _literal(keyword.value, source, text, flag)
    return Call(name, args, kwargs, text)


def check_call(
    call: Call, function: Callable[..., Any] | inspect.Signature, what: str, flag: str
) -> dict[str, Any]:
    """The call's arguments by the names that `function` gives them; defaults are not filled in.

    A misspelt, missing, surplus or doubled argument is a UserError with the signature. `what` says
    what the function is: "schedule", "optimizer", "model".
    """
    signature = function if isinstance(function, inspect.Signature) else inspect.signature(function)
    takes = f"The {what} is {signature_text(call.name, signature)}."
    by_name = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL,)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in by_name)
    by_name = [p for p in by_name if p.kind is not p.VAR_KEYWORD]
    places = [p.name for p in by_name if p.kind is not p.KEYWORD_ONLY]
    if len(call.args) > len(places):
        count = f"at most {len(places)}" if places else "no"
        raise _fault(flag, call.text, f"{count} arguments go without a name. {takes}")
    bound = dict(zip(places, call.args, strict=False))
    names = [p.name for p in by_name]
    for name, value in call.kwargs.items():
        if name in bound:
            raise _fault(flag, call.text, f"{name} is given twice. {takes}")
        if name not in names and not open_ended:
            hint = near(name, names) if names else "It takes none."
            raise _fault(flag, call.text, f"there is no argument {name}. {hint} {takes}")
        bound[name] = value
    missing = [p.name for p in by_name if p.default is p.empty and p.name not in bound]
    if missing:
        raise _fault(flag, call.text, f"{' and '.join(missing)} must be given. {takes}")
    return bound


def signature_text(name: str, signature: inspect.Signature) -> str:
    """`name(peak, warmup=0)`: the signature without annotations."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return name + str(inspect.Signature(bare))


def split_columns(text: str, flag: str) -> list[str]:
    r"""Columns of `text`, split at blanks outside brackets and quotes; `\(` is no bracket."""
    columns: list[str] = []
    closing: list[str] = []  # the brackets or the quote that are open, innermost last
    escaped = inside = False
    for character in text:
        quoted = bool(closing) and closing[-1] in "'\""
        if character.isspace() and not closing:
            inside = escaped = False
            continue
        columns = columns if inside else [*columns, ""]
        columns[-1] += character
        inside = True
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif closing and character == closing[-1]:
            closing.pop()
        elif not quoted and character in "([{'\"":
            closing.append(_CLOSING.get(character, character))
        elif not quoted and character in ")]}":
            raise _fault(flag, text, rf"a {character} too many (a literal one is \{character}).")
    if closing:
        raise _fault(flag, text, f"the {closing[-1]} that closes it is missing.")
    return columns


def _fault(flag: str, value: object, why: str) -> UserError:
    """One message: the flag, the value, what is wrong and what to do."""
    where = flag if flag.endswith(f"={value}") else f"{flag}: {value}" if flag else str(value)
    return UserError(f"{where}: {why}")


def _duration(number: str, unit: str, text: str, flag: str) -> Duration:
    """The duration `number` `unit`, its unit in the plural; refused if it is not a real length."""
    value = float(number)
    unit = unit if unit == "%" else unit.removesuffix("s") + "s"
    if not math.isfinite(value):
        raise _fault(flag, text, "not a finite length.")
    if unit == "steps" and value != int(value):
        raise _fault(flag, text, "a step is never divided; give whole steps, or epochs.")
    if unit == "%" and value > 100:
        raise _fault(flag, text, "a share is at most 100%; give steps or epochs for more.")
    return Duration(value, unit)


def _blank_durations(text: str, flag: str) -> tuple[str, dict[int, Duration]]:
    """`text` with a 0 and blanks for each duration, and the durations by their offset in bytes.

    The offsets are those that `ast` reports, so no stand-in name is needed that users could write.
    """
    durations: dict[int, Duration] = {}

    def blank(match: re.Match[str]) -> str:
        if match["unit"] is None:
            return match[0]
        offset = len(text[: match.start()].encode())
        durations[offset] = _duration(match["number"], match["unit"], text, flag)
        return "0".ljust(len(match[0]))

    return _STRING_OR_DURATION.sub(blank, text), durations


def _dotted(node: ast.expr) -> str | None:
    """`a.b.c` of a name or attribute; None of anything else."""
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return owner and f"{owner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def _literal(node: ast.expr, source: str, text: str, flag: str) -> Any:
    """The value of a literal; names, operators and calls are refused."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        written = ast.get_source_segment(source, node)
        hint = f"; in quotes, '{written}', it is one" if isinstance(node, ast.Name) else ""
        raise _fault(flag, text, f"{written} is not a literal value{hint}.") from None
