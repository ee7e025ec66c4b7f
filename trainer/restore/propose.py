"""Proposals for `--init_*` rules that would make a source fit a model, by names, shapes and order."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from trainer.model.names import ModelVariable
from trainer.readers import Source
from trainer.readers.source import np_dtype
from trainer.restore.match import match
from trainer.restore.rules import Rules, parse

Shape = tuple[int, ...]
Layer = Mapping[str, Shape]  # {last part of a name: shape}
_MOST = 400  # unlike layers are compared pair by pair


@dataclass(frozen=True)
class Proposal:
    """Lines for a flagfile, and what they leave open when `match` is run with them."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]


def propose(variables: Sequence[ModelVariable], source: Source) -> Proposal:
    """Rules under which as much as possible of `source` fits `variables`; reads no weights.

    Weights of one name and shape belong together. The other layers are paired where their shapes are
    the same, the more alike in name and place the sooner. What is left over is skipped.
    """
    model = {v.name: v.shape for v in variables if not v.random}
    shapes = {name: spec.shape for name, spec in source.specs.items()}
    pairs = {name: name for name, shape in model.items() if shapes.get(name) == shape}
    left = {name: shape for name, shape in model.items() if name not in pairs}
    free = {name: shape for name, shape in shapes.items() if name not in pairs}
    for ours, theirs in _pair_layers(_layers(left), _layers(free)):
        pairs |= _pair_leaves(ours, theirs, left, free)
    # Names outside any layer have no company that must fit as well.
    single = {name: {"": shape} for name, shape in left.items() if name not in pairs and not _cut(name)[0]}
    used = set(pairs.values())
    others = {name: {"": shape} for name, shape in free.items() if name not in used and not _cut(name)[0]}
    pairs |= dict(_pair_layers(single, others))
    renames = _whole(pairs, model) or _renames(pairs)
    skips = _leftovers(model, pairs.keys()) + _leftovers(shapes, set(pairs.values()))
    flags: dict[str, list[str]] = {"rename": renames, "skip": list(dict.fromkeys(skips)), "only": []}
    if any(re.fullmatch(skip, name) for skip in flags["skip"] for name in pairs):
        # A name to skip in the source is one to restore in the model: say what is wanted instead.
        flags |= {"skip": [], "only": _patterns(list(pairs), model)}
    cast = any(_cast(v, source, pairs) for v in variables)
    rules: Rules = parse(**flags, cast=cast)
    lines = [f"--init_{flag}={text}" for flag, texts in flags.items() for text in texts]
    lines += ["--init_cast"] if cast else []
    return Proposal(tuple(lines), match(variables, source, rules).problems)


def _cut(name: str) -> tuple[str, str]:
    """A name as layer (with its separator) and last part: `conv/kernel`, `conv.weight`."""
    at = max(name.rfind("/"), name.rfind(".")) + 1
    return name[:at], name[at:]


def _layers(shapes: Mapping[str, Shape]) -> dict[str, dict[str, Shape]]:
    layers: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        layer, last = _cut(name)
        layers.setdefault(layer, {})[last] = shape
    return layers


def _pair_layers(ours: Mapping[str, Layer], theirs: Mapping[str, Layer]) -> list[tuple[str, str]]:
    """Layers of the same shapes, the likeliest pair first, each layer once."""
    kinds: dict[tuple[Shape, ...], tuple[list[str], list[str]]] = {}
    for side, layers in enumerate((ours, theirs)):
        for name, layer in layers.items():
            kinds.setdefault(tuple(sorted(layer.values())), ([], []))[side].append(name)
    pairs: list[tuple[str, str]] = []
    for mine, others in kinds.values():
        if max(len(mine), len(others)) > _MOST:
            pairs += zip(mine, others, strict=False)
            continue
        scored = [
            (-_alike(a, b, i, j, max(len(mine), len(others)), ours[a].keys() == theirs[b].keys()), i, j)
            for i, a in enumerate(mine)
            for j, b in enumerate(others)
        ]
        done_a: set[int] = set()
        done_b: set[int] = set()
        for _, i, j in sorted(scored):
            if i not in done_a and j not in done_b:
                done_a.add(i)
                done_b.add(j)
                pairs.append((mine[i], others[j]))
    return pairs


def _alike(a: str, b: str, i: int, j: int, count: int, same_leaves: bool) -> float:
    """How likely two layers of the same shapes are one: by name, by place in the order, by leaves."""
    names = difflib.SequenceMatcher(None, a, b).ratio()
    return 0.5 * names + 0.4 * (1 - abs(i - j) / count) + 0.1 * same_leaves


def _pair_leaves(
    ours: str, theirs: str, model: Mapping[str, Shape], source: Mapping[str, Shape]
) -> dict[str, str]:
    mine = [name for name in model if _cut(name)[0] == ours]
    free = [name for name in source if _cut(name)[0] == theirs]
    # Equal names first, so that a likeness elsewhere does not take their partner.
    mine.sort(key=lambda name: theirs + _cut(name)[1] not in free)
    pairs = {}
    for name in mine:
        last = _cut(name)[1]
        fitting = [other for other in free if source[other] == model[name]]
        if not fitting:
            continue
        best = max(fitting, key=lambda o: difflib.SequenceMatcher(None, last, _cut(o)[1]).ratio())
        pairs[name] = best
        free.remove(best)
    return pairs


# As rules


def _whole(pairs: Mapping[str, str], model: Mapping[str, Shape]) -> list[str]:
    """One rule, where all names of the model differ from the source's by one and the same prefix."""
    if len(pairs) < len(model) or len(pairs) < 2:
        return []
    ours, theirs = next(iter(pairs.items()))
    if theirs.endswith(ours) and theirs != ours:
        prefix = theirs[: -len(ours)]
        if all(other == prefix + name for name, other in pairs.items()):
            return [rf"(.*) -> {_literal(prefix)}\1"]
    if ours.endswith(theirs) and theirs != ours:
        prefix = ours[: -len(theirs)]
        if all(name == prefix + other for name, other in pairs.items()):
            return [rf"{re.escape(prefix)}(.*) -> \1"]
    return []


def _renames(pairs: Mapping[str, str]) -> list[str]:
    rules: dict[str, None] = {}
    for name, other in pairs.items():
        if name == other:
            continue
        layer, last = _cut(name)
        target, target_last = _cut(other)
        same = [(n, o) for n, o in pairs.items() if _cut(n)[0] == layer]
        whole = all(o == target + _cut(n)[1] for n, o in same)
        if layer.endswith("/") and len(same) > 1 and whole and last == target_last:
            rules[rf"{re.escape(layer)}([^/.]+) -> {_literal(target)}\1"] = None
        else:
            rules[f"{re.escape(name)} -> {_literal(other)}"] = None
    return list(rules)


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")


def _leftovers(names: Mapping[str, Shape], paired: Collection[str]) -> list[str]:
    return _patterns([name for name in names if name not in paired], names)


def _patterns(wanted: Sequence[str], names: Mapping[str, Shape]) -> list[str]:
    """Patterns that fit just the wanted names among `names`: a layer's where all of it is wanted."""
    chosen = set(wanted)
    patterns: dict[str, None] = {}
    for name in wanted:
        layer = _cut(name)[0]
        whole = bool(layer) and all(other in chosen for other in names if other.startswith(layer))
        patterns[re.escape(layer) + ".*" if whole else re.escape(name)] = None
    return list(patterns)


def _cast(variable: ModelVariable, source: Source, pairs: Mapping[str, str]) -> bool:
    other = pairs.get(variable.name)
    if other is None or source.specs[other].dtype == variable.dtype.name:
        return False
    floats = (variable.dtype, tf.as_dtype(np_dtype(source.specs[other].dtype)))
    return all(dtype.is_floating for dtype in floats)
