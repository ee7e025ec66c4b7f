"""What users write in flags, read without running any of it: calls and columns.

`cosine(1e-3, warmup=5%)` becomes a `Call` whose arguments are Python literals and `Duration`s. The
text is parsed by `ast` alone; nothing is evaluated or imported. In every function here `flag` is
the flag as its user writes it, with or without its value (`--group`), for the messages.
"""

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trainer.errors import UserError, fault, near
from trainer.flags.durations import NUMBER, Duration, duration_of

# A string literal (left as it is), or a duration that stands by itself.
_STRING_OR_DURATION = re.compile(
    r"('''|\"\"\").*?\1"
    r"|'(?:\\.|[^'\\])*'"
    r'|"(?:\\.|[^"\\])*"'
    rf"|(?<![\w.])(?P<number>{NUMBER})(?P<unit>steps?|epochs?|%)(?!\w)",
    re.DOTALL,
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Call:
    """`name(*args, **kwargs)` as read from `text`; arguments are literals and durations."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    text: str = ""


def parse_call(text: str, flag: str) -> Call:
    """Read `name`, `name(...)` or `package.module.name(...)`; anything else is a UserError."""
    text = " ".join(text.split("\n")).strip()
    source, durations = _blank_durations(text, flag)
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        why = getattr(error, "msg", None) or "too deep"
        raise fault(flag, text, f"not readable ({why}); write name(argument=value).") from None
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    name = _dotted(call.func)
    if name is None:
        raise fault(flag, text, "neither a name nor a call; write name(argument=value).")
    for node in ast.walk(call):
        if isinstance(node, ast.Constant) and node.col_offset in durations:
            node.value = durations[node.col_offset]  # type: ignore[assignment]
        elif isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value.bit_length() > 63:
            raise fault(flag, text, f"a number of {node.value.bit_length():,} bits is too large.")
    args = tuple(_literal(node, source, text, flag) for node in call.args)
    kwargs: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in kwargs:
            what = f"{keyword.arg} is given twice" if keyword.arg else "** is not read here"
            raise fault(flag, text, f"{what}; give each argument once, by its name.")
        kwargs[keyword.arg] = _literal(keyword.value, source, text, flag)
    return Call(name, args, kwargs, text)


def check_call(
    call: Call, function: Callable[..., Any] | inspect.Signature, what: str, flag: str
) -> dict[str, Any]:
    """The call's arguments by the names that `function` gives them; defaults are not filled in.

    A misspelt, missing, surplus or doubled argument is a UserError with the signature. `what` says
    what the function is: "schedule", "optimizer", "model".
    """
    signature = function if isinstance(function, inspect.Signature) else signature_of(function)
    takes = f"The {what} is {signature_text(call.name, signature)}."
    by_name = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL,)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in by_name)
    by_name = [p for p in by_name if p.kind is not p.VAR_KEYWORD]
    places = [p.name for p in by_name if p.kind is not p.KEYWORD_ONLY]
    if len(call.args) > len(places):
        count = f"at most {len(places)}" if places else "no"
        raise fault(flag, call.text, f"{count} arguments go without a name. {takes}")
    bound = dict(zip(places, call.args, strict=False))
    names = [p.name for p in by_name]
    for name, value in call.kwargs.items():
        if name in bound:
            raise fault(flag, call.text, f"{name} is given twice. {takes}")
        if name not in names and not open_ended:
            hint = near(name, names) if names else "It takes none."
            raise fault(flag, call.text, f"there is no argument {name}. {hint} {takes}")
        bound[name] = value
    missing = [p.name for p in by_name if p.default is p.empty and p.name not in bound]
    if missing:
        raise fault(flag, call.text, f"{' and '.join(missing)} must be given. {takes}")
    return bound


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function.

    Raises:
      UserError: it tells none, as some that are written in C do.
    """
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        name = getattr(function, "__qualname__", type(function).__name__)
        raise UserError(f"{name}: tells no signature, so its arguments cannot be checked. Wrap it.") from None


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
            raise fault(flag, text, rf"a {character} too many (a literal one is \{character}).")
    if closing:
        raise fault(flag, text, f"the {closing[-1]} that closes it is missing.")
    return columns


def _blank_durations(text: str, flag: str) -> tuple[str, dict[int, Duration]]:
    """`text` with a 0 and blanks for each duration, and the durations by their offset in bytes.

    The offsets are those that `ast` reports, so no stand-in name is needed that users could write.
    """
    durations: dict[int, Duration] = {}

    def blank(match: re.Match[str]) -> str:
        if match["unit"] is None:
            return match[0]
        offset = len(text[: match.start()].encode())
        durations[offset] = duration_of(match["number"], match["unit"], text, flag)
        return "0".ljust(len(match[0]))

    return _STRING_OR_DURATION.sub(blank, text), durations


def _dotted(node: ast.expr) -> str | None:
    """`a.b.c` of a name or attribute; None of anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names, node = [node.attr, *names], node.value
    return ".".join([node.id, *names]) if isinstance(node, ast.Name) else None


def _literal(node: ast.expr, source: str, text: str, flag: str) -> Any:
    """The value of a literal; names, operators and calls are refused."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        written = ast.get_source_segment(source, node)
        hint = f"; in quotes, '{written}', it is one" if isinstance(node, ast.Name) else ""
        raise fault(flag, text, f"{written} is not a literal value{hint}.") from None
