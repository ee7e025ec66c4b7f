"""Rules: which variables one optimizer and one schedule train, and which are frozen.

A rule is one line of a table: PATTERN OPTIMIZER SCHEDULE [name=ID] [from=D] [until=D] [loss=NAME] [every=N],
or PATTERN frozen.
The first rule whose pattern fully matches a trainable variable's name owns that variable.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.errors import UserError, listing, near
from trainer.flags import patterns
from trainer.flags.calls import Call, split_columns
from trainer.flags.durations import Duration, parse_duration
from trainer.groups import optimizers, schedules
from trainer.model.names import ModelVariable

FROZEN = "frozen"
_GRAMMAR = "PATTERN OPTIMIZER SCHEDULE [name=ID] [from=D] [until=D] [loss=NAME] [every=N], or PATTERN frozen"
_OPTIONS = {"name": "ID", "from": "DURATION", "until": "DURATION", "loss": "NAME", "every": "N"}


@dataclass(frozen=True)
class Rule:
    """One `--group`, checked: what can be known of it without a model and a clock is right.

    Attributes:
      text: as its user wrote it.
      pattern: of whole names of variables.
      name: of its group; `frozen` where it says so.
      optimizer: a Keras optimizer and its arguments by name; None where the rule says `frozen`.
      schedule: its arguments by name; None where the rule says `frozen`.
      start: `from=`; None for the start of the run.
      until: `until=`; None for its end.
      loss: `loss=`, the name of the loss that moves it; empty for the sum of all.
      every: `every=`; of so many steps from its start on it trains at the first.
    """

    text: str
    pattern: re.Pattern[str]
    name: str
    optimizer: Call | None = None
    schedule: Call | None = None
    start: Duration | None = None
    until: Duration | None = None
    loss: str = ""
    every: int = 1

    @property
    def flag(self) -> str:
        """The rule as its user wrote it, for messages."""
        return f"--group={self.text}"


def parse_rules(texts: Iterable[str]) -> list[Rule]:
    """The rules in the order given; groups without a name are `group0`, `group1`, ...

    Raises:
      UserError: no rule, a rule not of the grammar, a bad pattern, an optimizer, a schedule or an
        argument that there is not, or a name used twice.
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
    pattern = patterns.compiled(columns[0], flag)
    if columns[1] == FROZEN:
        if len(columns) > 2:
            raise UserError(
                f"{flag}: nothing follows `frozen`, but there is {' '.join(columns[2:])!r}. To train "
                "from some step on, give an optimizer, a schedule and from=DURATION."
            )
        return Rule(text, pattern, FROZEN)
    if len(columns) < 3 or re.fullmatch(rf"({'|'.join(_OPTIONS)})=.*", columns[2]):
        raise UserError(f"{flag}: no schedule after the optimizer. A rule is {_GRAMMAR}.")
    options = _options(columns[3:], flag)
    for key in ("name", "loss"):
        if key in options and not re.fullmatch(r"[A-Za-z0-9_.-]+", options[key]):
            raise UserError(f"{flag}: {key}={options[key]} may hold letters, digits, '_', '.' and '-'.")
    if not re.fullmatch(r"[1-9][0-9]{0,6}", options.get("every", "1")):
        raise UserError(f"{flag}: every={options['every']} must be a number of steps, such as every=5.")
    durations = {key: parse_duration(options[key], flag) for key in ("from", "until") if key in options}
    return Rule(
        text,
        pattern,
        options.get("name", name),
        optimizers.check(columns[1], flag),
        schedules.check(columns[2], flag),
        durations.get("from"),
        durations.get("until"),
        options.get("loss", ""),
        int(options.get("every", "1")),
    )


def _options(columns: Sequence[str], flag: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for column in columns:
        key, equals, value = column.partition("=")
        if not equals or key not in _OPTIONS:
            known = listing(f"{name}={value}" for name, value in _OPTIONS.items())
            raise UserError(f"{flag}: {column!r} is none of {known}. {near(key, _OPTIONS)}")
        if key in options or not value:
            raise UserError(f"{flag}: {key}= is {'given twice' if value else 'empty'}.")
        options[key] = value
    return options


Owned = tuple[Rule, tuple[ModelVariable, ...]]


def assign(rules: Sequence[Rule], variables: Sequence[ModelVariable]) -> list[Owned]:
    """Each rule with the trainable variables that it owns: the first full match wins.

    Raises:
      UserError: a pattern that takes too long to match; a trainable variable no rule covers; a rule that
        matches nothing, or, unless it says `frozen`, only variables that the model itself declares not
        trainable; a rule wholly shadowed by earlier ones. All such faults are in one message, but for the
        first.
    """
    patterns.check_bounded([(rule.flag, rule.pattern) for rule in rules], _names(variables))
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
    faults = [fault for fault in faults if fault]
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
    """Why the rule at `index` says nothing; empty where it freezes state."""
    rule = rules[index]
    state = [v for v in matched if not v.random]
    trainable = {v.name for v in matched if v.trainable}
    if trainable:
        before = [rules[i].text for i in range(index) if trainable & {v.name for v in owned[i]}]
        return (
            f"{rule.flag}: every variable it matches ({listing(sorted(trainable))}) belongs to an "
            f"earlier rule: {' | '.join(before)}. The first match wins, so put the narrower rule first."
        )
    if state:
        return _unused_state(rule, rules, state)
    if matched:
        return (
            f"{rule.flag}: matches only {listing(v.name for v in matched)}, random state, which is another "
            "at every step. Remove the rule."
        )
    names = [v.name for v in variables if v.trainable]
    return (
        f"{rule.flag}: the pattern {rule.pattern.pattern!r} matches no variable. It must match the "
        f"whole name. {near(rule.pattern.pattern, names)}"
    )


def _unused_state(rule: Rule, rules: Sequence[Rule], state: Sequence[ModelVariable]) -> str:
    """Why a rule that matches nothing but state says nothing; empty where it freezes some."""
    names = listing(v.name for v in state)
    if rule.optimizer is not None:
        return (
            f"{rule.flag}: matches only {names}, which the model itself declares not trainable. Remove the "
            "rule, or say `frozen` to keep that state as it is."
        )
    first = [first_match(rules, v) for v in state]
    if rule in first:
        return ""
    return (
        f"{rule.flag}: the state it matches ({names}) is matched by an earlier rule: "
        f"{listing(dict.fromkeys(r.text for r in first if r))}. The first match wins, so put the narrower "
        "rule first."
    )


def _names(variables: Iterable[ModelVariable]) -> list[str]:
    return [name for v in variables for name in (v.name, *v.aliases)]


def first_match(rules: Sequence[Rule], variable: ModelVariable) -> Rule | None:
    """The first rule whose pattern matches the variable; None where none does."""
    return next((rule for rule in rules if matches(rule.pattern, variable)), None)


def matches(pattern: re.Pattern[str], variable: ModelVariable) -> bool:
    """Whether `pattern` matches the whole of the variable's name or of one of its aliases."""
    return any(pattern.fullmatch(name) for name in (variable.name, *variable.aliases))


def select(texts: Iterable[str], variables: Sequence[ModelVariable], flag: str) -> frozenset[str]:
    """Names of the variables that any of the patterns in `texts` matches.

    Raises:
      UserError: a pattern that is no regular expression, matches nothing, or takes too long to match.
    """
    names: set[str] = set()
    for text in texts:
        pattern = patterns.compiled(text, f"{flag}={text}")
        patterns.check_bounded([(f"{flag}={text}", pattern)], _names(variables))
        hits = {v.name for v in variables if matches(pattern, v)}
        if not hits:
            raise UserError(
                f"{flag}={text}: matches no trained variable. {near(text, [v.name for v in variables])}"
            )
        names |= hits
    return frozenset(names)
