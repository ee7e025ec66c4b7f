"""Which weight of a source each variable of the model starts from, and who said so."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from trainer.model.names import ModelVariable
from trainer.readers import WeightsFile
from trainer.restore import edges, keras_order, layouts
from trainer.restore.layouts import Conversion
from trainer.restore.rules import Adapt, Rules

BY_POSITION = "by position, as Keras does"
BY_EDGES = "by its edges, as TensorFlow does"
IN_ORDER = "same layer, in its order"
SAME_NAME = "same name"


@dataclass(frozen=True)
class Decision:
    """What becomes of one variable of the model.

    Attributes:
      variable: of the model.
      sources: names of the weights in the source that its value is made of, mostly one; none where the
        variable is left alone.
      rule: the flag that decided, or why without one.
      adapt: how `--init_adapt` makes the array fit, None for as it is.
      layout: how `--init_layout` turns the stored arrays into one, None for as it is.
      problem: why it cannot be restored, known without looking at shapes; "" for none.
    """

    variable: ModelVariable
    sources: tuple[str, ...]
    rule: str
    adapt: Adapt | None = None
    layout: Conversion | None = None
    problem: str = ""

    @property
    def source(self) -> str | None:
        """The weights that it is made of, in words; None where it is left alone."""
        return " + ".join(self.sources) or None

    @property
    def how(self) -> str | None:
        """What is done to the stored array, in words; None for nothing."""
        steps = [self.layout.text if self.layout else "", self.adapt.method if self.adapt else ""]
        return ", ".join(step for step in steps if step) or None


@dataclass(frozen=True)
class Places:
    """Where a variable that no rename names is looked for, other than under its own name.

    Attributes:
      names: `{variable: name in the source}`.
      positional: the source stores positions: names count only in renames.
      refusal: why positions cannot be taken either.
      rule: what to say of a name that is not the variable's own.
      doubts: `{variable: why it cannot be told where it starts from}`.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    positional: bool = False
    refusal: str = ""
    rule: str = IN_ORDER
    doubts: Mapping[str, str] = field(default_factory=dict)


def places(model: Any, variables: Sequence[ModelVariable], source: WeightsFile) -> Places:
    """What Keras itself would take, for a file of Keras's; nothing for other sources.

    Args:
      model: whose variables they are; None where it is not known.
      variables: of the model.
      source: the file.
    """
    file = source.keras
    if file is None:
        return _along(model, variables, source) if source.edges and model is not None else Places()
    named = {path: name for name, path in file.paths.items()}
    if source.positional:
        walked = keras_order.by_position(model, variables, file)
        taken = {v: named[path] for v, path in walked.places.items() if path in named}
        return Places({} if walked.refusal else taken, True, walked.refusal)
    if not file.layers:
        return Places(_numbered(variables, named))
    same = {v.name: name for v in variables for name in names_of(v) if name in source.specs}
    order = {v: named[p] for v, p in keras_order.by_name(model, variables, file).items() if p in named}
    used = set(same.values())
    return Places({v: name for v, name in order.items() if v not in same and name not in used})


def _along(model: Any, variables: Sequence[ModelVariable], source: WeightsFile) -> Places:
    """By the edges of an object graph, where they lead to everything and the names do not."""
    assert source.edges is not None
    taken = edges.by_edges(model, variables, source.edges)
    same = {v.name: name for v in variables for name in names_of(v) if name in source.specs}
    if not same.keys() >= taken.keys():
        return Places(taken, rule=BY_EDGES)
    # Numbered layers that are called alike and stand in another order: one of the two is not meant.
    doubts = {
        name: f"by name it starts from {same[name]}, by its edge in the checkpoint's graph from {place}. "
        r"To go by names, add --init_rename='(.*) -> \1'."
        for name, place in taken.items()
        if same[name] != place
    }
    return Places(doubts=doubts)


def _numbered(variables: Sequence[ModelVariable], named: Mapping[str, str]) -> dict[str, str]:
    """`{variable: name in the source}` where a file names layers and numbers their variables.

    The number is that of the live layer, so a name that was guessed from the kind of layer cannot mislead.
    """
    folders: dict[str, dict[int, str]] = {}
    for path, name in named.items():
        number = path.rpartition("/")[2]
        if number.isdecimal():
            folders.setdefault(name.rpartition("/")[0], {})[int(number)] = name
    found: dict[str, str] = {}
    for variable in variables:
        layer = variable.layer
        if variable.keras is None or not isinstance(layer, keras.Layer):
            continue
        own = [*layer._trainable_variables, *layer._non_trainable_variables]
        place = next((i for i, v in enumerate(own) if v is variable.keras), None)
        for name in names_of(variable):
            stored = folders.get(name.rpartition("/")[0], {})
            if place is not None and len(stored) == len(own) and place in stored:
                found.setdefault(variable.name, stored[place])
    return found


def names_of(variable: ModelVariable) -> tuple[str, ...]:
    """All names of a variable, the first one first."""
    return (variable.name, *variable.aliases)


def decide(variable: ModelVariable, source: WeightsFile, rules: Rules, known: Places) -> Decision:
    """What becomes of a variable: see `match.py` for the order of the rules."""
    if variable.random:
        return Decision(variable, (), "random state is never restored")
    names = names_of(variable)
    # A shared variable is used under each of its names, and left alone where all of them are skipped.
    kept = [name for name in names if not any(skip.fullmatch(name) for skip in rules.skip)]
    if not kept:
        skip = next(skip for skip in rules.skip if skip.fullmatch(variable.name))
        return Decision(variable, (), f"--init_skip={skip.pattern}")
    only = next((o for o in rules.only if _hit(o, kept)), None)
    if rules.only and only is None:
        return Decision(variable, (), "not in --init_only")
    adapt = next((a for a in rules.adapt if _hit(a.pattern, kept)), None)
    if adapt and adapt.sources:
        match = _hit(adapt.pattern, kept)
        assert match is not None
        return Decision(variable, tuple(match.expand(text) for text in adapt.sources), adapt.text, adapt)
    for rename in rules.rename:
        if match := _hit(rename.pattern, kept):
            return _found(variable, [match.expand(rename.replacement)], rename.text, adapt, source, rules)
    by = f"--init_only={only.pattern}" if only else ""
    if variable.name in known.names:
        place = known.names[variable.name]
        rule = by or SAME_NAME if place in kept else known.rule
        return Decision(variable, (place,), BY_POSITION if known.positional else rule, adapt)
    if known.positional:
        why = "" if known.refusal else "Keras's load_weights does not reach it"
        return Decision(variable, (kept[0],), BY_POSITION, adapt, problem=why or known.refusal)
    if variable.name in known.doubts:
        return Decision(variable, (kept[0],), SAME_NAME, adapt, problem=known.doubts[variable.name])
    return _found(variable, kept, by or SAME_NAME, adapt, source, rules)


def _hit(pattern: re.Pattern[str], names: Sequence[str]) -> re.Match[str] | None:
    return next((m for name in names if (m := pattern.fullmatch(name))), None)


def _found(
    variable: ModelVariable,
    names: Sequence[str],
    rule: str,
    adapt: Adapt | None,
    source: WeightsFile,
    rules: Rules,
) -> Decision:
    """The entry of a variable that is looked for under `names`, in the layout of the source."""
    if rules.layout == "torch":
        found = layouts.from_torch(variable, names, source.specs, adapt is not None)
        return Decision(variable, found.sources, rule, adapt, found.conversion, found.problem)
    name = next((name for name in names if name in source.specs), names[0])
    return Decision(variable, (name,), rule, adapt)
