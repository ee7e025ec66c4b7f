r"""The `--init_*` rules: which variables are restored, from which names, and how they are made to fit.

Patterns are regular expressions, `re.fullmatch` on names; of several renames or adaptations the first that
fits counts. `\1` in a rename's right side is the first group of its left side.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.errors import UserError, near
from trainer.flags.calls import Call, check_call, parse_call, split_columns
from trainer.flags.config import Config
from trainer.flags.patterns import check_bounded, compiled
from trainer.restore import adapt as methods

LAYOUTS = ("", "keras", "torch")
_ARROW = re.compile(r"\s+->\s+")


@dataclass(frozen=True)
class Rename:
    """`--init_rename`: what a model name becomes in the source."""

    pattern: re.Pattern[str]
    replacement: str
    text: str


@dataclass(frozen=True)
class Adapt:
    """`--init_adapt`: how stored arrays are made to fit.

    Attributes:
      pattern: of the variables.
      steps: what is done, one after another.
      text: the flag.
      method: the steps as the user wrote them.
      sources: names in the source of the arrays that `first` makes one of; none where there is one array.
    """

    pattern: re.Pattern[str]
    steps: tuple[methods.Adapter, ...]
    text: str
    method: str
    sources: tuple[str, ...] = ()
    first: methods.Combiner | None = None

    def apply(self, array: np.ndarray, initial: np.ndarray) -> np.ndarray:
        """The array for a variable whose initial value is `initial`; ValueError where it cannot be."""
        for step in self.steps:
            array = step(array, initial)
        return array

    def combine(self, arrays: Sequence[np.ndarray], initial: np.ndarray) -> np.ndarray:
        """As `apply`, of several arrays."""
        assert self.first is not None
        return self.apply(self.first(arrays), initial)


@dataclass(frozen=True)
class Rules:
    """The `--init_*` flags, parsed.

    Attributes:
      cast: lets a value change its float width.
      layout: `torch` for a file of PyTorch's, `keras` for one that only looks like it, "" for none said.
    """

    only: tuple[re.Pattern[str], ...] = ()
    skip: tuple[re.Pattern[str], ...] = ()
    rename: tuple[Rename, ...] = ()
    cast: bool = False
    adapt: tuple[Adapt, ...] = ()
    layout: str = ""

    def patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        """All of them, each with the flag that gave it."""
        plain = {"init_only": self.only, "init_skip": self.skip}
        return [
            *((f"--{flag}={p.pattern}", p) for flag, patterns in plain.items() for p in patterns),
            *((rule.text, rule.pattern) for rule in self.rename),
            *((rule.text, rule.pattern) for rule in self.adapt),
        ]


def of(config: Config) -> Rules:
    """The `--init_*` rules of a run.

    Raises:
      UserError: as `parse`.
    """
    return parse(
        config.init_only,
        config.init_skip,
        config.init_rename,
        config.init_cast,
        config.init_adapt,
        config.init_layout,
    )


def parse(
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    rename: Sequence[str] = (),
    cast: bool = False,
    adapt: Sequence[str] = (),
    layout: str = "",
) -> Rules:
    """Rules from the texts of the flags.

    Raises:
      UserError: a pattern, a replacement or a call that cannot be read; names the flag.
    """
    if layout not in LAYOUTS:
        raise UserError(f"--init_layout={layout}: there is no such layout. {near(layout, LAYOUTS[1:])}")
    return Rules(
        tuple(compiled(text, f"--init_only={text}") for text in only),
        tuple(compiled(text, f"--init_skip={text}") for text in skip),
        tuple(_rename(text) for text in rename),
        cast,
        tuple(_adapt(text) for text in adapt),
        layout,
    )


def _rename(text: str) -> Rename:
    flag = f"--init_rename={text}"
    halves = _ARROW.split(text.strip())
    if len(halves) != 2 or not all(halves):
        raise UserError(f"{flag}: write MODEL_REGEX -> SOURCE_NAME, with blanks around the arrow.")
    pattern = compiled(halves[0], flag)
    try:
        # Reads the replacement, whether or not anything matches.
        check_bounded([(flag, pattern)], [""])
        pattern.sub(halves[1], "")
    except (re.error, IndexError) as error:
        raise UserError(
            f"{flag}: {halves[1]} cannot be filled in: {error}. \\1 is the first group of {halves[0]}."
        ) from error
    return Rename(pattern, halves[1], flag)


def _adapt(text: str) -> Adapt:
    flag = f"--init_adapt={text}"
    columns = split_columns(text, flag)
    if len(columns) < 2:
        raise UserError(f"{flag}: write PATTERN METHOD(...), such as conv1/kernel sum_channels().")
    pattern = compiled(columns[0], flag)
    # In names of the source a backslash is that of a group, not of a literal.
    named = columns[1].partition("(")[0] in methods.COMBINERS
    columns[1] = columns[1].replace("\\", "\\\\") if named else columns[1]
    calls = [parse_call(column, flag) for column in columns[1:]]
    sources: tuple[str, ...] = ()
    first = None
    if calls[0].name in methods.COMBINERS:
        sources = _sources(calls[0], pattern, flag)
        first = _step(replace(calls[0], args=()), methods.COMBINERS[calls[0].name], flag)
        calls = calls[1:]
    steps = []
    for call in calls:
        if call.name not in methods.METHODS:
            if call.name in methods.COMBINERS:
                raise UserError(f"{flag}: {call.name} can only come first.")
            every = [*methods.METHODS, *methods.COMBINERS]
            raise UserError(f"{flag}: there is no method {call.name}. {near(call.name, every)}")
        steps.append(_step(call, methods.METHODS[call.name], flag))
    return Adapt(pattern, tuple(steps), flag, " ".join(text.split()[1:]), sources, first)


def _sources(call: Call, pattern: re.Pattern[str], flag: str) -> tuple[str, ...]:
    """The names that `sum` or `concat` are given, which may hold groups of the pattern."""
    if len(call.args) < 2 or not all(isinstance(name, str) for name in call.args):
        raise UserError(f"{flag}: {call.name} takes two or more names of the source, in quotes.")
    for name in call.args:
        try:
            pattern.sub(name, "")
        except (re.error, IndexError) as error:
            raise UserError(f"{flag}: {name} cannot be filled in: {error}.") from error
    return call.args


def _step(call: Call, method: Callable[..., Any], flag: str) -> Any:
    """What a method makes of its arguments."""
    star = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(method).parameters.values())
    args = call.args if star else ()
    try:
        # Arguments of any number have no names to check.
        named = check_call(replace(call, args=()) if star else call, method, "method", flag)
        return method(*args, **named)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{flag}: {error}.") from error
