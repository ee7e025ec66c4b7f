r"""Initial values from any source of weights: match, check everything, then hand over the arrays.

    rules = init_rules.parse(...)                     syntax of the `--init_*` flags
    matched = match(variables, source, rules)         which weight goes where; reads nothing
    arrays = load(matched)                            reads and checks; one error lists all problems
    receipt.assign(strategy, matched, arrays)         assigns, reads back, compares

A variable (each of its names, where it is shared) is looked for under what the first fitting `--init_rename`
makes of its name, else under its own names. Strict both ways: a variable of the model is restored or
excluded by a rule; a weight of the source is used or excluded. `--init_skip` excludes on either side, and so
does `--init_only`: of the source, what is not used and does not itself bear a name that `--init_only` asks
for is out of play. Optimizer state, counters and random state are never taken and never missed.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.errors import UserError, near
from trainer.flags.patterns import check_bounded
from trainer.model.names import ModelVariable
from trainer.readers import Source
from trainer.readers.source import np_dtype
from trainer.restore.rules import Adapt, Rules

_HINTS = 20  # missing names that get a search for near ones; it is slow on thousands


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
    """All variables of the model with what they start from.

    Attributes:
      problems: what is wrong, a line each.
      unfit: names of the variables whose weight is there and has a wrong shape or dtype.
    """

    source: Source
    rules: Rules
    entries: tuple[Entry, ...]
    problems: tuple[str, ...]
    unfit: frozenset[str]

    def check(self) -> None:
        """Raises UserError with all problems; for those who do not go on to `load`."""
        _raise(self.source, self.problems)

    def starts(self) -> dict[str, str]:
        """`{variable: where its start value comes from}` of the restored ones."""
        return {e.variable.name: f"{e.source} ({self.source.kind})" for e in self.entries if e.source}


def match(variables: Sequence[ModelVariable], source: Source, rules: Rules) -> Matched:
    """Which weight each variable starts from. Reads no weights; what does not fit is in `problems`.

    Raises:
      UserError: a pattern takes too long to match.
    """
    check_bounded(rules.patterns(), [*(name for v in variables for name in _names(v)), *source.specs])
    decided = [_decide(v, source, rules) for v in variables]
    unfit = {
        entry.variable.name: lines
        for entry in decided
        if entry.source in source.specs and (lines := list(_unfit(entry, source, rules)))
    }
    problems = [
        *_missing(decided, source),
        *_extra(decided, source, rules),
        *(line for lines in unfit.values() for line in lines),
        *_idle(variables, decided, source, rules),
    ]
    return Matched(source, rules, tuple(decided), tuple(problems), frozenset(unfit))


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
            name = entry.variable.name
            try:
                array = _finite(entry, matched.source)
                if name not in matched.unfit:
                    arrays[name] = _fitted(entry, array)
            except ValueError as error:
                problems.append(f" ! {name}: {error}")
    _raise(matched.source, problems)
    return arrays


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
    gone = [e for e in entries if e.source is not None and e.source not in source.specs]
    for index, entry in enumerate(gone):
        assert entry.source is not None
        asked = "" if entry.source == entry.variable.name else f" (as {entry.source}: {entry.rule})"
        close = difflib.get_close_matches(entry.source, source.specs, 3, 0.5) if index < _HINTS else []
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        yield f" - {entry.variable.name}{asked}: not in the source.{hint}"


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
        # Zeros in place of the weights: shapes are judged without reading anything.
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
    """Rules that do nothing, each with its reason; and rules that together leave nothing to do."""
    if not any(entry.source for entry in entries):
        yield " ! the --init_* rules leave every variable of the model alone: nothing would be restored."
    names = [name for v in variables if not v.random for name in _names(v)]
    for only in rules.only:
        if not any(only.fullmatch(name) for name in names):
            yield f" ! --init_only={only.pattern}: matches no variable. {near(only.pattern, names)}"
    for skip in rules.skip:
        if not any(skip.fullmatch(name) for name in (*names, *source.specs)):
            hint = near(skip.pattern, names)
            yield f" ! --init_skip={skip.pattern}: matches nothing on either side. {hint}"
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


def _finite(entry: Entry, source: Source) -> np.ndarray:
    """The stored array; ValueError where it is damaged or not finite."""
    assert entry.source is not None
    array = source.read(entry.source)
    if bad := _not_finite(array):
        raise ValueError(f"{bad} of {array.size} values in the source are not finite ({entry.source}).")
    return array


def _fitted(entry: Entry, array: np.ndarray) -> np.ndarray:
    """The array as the variable takes it; ValueError where it cannot."""
    variable = entry.variable
    if entry.adapt:
        array = entry.adapt.apply(array, variable.value.numpy())
    wanted = np_dtype(variable.dtype.name)
    if array.dtype != wanted:
        with np.errstate(over="ignore"):
            array = array.astype(wanted)
        if bad := _not_finite(array):
            raise ValueError(f"{bad} values are too large for {variable.dtype.name}.")
    return np.ascontiguousarray(array).reshape(variable.shape)


def _not_finite(array: np.ndarray) -> int:
    # ml_dtypes' floats have kind V or f; isfinite knows them all.
    numeric = array.dtype.kind in "fcV"
    return int(array.size - np.count_nonzero(np.isfinite(array))) if numeric else 0


def _text(shape: Sequence[int], dtype: str) -> str:
    return f"{dtype}{list(shape)}"


def _raise(source: Source, problems: Sequence[str]) -> None:
    if problems:
        lines = "\n".join(problems)
        raise UserError(
            f"{source.flag}={source.path} ({source.kind}) does not fit the model; nothing was assigned. "
            f"--mode=inspect proposes rules. ( - the model's, + the source's, ! wrong)\n{lines}"
        )
