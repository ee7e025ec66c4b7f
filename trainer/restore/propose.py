"""Proposals for `--init_*` rules that would make a source fit a model, by names, shapes and order."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import tensorflow as tf

from trainer.errors import listing
from trainer.model.names import ModelVariable
from trainer.readers import WeightsFile
from trainer.readers.source import np_dtype
from trainer.restore import keras_order, patterns, sides
from trainer.restore.layouts import flat_variables
from trainer.restore.match import match
from trainer.restore.pairing import Pairs, ambiguous, pair
from trainer.restore.rules import parse
from trainer.restore.sides import Layer


@dataclass(frozen=True)
class Proposal:
    """Lines for a flagfile, and how far to trust them.

    Attributes:
      lines: `--init_*` flags; none where no rule is needed.
      problems: what is wrong when `match` is run with them.
      how: how the pairs were found, in words.
      ambiguous: layers of equal shapes that could also be exchanged, a line for each group of them.
      pairs: `{variable: weights that it would start from}`.
    """

    lines: tuple[str, ...]
    problems: tuple[str, ...]
    how: str
    ambiguous: tuple[str, ...]
    pairs: Mapping[str, str]

    @property
    def proven(self) -> bool:
        """Whether names or shapes leave one way only, and everything fits."""
        return not self.problems and not self.ambiguous


def propose(
    variables: Sequence[ModelVariable], source: WeightsFile, layout: str = "", model: Any = None
) -> Proposal:
    """Rules under which as much as possible of `source` fits `variables`; reads no weights.

    Layers are paired as wholes, so a kernel and its bias are never parted. What is left over is skipped.

    Args:
      variables: of the model.
      source: from `open_source`.
      layout: as `--init_layout`; `torch` where it is not given and the names look like it.
      model: whose variables they are, where it is known.
    """
    layout = layout or ("torch" if source.torch else "")
    ours, theirs = sides.apart(sides.of_model(variables, layout), sides.of_source(source, layout))
    # Some writers sort (each shard by itself): then the order is not that of a model.
    falls = sum(before > after for before, after in pairwise(source.specs))
    alphabetical = 10 * falls <= len(source.specs)
    pairs = _keras(ours, theirs, variables, source, model)
    if pairs is None:
        pairs = pair(ours, theirs, not source.positional, not alphabetical)
    named, used = _names(pairs, ours, theirs, layout)
    flags = _flags(variables, source, named, used, layout)
    flat = flat_variables(model, variables) if layout == "torch" else ()
    adapt = [
        f"{re.escape(v.name)} flattened({list(shape)})" for v, shape in flat if shape and v.name in named
    ]
    cast = any(_cast(v, source, used) for v in variables)
    rules = parse(flags["only"], flags["skip"], flags["rename"], cast, adapt, layout)
    lines = [f"--init_layout={layout}"] if layout else []
    lines += [f"--init_{flag}={text}" for flag, texts in flags.items() for text in texts]
    lines += [f"--init_adapt={text}" for text in adapt]
    lines += ["--init_cast"] if cast else []
    matched = match(variables, source, rules, model)
    unsure = [_unsure(pairs, ours, theirs, *group) for group in ambiguous(pairs, ours, theirs)]
    starts = {e.variable.name: e.source for e in matched.entries if e.source}
    return Proposal(tuple(lines), matched.problems, _how(pairs), tuple(unsure), starts)


def _unsure(
    pairs: Pairs, ours: Sequence[Layer], theirs: Sequence[Layer], members: list[int], others: list[int]
) -> str:
    """What is said of layers that could be exchanged."""
    taken = listing([theirs[pairs.of[i]].path or "(top)" for i in members])
    return (
        f"{listing([ours[i].path or '(top)' for i in members])} ({_shapes(ours[members[0]])}): taken from "
        f"{taken}, in this order; any of {listing([theirs[j].path or '(top)' for j in others])} would fit."
    )


def _how(pairs: Pairs) -> str:
    if not pairs.of:
        return "nothing fits"
    if len(pairs.proven) == len(pairs.of):
        return "by names"
    return "by names, and by shapes in their order" if pairs.proven else "by shapes in their order"


def _shapes(layer: Layer) -> str:
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in layer.shapes.values())


def _keras(
    ours: Sequence[Layer],
    theirs: Sequence[Layer],
    variables: Sequence[ModelVariable],
    source: WeightsFile,
    model: Any,
) -> Pairs | None:
    """Keras's own order, where it would load the whole of a file whose names do not fit; None where not."""
    file = source.keras
    if file is None or model is None:
        return None
    own = keras_order.by_order if file.layers else keras_order.by_position
    order = own(model, variables, file)
    wanted = {name for layer in ours for name in layer.names.values()}
    named = {path: name for name, path in file.paths.items()}
    if order.refusal or not wanted <= order.places.keys() or len(wanted) != len(file.paths):
        return None
    place = {name: j for j, layer in enumerate(theirs) for name in layer.names.values()}
    pairs = Pairs()
    for i, layer in enumerate(ours):
        found = {place[named[order.places[name]]] for name in layer.names.values()}
        if len(found) != 1:
            return None
        pairs.of[i] = found.pop()
        if file.named and theirs[pairs.of[i]].path == layer.path:
            pairs.proven.add(i)
    # Where all names are the model's and say something else, the names are right.
    contradicted = file.named and {layer.path for layer in ours} == {layer.path for layer in theirs}
    return None if contradicted else pairs


def _names(
    pairs: Pairs, ours: Sequence[Layer], theirs: Sequence[Layer], layout: str
) -> tuple[dict[str, str], dict[str, str]]:
    """`{variable: what a rename must make of it}` and `{variable: the weight it takes}`."""
    named: dict[str, str] = {}
    used: dict[str, str] = {}
    for i, j in pairs.of.items():
        for word, other in _words(ours[i], theirs[j]).items():
            name = ours[i].names[word]
            used.setdefault(name, theirs[j].names[other])
            if layout == "torch":
                tail = name[len(ours[i].path) :].lstrip("/")
                named[name] = "/".join(part for part in (theirs[j].path, tail) if part)
            else:
                named[name] = theirs[j].names[other]
    return named, used


def _words(ours: Layer, theirs: Layer) -> dict[str, str]:
    """`{word of ours: word of theirs}`: equal words first, then equal shapes in order."""
    same = {w: w for w, shape in ours.shapes.items() if theirs.shapes.get(w) == shape}
    free = [word for word in theirs.shapes if word not in same]
    for word, shape in ours.shapes.items():
        fitting = next((w for w in free if theirs.shapes[w] == shape), None)
        if word not in same and fitting is not None:
            same[word] = fitting
            free.remove(fitting)
    return same


def _flags(
    variables: Sequence[ModelVariable],
    source: WeightsFile,
    named: Mapping[str, str],
    used: Mapping[str, str],
    layout: str,
) -> dict[str, list[str]]:
    """`{"rename": ..., "skip": ..., "only": ...}` for these pairs."""
    model = [v.name for v in variables if not v.random]
    if layout == "torch":
        # Slashes are dots in such a file: equal names need no rule.
        rename = [_dots(text) for text in patterns.renames(named, False)]
    else:
        rename = patterns.renames(named, source.positional)
    taken = set(used.values()) | _packed(source, used, layout)
    lost, over = [n for n in model if n not in named], [n for n in source.specs if n not in taken]
    both = [*model, *source.specs]
    skip = list(dict.fromkeys(patterns.cover([*lost, *over], both)))
    if any(re.fullmatch(text, name) for text in skip for name in named):
        # A name to skip in the source is one to restore in the model: say what is wanted instead.
        return {"rename": rename, "skip": [], "only": patterns.cover(list(named), model)}
    return {"rename": rename, "skip": skip, "only": []}


def _dots(rule: str) -> str:
    """A rename whose right side is written as PyTorch writes names."""
    left, arrow, right = rule.partition(" -> ")
    return left + arrow + right.replace("/", ".")


def _packed(source: WeightsFile, used: Mapping[str, str], layout: str) -> set[str]:
    """The second biases of recurrent layers, which come along with the first."""
    if layout != "torch":
        return set()
    taken = set(used.values())
    return {n for n in source.specs if n.replace("bias_hh", "bias_ih") in taken}


def _cast(variable: ModelVariable, source: WeightsFile, used: Mapping[str, str]) -> bool:
    other = used.get(variable.name)
    if other is None or source.specs[other].dtype == variable.dtype.name:
        return False
    floats = (variable.dtype, tf.as_dtype(np_dtype(source.specs[other].dtype)))
    return all(dtype.is_floating for dtype in floats)
