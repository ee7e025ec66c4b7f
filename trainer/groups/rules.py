"""Rules to parameter groups, the frozen set and the phases of a run.

A rule is one line of a table: PATTERN OPTIMIZER SCHEDULE [name=ID] [from=D] [until=D], or PATTERN frozen.
The first rule whose pattern fully matches a trainable variable's name owns that variable.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from trainer.errors import UserError, listing, near
from trainer.flags.calls import Call, Clock, Duration, parse_call, parse_duration, split_columns
from trainer.model.names import ModelVariable

FROZEN = "frozen"
_GRAMMAR = "PATTERN OPTIMIZER SCHEDULE [name=ID] [from=D] [until=D], or PATTERN frozen"


@dataclass(frozen=True)
class Rule:
    """One `--group`: `optimizer` and `schedule` are None where it says `frozen`."""

    text: str
    pattern: re.Pattern[str]
    name: str
    optimizer: Call | None = None
    schedule: str | None = None
    start: Duration | None = None
    until: Duration | None = None

    @property
    def flag(self) -> str:
        """The rule as its user wrote it, for messages."""
        return f"--group={self.text}"


@dataclass(frozen=True)
class Group:
    """Variables that one optimizer trains at one schedule from step `start` up to `stop`, exclusive."""

    name: str
    rule: Rule
    variables: tuple[ModelVariable, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Phase:
    """Steps `start` up to `stop`, exclusive, in which the same groups train."""

    start: int
    stop: int
    active: tuple[Group, ...]

    @property
    def names(self) -> frozenset[str]:
        """Names of the variables that train in this phase."""
        return frozenset(v.name for group in self.active for v in group.variables)


def parse_rules(texts: Iterable[str]) -> list[Rule]:
    """The rules in the order given; groups without a name are `group0`, `group1`, ...

    Raises:
      UserError: no rule, a rule not of the grammar, a bad pattern, or a name used twice.
    """
    rules: list[Rule] = []
    for text in texts:
        trained = sum(rule.optimizer is not None for rule in rules)
        rules.append(_parse_rule(text, f"group{trained}"))
    if not rules:
        raise UserError(
            "--group: none given, so nothing says what to train. To train everything: "
            "--group='.* adam constant(1e-3)'."
        )
    names = [rule.name for rule in rules if rule.optimizer]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--group: two groups have name={name}. Give each its own name.")
    return rules


def _parse_rule(text: str, name: str) -> Rule:
    flag = f"--group={text}"
    columns = split_columns(text, flag)
    if len(columns) < 2:
        raise UserError(f"{flag}: a rule is {_GRAMMAR}.")
    try:
        pattern = re.compile(columns[0])
    except re.error as error:
        raise UserError(f"{flag}: the pattern {columns[0]!r} is not a regular expression: {error}.") from None
    if columns[1] == FROZEN:
        if len(columns) > 2:
            raise UserError(
                f"{flag}: nothing follows `frozen`, but there is {' '.join(columns[2:])!r}. To train "
                "from some step on, give an optimizer, a schedule and from=DURATION."
            )
        return Rule(text, pattern, FROZEN)
    if len(columns) < 3 or re.fullmatch(r"(name|from|until)=.*", columns[2]):
        raise UserError(f"{flag}: no schedule after the optimizer. A rule is {_GRAMMAR}.")
    options = _options(columns[3:], flag)
    if "name" in options and not re.fullmatch(r"[A-Za-z0-9_.-]+", options["name"]):
        raise UserError(f"{flag}: name={options['name']} may hold letters, digits, '_', '.' and '-'.")
    durations = {key: parse_duration(options[key], flag) for key in ("from", "until") if key in options}
    return Rule(
        text,
        pattern,
        options.get("name", name),
        parse_call(columns[1], flag),
        columns[2],
        durations.get("from"),
        durations.get("until"),
    )


def _options(columns: Sequence[str], flag: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for column in columns:
        key, equals, value = column.partition("=")
        if not equals or key not in ("name", "from", "until"):
            raise UserError(
                f"{flag}: {column!r} is not name=ID, from=DURATION or until=DURATION. "
                f"{near(key, ('name', 'from', 'until'))}"
            )
        if key in options or not value:
            raise UserError(f"{flag}: {key}= is {'given twice' if value else 'empty'}.")
        options[key] = value
    return options


def assign(
    rules: Sequence[Rule], variables: Sequence[ModelVariable]
) -> list[tuple[Rule, tuple[ModelVariable, ...]]]:
    """Each rule with the trainable variables that it owns: the first full match wins.

    Raises:
      UserError: a trainable variable no rule covers; a rule that matches nothing, or only variables
        that the model itself declares not trainable; a rule wholly shadowed by earlier ones. All
        such faults are in one message.
    """
    owned: list[list[ModelVariable]] = [[] for _ in rules]
    matched: list[list[ModelVariable]] = [[] for _ in rules]
    uncovered: list[str] = []
    for variable in variables:
        hits = [i for i, rule in enumerate(rules) if matches(rule.pattern, variable)]
        for i in hits:
            matched[i].append(variable)
        if variable.trainable and hits:
            owned[hits[0]].append(variable)
        elif variable.trainable:
            uncovered.append(variable.name)
    faults = [_unused(i, rules, owned, matched[i], variables) for i in range(len(rules)) if not owned[i]]
    if uncovered:
        faults.append(
            f"--group: no rule covers {listing(uncovered)}. Add a last rule for the rest, such as "
            "--group='.* frozen'."
        )
    if faults:
        raise UserError("\n".join(faults))
    return [(rule, tuple(own)) for rule, own in zip(rules, owned, strict=True)]


def _unused(
    index: int,
    rules: Sequence[Rule],
    owned: Sequence[Sequence[ModelVariable]],
    matched: Sequence[ModelVariable],
    variables: Sequence[ModelVariable],
) -> str:
    """Why the rule at `index` owns no variable."""
    rule = rules[index]
    trainable = {v.name for v in matched if v.trainable}
    if trainable:
        before = [rules[i].text for i in range(index) if trainable & {v.name for v in owned[i]}]
        return (
            f"{rule.flag}: every variable it matches ({listing(sorted(trainable))}) belongs to an "
            f"earlier rule: {' | '.join(before)}. The first match wins, so put the narrower rule first."
        )
    if matched:
        return (
            f"{rule.flag}: matches only {listing(v.name for v in matched)}, which the model itself "
            "declares not trainable. Remove the rule."
        )
    names = [v.name for v in variables if v.trainable]
    return (
        f"{rule.flag}: the pattern {rule.pattern.pattern!r} matches no variable. It must match the "
        f"whole name. {near(rule.pattern.pattern, names)}"
    )


def matches(pattern: re.Pattern[str], variable: ModelVariable) -> bool:
    """Whether `pattern` matches the whole of the variable's name or of one of its aliases."""
    return any(pattern.fullmatch(name) for name in (variable.name, *variable.aliases))


def select(patterns: Iterable[str], variables: Sequence[ModelVariable], flag: str) -> frozenset[str]:
    """Names of the variables that any of `patterns` matches.

    Raises:
      UserError: a pattern that is no regular expression or matches nothing.
    """
    names: set[str] = set()
    for text in patterns:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise UserError(f"{flag}={text}: not a regular expression: {error}.") from None
        hits = {v.name for v in variables if matches(pattern, v)}
        if not hits:
            raise UserError(
                f"{flag}={text}: matches no trained variable. {near(text, [v.name for v in variables])}"
            )
        names |= hits
    return frozenset(names)


def resolve(owned: Sequence[tuple[Rule, tuple[ModelVariable, ...]]], clock: Clock, total: int) -> list[Group]:
    """Groups with their first and last steps, from durations; frozen rules make no group.

    Raises:
      UserError: a group that would start after the run's end, end after it, or end before its start.
    """
    groups = []
    for rule, variables in owned:
        if rule.optimizer is None:
            continue
        start = clock.steps(rule.start, rule.flag) if rule.start else 0
        stop = clock.steps(rule.until, rule.flag) if rule.until else total
        if not 0 <= start < stop or stop > total:
            raise UserError(
                f"{rule.flag}: trains from step {start} up to step {stop} in a run of {total} steps. "
                f"Let it start before it ends and end by step {total}, or lengthen --train_for."
            )
        groups.append(Group(rule.name, rule, variables, start, stop))
    return groups


def phases(groups: Sequence[Group], total: int) -> list[Phase]:
    """The phases of a run, in order; together they cover steps 0 to `total`.

    Raises:
      UserError: nothing to train in some phase.
    """
    edges = sorted({0, total, *(g.start for g in groups), *(g.stop for g in groups)})
    result = []
    for start, stop in itertools.pairwise(edges):
        active = tuple(g for g in groups if g.start <= start and g.stop >= stop)
        if not active:
            raise UserError(
                f"--group: nothing to train from step {start} up to step {stop}: every variable is "
                "frozen there. Let a group start by then (from=) or end later (until=)."
            )
        result.append(Phase(start, stop, active))
    return result


def depths(variables: Sequence[ModelVariable], depth: Callable[[str], int] | None = None) -> dict[str, int]:
    """How many layers lie between each trainable variable's layer and the head, which has 0.

    Args:
      variables: in the model's own order of layers.
      depth: the model module's own `depth(name)`, where it has one.

    Raises:
      UserError: `depth` returns something other than an integer of at least 0.
    """
    trainable = [v for v in variables if v.trainable]
    if depth is not None:
        result = {v.name: depth(v.name) for v in trainable}
        for name, value in result.items():
            if not isinstance(value, int) or value < 0:
                raise UserError(
                    f"--layer_decay: the model's depth({name!r}) is {value!r}; it must be an integer, 0 "
                    "for the head and more for the layers before it."
                )
        return result
    # A layer's first variable places it. A plain module has no layers: its variables' folders stand in.
    owners = dict.fromkeys(v.name.rpartition("/")[0] for v in reversed(trainable))
    above = {owner: index for index, owner in enumerate(owners)}
    return {v.name: above[v.name.rpartition("/")[0]] for v in trainable}
