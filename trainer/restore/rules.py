r"""The `--init_*` rules: which variables are restored, from which names, and how they are made to fit.

Patterns are regular expressions, `re.fullmatch` on names; of several renames or adaptations the first that
fits counts. `\1` in a rename's right side is the first group of its left side.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import UserError, near
from trainer.flags.calls import check_call, parse_call, split_columns
from trainer.flags.config import Config
from trainer.flags.patterns import check_bounded, compiled
from trainer.restore import adapt as methods

_ARROW = re.compile(r"\s+->\s+")


@dataclass(frozen=True)
class Rename:
    """`--init_rename`: what a model name becomes in the source."""

    pattern: re.Pattern[str]
    replacement: str
    text: str


@dataclass(frozen=True)
class Adapt:
    """`--init_adapt`: how a stored array is made to fit."""

    pattern: re.Pattern[str]
    apply: methods.Adapter
    text: str
    method: str


@dataclass(frozen=True)
class Rules:
    """The `--init_*` flags, parsed. `cast` lets a value change its float width."""

    only: tuple[re.Pattern[str], ...] = ()
    skip: tuple[re.Pattern[str], ...] = ()
    rename: tuple[Rename, ...] = ()
    cast: bool = False
    adapt: tuple[Adapt, ...] = ()

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
    return parse(config.init_only, config.init_skip, config.init_rename, config.init_cast, config.init_adapt)


def parse(
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    rename: Sequence[str] = (),
    cast: bool = False,
    adapt: Sequence[str] = (),
) -> Rules:
    """Rules from the texts of the flags.

    Raises:
      UserError: a pattern, a replacement or a call that cannot be read; names the flag.
    """
    return Rules(
        tuple(compiled(text, f"--init_only={text}") for text in only),
        tuple(compiled(text, f"--init_skip={text}") for text in skip),
        tuple(_rename(text) for text in rename),
        cast,
        tuple(_adapt(text) for text in adapt),
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
    if len(columns) != 2:
        raise UserError(f"{flag}: write PATTERN METHOD(...), such as conv1/kernel sum_channels().")
    call = parse_call(columns[1], flag)
    if call.name not in methods.METHODS:
        raise UserError(f"{flag}: there is no method {call.name}. {near(call.name, methods.METHODS)}")
    method = methods.METHODS[call.name]
    try:
        made = method(**check_call(call, method, "method", flag))
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{flag}: {error}.") from error
    return Adapt(compiled(columns[0], flag), made, flag, columns[1])
