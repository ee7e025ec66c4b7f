r"""Initial values from any source of weights: match, check everything, then assign, then prove it.

    rules = parse(config...)                          syntax of the `--init_*` flags
    matched = match(variables, source, rules)         which weight goes where; reads nothing
    arrays = load(matched)                            reads and checks; one error lists all problems
    receipt = restore(strategy, matched, arrays)      assigns, reads back, compares

Rules are regular expressions, `re.fullmatch` on the model's names (a shared variable answers to each of
its names). `--init_skip` is also matched against the source's names. A variable is looked for under
what the first fitting `--init_rename` makes of its name, else under its own names.

Strict both ways: a variable of the model is restored or excluded by a rule; a weight of the source is
used or excluded. `--init_only` excludes on both sides: of the source, what is not used and does not itself
bear a name that `--init_only` asks for is out of play. Optimizer state, counters and random state are
never taken on either side, and never missed.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import adapt
from trainer.calls import check_call, parse_call, split_columns
from trainer.errors import UserError, near
from trainer.readers import Source
from trainer.readers.source import np_dtype
from trainer.variables import ModelVariable

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
    apply: adapt.Adapter
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


@dataclass(frozen=True)
class Entry:
    """What becomes of one variable of the model.

    Attributes:
      variable: of the model.
      source: the weight's name in the source; None where the variable is left alone.
      rule: the flag that decided, or why without one.
      adapt: how the array is made to fit, None for as it is.
    """

    variable: ModelVariable
    source: str | None
    rule: str
    adapt: Adapt | None = None


@dataclass(frozen=True)
class Matched:
    """All variables of the model with what they start from, and what is wrong, a line each."""

    source: Source
    rules: Rules
    entries: tuple[Entry, ...]
    problems: tuple[str, ...]

    def check(self) -> None:
        """Raises UserError with all problems; for those who do not go on to `load`."""
        _raise(self.source, self.problems)

    def starts(self) -> dict[str, str]:
        """`{variable: where its start value comes from}` of the restored ones."""
        return {e.variable.name: f"{e.source} ({self.source.kind})" for e in self.entries if e.source}


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
        tuple(_pattern(text, "--init_only") for text in only),
        tuple(_pattern(text, "--init_skip") for text in skip),
        tuple(_rename(text) for text in rename),
        cast,
        tuple(_adapt(text) for text in adapt),
    )


def match(variables: Sequence[ModelVariable], source: Source, rules: Rules) -> Matched:
    """Which weight each variable starts from. Reads no weights and raises nothing: see `problems`."""
    decided = [_decide(v, source, rules) for v in variables]
    problems = [
        *_missing(decided, source),
        *_extra(decided, source, rules),
        *(line for entry in decided if entry.source in source.specs for line in _unfit(entry, source, rules)),
        *_idle(variables, decided, source, rules),
    ]
    return Matched(source, rules, tuple(decided), tuple(problems))


def load(matched: Matched) -> dict[str, np.ndarray]:
    """`{variable name: array}`, shaped and typed as the variable.

    Raises:
      UserError: every problem of the match and of the values (not finite, damaged, overflow of a
        cast) in one message. Nothing has been assigned.
    """
    problems = list(matched.problems)
    arrays: dict[str, np.ndarray] = {}
    for entry in matched.entries:
        if entry.source in matched.source.specs:
            try:
                arrays[entry.variable.name] = _value(entry, matched.source)
            except ValueError as error:
                problems.append(f" ! {entry.variable.name}: {error}")
    _raise(matched.source, problems)
    return arrays


def restore(
    strategy: tf.distribute.Strategy, matched: Matched, arrays: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Assigns on every replica and reads back; the receipt, a dictionary per variable of the model.

    Keys: `name`, `restored`, `source`, `rule`, `adapt`, `cast`, `shape`, `dtype`, `replicas`, and SHA-256
    checksums of the bytes: `source_sha256` (as stored), `before`, `after` (of every replica). Where
    nothing is adapted or cast, `after` is `source_sha256`. What is left alone has `before` = `after`.

    Raises:
      RuntimeError: a live value is not what was assigned, or changed without being asked to.
    """
    before = {e.variable.name: _copies(strategy, e.variable) for e in matched.entries}
    for entry in matched.entries:
        if entry.source is not None:
            for copy in strategy.experimental_local_results(entry.variable.value):
                copy.assign(arrays[entry.variable.name])
    return [_receipt(strategy, matched, entry, before, arrays) for entry in matched.entries]


def describe(receipt: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the receipt, for a terminal."""
    columns = ["variable", "shape", "from", "rule", "before", "after"]
    rows = []
    for line in receipt:
        how = [line["rule"], line["adapt"] or "", line["cast"] or ""]
        rows.append(
            [
                line["name"],
                "x".join(map(str, line["shape"])) or "scalar",
                line["source"] or "left alone",
                ", ".join(part for part in how if part),
                line["before"][:8],
                line["after"][:8] if line["restored"] else "unchanged",
            ]
        )
    return columns, rows


# Reading the flags


def _pattern(text: str, flag: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{flag}={text}: not a regular expression: {error}.") from error


def _rename(text: str) -> Rename:
    flag = f"--init_rename={text}"
    halves = _ARROW.split(text.strip())
    if len(halves) != 2 or not all(halves):
        raise UserError(f"{flag}: write MODEL_REGEX -> SOURCE_NAME, with blanks around the arrow.")
    pattern = _pattern(halves[0], "--init_rename")
    try:
        # Whether the replacement can be read does not depend on what was matched.
        re.compile(f"(?:{halves[0]})|").fullmatch("").expand(halves[1])  # type: ignore[union-attr]
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
    if call.name not in adapt.METHODS:
        raise UserError(f"{flag}: there is no method {call.name}. {near(call.name, adapt.METHODS)}")
    method = adapt.METHODS[call.name]
    try:
        made = method(**check_call(call, method, "method", flag))
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{flag}: {error}.") from error
    return Adapt(_pattern(columns[0], "--init_adapt"), made, flag, columns[1])


# Matching


def _names(variable: ModelVariable) -> tuple[str, ...]:
    return (variable.name, *variable.aliases)


def _hit(pattern: re.Pattern[str], variable: ModelVariable) -> re.Match[str] | None:
    return next((m for name in _names(variable) if (m := pattern.fullmatch(name))), None)


def _decide(variable: ModelVariable, source: Source, rules: Rules) -> Entry:
    if variable.random:
        return Entry(variable, None, "random state is never restored")
    for skip in rules.skip:
        if _hit(skip, variable):
            return Entry(variable, None, f"--init_skip={skip.pattern}")
    only = next((o for o in rules.only if _hit(o, variable)), None)
    if rules.only and only is None:
        return Entry(variable, None, "not in --init_only")
    how = next((a for a in rules.adapt if _hit(a.pattern, variable)), None)
    for rename in rules.rename:
        if found := _hit(rename.pattern, variable):
            return Entry(variable, found.expand(rename.replacement), rename.text, how)
    name = next((n for n in _names(variable) if n in source.specs), variable.name)
    return Entry(variable, name, f"--init_only={only.pattern}" if only else "same name", how)


def _missing(entries: Sequence[Entry], source: Source) -> Iterator[str]:
    for entry in entries:
        if entry.source is not None and entry.source not in source.specs:
            asked = "" if entry.source == entry.variable.name else f" (as {entry.source}: {entry.rule})"
            yield f" - {entry.variable.name}{asked}: not in the source. {near(entry.source, source.specs)}"


def _extra(entries: Sequence[Entry], source: Source, rules: Rules) -> Iterator[str]:
    used = {entry.source for entry in entries}
    # A name of the model that is left alone, or started from elsewhere, is answered for.
    model = {name for entry in entries for name in _names(entry.variable)}
    for name, spec in source.specs.items():
        excluded = any(skip.fullmatch(name) for skip in rules.skip)
        if rules.only:
            excluded |= name in model or not any(only.fullmatch(name) for only in rules.only)
        if name not in used and not excluded:
            yield f" + {name} {_text(spec.shape, spec.dtype)}: in the source, and nothing takes it."


def _unfit(entry: Entry, source: Source, rules: Rules) -> Iterator[str]:
    """What is wrong with the shape and dtype of a weight that is there."""
    assert entry.source is not None
    variable, spec = entry.variable, source.specs[entry.source]
    shape = spec.shape
    if entry.adapt:
        # A source of one repeated zero: shapes are judged without reading or allocating anything.
        empty = np.broadcast_to(np.zeros((), np.float32), shape)
        try:
            shape = entry.adapt.apply(empty, np.zeros(variable.shape, np.float32)).shape
        except (ValueError, IndexError) as error:
            yield f" ! {variable.name}: {entry.adapt.text}: {error}."
            return
    here, there = _text(variable.shape, variable.dtype.name), _text(shape, spec.dtype)
    if shape != variable.shape:
        how = f"{entry.adapt.text} makes it" if entry.adapt else "the source has"
        yield f" ! {variable.name}: the model has {here}, {how} {there} ({entry.source}). " + (
            "See --init_adapt, or --init_skip it." if not entry.adapt else ""
        )
    elif spec.dtype != variable.dtype.name:
        both = variable.dtype.is_floating and tf.as_dtype(np_dtype(spec.dtype)).is_floating
        if not both or not rules.cast:
            hint = "--init_cast allows it." if both else "Only a float's width can be changed."
            yield f" ! {variable.name}: the model has {here}, the source {there} ({entry.source}). {hint}"


def _idle(
    variables: Sequence[ModelVariable], entries: Sequence[Entry], source: Source, rules: Rules
) -> Iterator[str]:
    """Rules that do nothing, each with its reason."""
    names = [name for v in variables if not v.random for name in _names(v)]
    for only in rules.only:
        if not any(only.fullmatch(name) for name in names):
            yield f" ! --init_only={only.pattern}: matches no variable. {near(only.pattern, names)}"
    for skip in rules.skip:
        if not any(skip.fullmatch(name) for name in (*names, *source.specs)):
            yield f" ! --init_skip={skip.pattern}: matches nothing on either side. {near(skip.pattern, names)}"
    followed = {entry.rule for entry in entries}
    adapted = {entry.adapt.text for entry in entries if entry.adapt}
    for rule, done in [(r, followed) for r in rules.rename] + [(a, adapted) for a in rules.adapt]:
        if rule.text in done:
            continue
        if any(rule.pattern.fullmatch(name) for name in names):
            why = "all it matches is left alone, or taken by an earlier rule (the first that fits counts)."
        else:
            why = f"matches no variable. {near(rule.pattern.pattern, names)}"
        yield f" ! {rule.text}: {why}"


# Values


def _value(entry: Entry, source: Source) -> np.ndarray:
    """The checked array for a variable; ValueError says what is wrong with it."""
    assert entry.source is not None
    variable = entry.variable
    array = source.read(entry.source)
    bad = _not_finite(array)
    if bad:
        raise ValueError(f"{bad} of {array.size} values in the source are not finite ({entry.source}).")
    if entry.adapt:
        array = entry.adapt.apply(array, _numpy(variable.value))
    if array.shape != variable.shape:
        raise ValueError("its shape does not fit.")
    wanted = np_dtype(variable.dtype.name)
    if array.dtype != wanted and variable.dtype.is_floating:
        with np.errstate(over="ignore"):
            array = array.astype(wanted)
        if _not_finite(array):
            raise ValueError(f"{_not_finite(array)} values are too large for {variable.dtype.name}.")
    return np.ascontiguousarray(array).reshape(variable.shape)


def _not_finite(array: np.ndarray) -> int:
    # ml_dtypes' floats have kind V or f; isfinite knows them all.
    numeric = array.dtype.kind in "fcV"
    return int(array.size - np.count_nonzero(np.isfinite(array))) if numeric else 0


def _receipt(
    strategy: tf.distribute.Strategy,
    matched: Matched,
    entry: Entry,
    before: dict[str, list[str]],
    arrays: dict[str, np.ndarray],
) -> dict[str, Any]:
    name, variable = entry.variable.name, entry.variable
    old, new = before[name], _copies(strategy, variable)
    wanted = old if entry.source is None else [checksum(arrays[name])] * len(new)
    if new != wanted:
        raise RuntimeError(
            f"{name}: the live value is not the one that was "
            f"{'assigned' if entry.source else 'there'}: {listing_of(new)} for {listing_of(wanted)}"
        )
    spec = matched.source.specs[entry.source] if entry.source else None
    cast = f"{spec.dtype} -> {variable.dtype.name}" if spec and spec.dtype != variable.dtype.name else None
    return {
        "name": name,
        "restored": entry.source is not None,
        "source": entry.source,
        "rule": entry.rule,
        "adapt": entry.adapt.method if entry.adapt and entry.source else None,
        "cast": cast,
        "shape": list(variable.shape),
        "dtype": variable.dtype.name,
        "replicas": len(new),
        "source_sha256": checksum(matched.source.read(entry.source)) if entry.source else None,
        "before": old[0],
        "after": new[0],
    }


def checksum(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _copies(strategy: tf.distribute.Strategy, variable: ModelVariable) -> list[str]:
    """The checksum of the variable's value on each replica of this process."""
    return [checksum(_numpy(copy)) for copy in strategy.experimental_local_results(variable.value)]


def _numpy(variable: tf.Variable) -> np.ndarray:
    return variable.numpy()


def _text(shape: Sequence[int], dtype: str) -> str:
    return f"{dtype}{list(shape)}"


def _raise(source: Source, problems: Sequence[str]) -> None:
    if problems:
        lines = "\n".join(problems)
        raise UserError(
            f"{source.flag}={source.path} ({source.kind}) does not fit the model; nothing was assigned. "
            f"--mode=inspect proposes rules. ( - the model's, + the source's, ! wrong)\n{lines}"
        )
