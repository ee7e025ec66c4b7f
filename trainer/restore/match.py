r"""Initial values from any source of weights: match, check everything, then hand over the arrays.

    rules = rules.parse(...)                          syntax of the `--init_*` flags
    matched = match(variables, source, rules, model)  which weight goes where; reads nothing
    arrays = load(matched)                            reads and checks; one error lists all problems
    receipt.assign(strategy, matched, arrays)         assigns, reads back, compares

A variable (each of its names, where it is shared) is looked for under what the first fitting `--init_rename`
makes of its name, else under its own names, or where the source stores positions, where Keras would
take it from. Strict both ways: a variable of the model is restored or excluded by a rule; a weight of the
source is used or excluded. `--init_skip` excludes on either side, and so does `--init_only`: of the source,
what is not used and does not itself bear a name that `--init_only` asks for is out of play. What Keras
leaves over of a file by position is shown and no fault. Optimizer state, counters and random state are never
taken and never missed.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from trainer.errors import UserError, listing, near
from trainer.flags.patterns import check_bounded
from trainer.model.names import ModelVariable
from trainer.readers import WeightsFile
from trainer.readers.source import Spec, np_dtype
from trainer.restore import layouts
from trainer.restore.decide import Decision, Places, decide, names_of, places
from trainer.restore.rules import Rules
from trainer.restore.values import Values, shape_of

_HINTS = 20  # missing names that get a search for near ones; it is slow on thousands
_SHOWN = 30  # lines of one kind in a message; more are counted


@dataclass(frozen=True)
class Matched:
    """All variables of the model with what they start from.

    Attributes:
      problems: what is wrong, a line each.
      unfit: names of the variables whose weight is there and has a wrong shape or dtype.
      leftover: weights of the source that nothing takes and no rule excludes, where that is no fault.
    """

    source: WeightsFile
    rules: Rules
    entries: tuple[Decision, ...]
    problems: tuple[str, ...]
    unfit: frozenset[str]
    leftover: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises UserError with all problems; for those who do not go on to `load`."""
        _raise(self.source, self.problems)

    def starts(self) -> dict[str, str]:
        """`{variable: where its start value comes from}` of the restored ones."""
        return {e.variable.name: f"{e.source} ({self.source.kind})" for e in self.entries if e.source}


def match(
    variables: Sequence[ModelVariable], source: WeightsFile, rules: Rules, model: Any = None
) -> Matched:
    """Which weight each variable starts from. Reads no weights; what does not fit is in `problems`.

    Args:
      variables: of the model, from `trainer.model.names.walk`.
      source: from `open_source`.
      rules: from `rules.parse` or `rules.of`.
      model: whose variables they are; without it a file that stores positions needs a rename for each.

    Raises:
      UserError: a pattern takes too long to match.
    """
    if problem := layouts.unstated(source, rules.layout):
        return Matched(source, rules, (), (problem,), frozenset())
    check_bounded(rules.patterns(), [*(name for v in variables for name in names_of(v)), *source.specs])
    known = places(model, variables, source)
    decided = [decide(v, source, rules, known) for v in variables]
    unfit = {
        entry.variable.name: lines
        for entry in decided
        if _in_source(entry, source) and (lines := list(_unfit(entry, source, rules)))
    }
    unused = _unused(decided, source, rules)
    # Keras leaves over what its walk does not reach; where names decide, that is a fault.
    by_position = known.positional and not rules.rename and not known.refusal
    problems = [
        *layouts.flattened(model, decided, rules.layout),
        *_refused(decided, known),
        *_missing(decided, source, known),
        *(() if by_position else map(_extra, unused, map(source.specs.__getitem__, unused))),
        *(line for lines in unfit.values() for line in lines),
        *_idle(variables, decided, source, rules),
    ]
    leftover = tuple(unused) if by_position else ()
    return Matched(source, rules, tuple(decided), tuple(problems), frozenset(unfit), leftover)


def load(matched: Matched) -> Values:
    """`{variable name: array}`, shaped and typed as the variable; each array is read when it is asked for.

    All of them are read and checked once here, one after another, so that no more than one is in memory.

    Raises:
      UserError: every problem of the match and of the values (not finite, damaged, overflow of a
        cast) in one message. Nothing has been assigned.
    """
    values = Values(matched.source, matched.entries)
    problems = list(matched.problems)
    for entry in matched.entries:
        if _in_source(entry, matched.source):
            try:
                values.check(entry, fits=entry.variable.name not in matched.unfit)
            except ValueError as error:
                problems.append(f" ! {entry.variable.name}: {error}")
    _raise(matched.source, problems)
    return values


def _in_source(entry: Decision, source: WeightsFile) -> bool:
    return bool(entry.sources) and not entry.problem and all(n in source.specs for n in entry.sources)


# What is wrong


def _refused(entries: Sequence[Decision], known: Places) -> Iterator[str]:
    """Variables that are to be restored from a file that stores positions, which Keras refuses."""
    open_ = [e.variable.name for e in entries if known.refusal and e.problem == known.refusal]
    if open_:
        yield (
            f" ! the file stores positions and no names that count, and Keras's own load_weights refuses it "
            f"for this model ({known.refusal}). Each variable to restore then needs an --init_rename rule, "
            rf"which --mode=inspect proposes; '(.*) -> \1' goes by the names it lists. Without a rule: "
            f"{listing(open_)}."
        )


def _missing(entries: Sequence[Decision], source: WeightsFile, known: Places) -> Iterator[str]:
    gone = 0
    for entry in entries:
        if entry.problem:
            if entry.problem != known.refusal:
                yield f" ! {entry.variable.name}: {entry.problem}"
            continue
        for name in entry.sources:
            if name in source.specs:
                continue
            asked = "" if name == entry.variable.name else f" (as {name}: {entry.rule})"
            close = difflib.get_close_matches(name, source.specs, 3, 0.5) if gone < _HINTS else []
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            gone += 1
            yield f" - {entry.variable.name}{asked}: not in the source.{hint}"


def _unused(entries: Sequence[Decision], source: WeightsFile, rules: Rules) -> list[str]:
    """Weights of the source that nothing takes and no rule excludes."""
    used = {name for entry in entries for name in entry.sources}
    # A name of the model that is left alone, or started from elsewhere, is answered for.
    model = {name for entry in entries for name in names_of(entry.variable)}
    found = []
    for name in source.specs:
        excluded = any(skip.fullmatch(name) for skip in rules.skip)
        if rules.only:
            excluded |= name in model or not any(only.fullmatch(name) for only in rules.only)
        if name not in used and not excluded:
            found.append(name)
    return found


def _extra(name: str, spec: Spec) -> str:
    return f" + {name} {_text(spec.shape, spec.dtype)}: in the source, and nothing takes it."


def _unfit(entry: Decision, source: WeightsFile, rules: Rules) -> Iterator[str]:
    """What is wrong with the shape and dtype of a weight that is there."""
    variable, spec = entry.variable, source.specs[entry.sources[0]]
    try:
        # On zeros in place of the weights: shapes are judged without reading anything.
        shape = shape_of(entry, source)
    except (ValueError, IndexError) as error:
        yield f" ! {variable.name}: {entry.adapt.text if entry.adapt else entry.how}: {error}."
        return
    ours, theirs = _text(variable.shape, variable.dtype.name), _text(shape, spec.dtype)
    if shape != variable.shape:
        how = f"{entry.adapt.text if entry.adapt else entry.how} makes it" if entry.how else "the source has"
        yield f" ! {variable.name}: the model has {ours}, {how} {theirs} ({entry.source}). " + (
            "See --init_adapt, or --init_skip it." if not entry.adapt else ""
        )
    elif len(dtypes := {source.specs[name].dtype for name in entry.sources}) > 1:
        yield f" ! {variable.name}: {entry.source} are of several dtypes ({', '.join(sorted(dtypes))})."
    elif spec.dtype != variable.dtype.name:
        both = variable.dtype.is_floating and tf.as_dtype(np_dtype(spec.dtype)).is_floating
        if not both or not rules.cast:
            hint = "--init_cast allows it." if both else "Only a float's width can be changed."
            yield f" ! {variable.name}: the model has {ours}, the source {theirs} ({entry.source}). {hint}"


def _idle(
    variables: Sequence[ModelVariable], entries: Sequence[Decision], source: WeightsFile, rules: Rules
) -> Iterator[str]:
    """Rules that do nothing, each with its reason; and rules that together leave nothing to do."""
    if not any(entry.sources for entry in entries):
        yield " ! the --init_* rules leave every variable of the model alone: nothing would be restored."
    names = [name for v in variables if not v.random for name in names_of(v)]
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


def _text(shape: Sequence[int], dtype: str) -> str:
    return f"{dtype}{list(shape)}"


def _raise(source: WeightsFile, problems: Sequence[str]) -> None:
    if problems:
        kinds: Mapping[str, list[str]] = {" -": [], " +": [], " !": []}
        for line in problems:
            kinds[line[:2]].append(line)
        lines = [
            line
            for kind, found in kinds.items()
            for line in (*found[:_SHOWN], *_more(kind, len(found) - _SHOWN))
        ]
        raise UserError(
            f"{source.flag}={source.path} ({source.kind}) does not fit the model; nothing was assigned. "
            "( - the model's, + the source's, ! wrong)\n"
            + "\n".join(lines)
            + f"\n{_advice(source)} proposes rules."
        )


def _advice(source: WeightsFile) -> str:
    """Who proposes rules: the mode of a run, or the function of one's own code."""
    return "--mode=inspect" if source.flag.startswith("--") else "trainer.inspect_weights(path, model)"


def _more(kind: str, count: int) -> list[str]:
    return [f"{kind} and {count} more of this kind."] if count > 0 else []
