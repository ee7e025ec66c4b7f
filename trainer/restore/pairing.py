"""Which layer of a source is which layer of a model, by names where they tell and by the order of shapes."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.restore.sides import Layer

_MOST = 400  # layers of one kind are compared pair by pair


@dataclass
class Pairs:
    """Pairs of layers (place in the model's list: place in the source's), and which of them names prove."""

    of: dict[int, int] = field(default_factory=dict)
    proven: set[int] = field(default_factory=set)


def pair(ours: Sequence[Layer], theirs: Sequence[Layer], names_count: bool, order_counts: bool) -> Pairs:
    """Pairs the layers of a model with those of a source.

    1. Equal names, if no layer of an equal name has other shapes: the names are the model's own.
    2. Names that differ by what stands before them (`trunk/conv` and `conv`), if most agree on it.
    3. The same shapes one after another on both sides: that order.
    4. What is left: the longest stretches of layers with the same shapes, in order; where the source has no
       order, equal shapes whose names have the most words and numbers in common.

    Args:
      ours: layers of the model.
      theirs: layers of the source.
      names_count: whether the source stores names.
      order_counts: whether its order is that of a model; if not (an alphabetical list), numbers in names
        are put in order first.
    """
    pairs = Pairs()
    rank = (
        range(len(theirs))
        if order_counts
        else sorted(range(len(theirs)), key=lambda j: _natural(theirs[j].path))
    )
    order = list(rank)
    whole = [layer.kind for layer in ours] == [theirs[j].kind for j in order]
    if names_count and (found := _by_names(ours, theirs, whole)):
        pairs.of |= found
        pairs.proven |= set(found)
    if not pairs.of and whole:
        pairs.of = dict(enumerate(order))
    elif order_counts:
        _stretches(pairs, ours, theirs, order)
    else:
        _alike(pairs, ours, theirs, order)
    _siblings(pairs, ours, theirs)
    return pairs


def ambiguous(
    pairs: Pairs, ours: Sequence[Layer], theirs: Sequence[Layer]
) -> list[tuple[list[int], list[int]]]:
    """(layers of the model, of the source) of equal shapes that could be exchanged, where no name tells."""
    unsure = [i for i in pairs.of if i not in pairs.proven]
    used = {pairs.of[i] for i in pairs.proven}
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for i in unsure:
        groups.setdefault(ours[i].kind, []).append(i)
    found = []
    for kind, members in groups.items():
        others = [j for j, layer in enumerate(theirs) if layer.kind == kind and j not in used]
        alike = [i for i, layer in enumerate(ours) if layer.kind == kind and i not in pairs.proven]
        if len(others) > 1 or len(alike) > 1:
            found.append((members, others))
    return found


def _by_names(ours: Sequence[Layer], theirs: Sequence[Layer], whole: bool) -> dict[int, int]:
    """Pairs of layers whose names are equal but for what stands before them on either side."""
    place = {layer.path: j for j, layer in enumerate(theirs)}
    votes: Counter[tuple[str, str]] = Counter()
    ends: dict[str, list[int]] = {}
    for j, layer in enumerate(theirs):
        ends.setdefault(layer.last, []).append(j)
    for layer in ours:
        for j in ends.get(layer.last, ()):
            if _fit(layer, theirs[j]):
                votes[_fronts(layer.path, theirs[j].path)] += 1
    best: dict[int, int] = {}
    for (front, other), _ in sorted(votes.items(), key=lambda vote: (-vote[1], vote[0] != ("", ""))):
        if (found := _agreed(ours, theirs, place, front, other, whole)) and len(found) > len(best):
            best = found
    return best


def _agreed(
    ours: Sequence[Layer],
    theirs: Sequence[Layer],
    place: Mapping[str, int],
    front: str,
    other: str,
    whole: bool,
) -> dict[int, int]:
    """The pairs that a change of fronts makes; none where names and shapes contradict each other."""
    found: dict[int, int] = {}
    clash = 0
    for i, layer in enumerate(ours):
        if layer.path == front or layer.path.startswith(front):
            j = place.get(other + layer.path[len(front) :])
            if j is not None and _fit(layer, theirs[j]):
                found[i] = j
            elif j is not None:
                clash += 1
    # A layer of an equal name with other shapes is a head of another size, or numbering that is shifted:
    # shifted it is where all shapes correspond in order.
    return {} if clash and (whole or clash >= len(found)) else found


def _fit(ours: Layer, theirs: Layer) -> bool:
    """Whether two layers can be one: no array of one word differs in shape, and at least one is shared."""
    if ours.kind == theirs.kind:
        return True
    shared = ours.shapes.keys() & theirs.shapes.keys()
    return bool(shared) and all(ours.shapes[word] == theirs.shapes[word] for word in shared)


def _fronts(ours: str, theirs: str) -> tuple[str, str]:
    """What stands before the longest common end of two paths, in whole parts: ("trunk/", "")."""
    a, b = ours.split("/"), theirs.split("/")
    same = 0
    while same < min(len(a), len(b)) and a[-1 - same] == b[-1 - same]:
        same += 1
    front, other = "/".join(a[: len(a) - same]), "/".join(b[: len(b) - same])
    return front + "/" * bool(front), other + "/" * bool(other)


def _stretches(pairs: Pairs, ours: Sequence[Layer], theirs: Sequence[Layer], order: Sequence[int]) -> None:
    """Pairs the rest where stretches of layers have the same shapes in the same order."""
    used = set(pairs.of.values())
    left = [i for i in range(len(ours)) if i not in pairs.of]
    free = [j for j in order if j not in used]
    # As plain numbers: the matcher compares them by the thousand.
    number: dict[object, int] = {}
    a = [number.setdefault(ours[i].kind, len(number)) for i in left]
    b = [number.setdefault(theirs[j].kind, len(number)) for j in free]
    for block in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            pairs.of[left[block.a + step]] = free[block.b + step]
    # One that can only be one other, out of order.
    used = set(pairs.of.values())
    for i in left:
        if i not in pairs.of:
            fitting = [j for j in free if j not in used and theirs[j].kind == ours[i].kind]
            rivals = [k for k in left if k not in pairs.of and ours[k].kind == ours[i].kind]
            if len(fitting) == len(rivals) == 1:
                pairs.of[i] = fitting[0]
                used.add(fitting[0])


def _alike(pairs: Pairs, ours: Sequence[Layer], theirs: Sequence[Layer], order: Sequence[int]) -> None:
    """Pairs the rest by words in their names, within equal shapes, the most alike first."""
    used = set(pairs.of.values())
    groups: dict[object, tuple[list[int], list[int]]] = {}
    for i, layer in enumerate(ours):
        if i not in pairs.of:
            groups.setdefault(layer.kind, ([], []))[0].append(i)
    for j in order:
        if j not in used and theirs[j].kind in groups:
            groups[theirs[j].kind][1].append(j)
    for mine, others in groups.values():
        if max(len(mine), len(others)) > _MOST:
            pairs.of |= dict(zip(mine, others, strict=False))
            continue
        words = {j: _words(theirs[j].path) for j in others}
        scored = sorted(
            (-_likeness(_words(ours[i].path), words[j]), abs(a / len(mine) - b / len(others)), i, j)
            for a, i in enumerate(mine)
            for b, j in enumerate(others)
        )
        for _, _, i, j in scored:
            if i not in pairs.of and j not in used:
                pairs.of[i] = j
                used.add(j)


def _words(path: str) -> frozenset[str]:
    """`encoder/layer/0/LayerNorm` as encoder, layer, 0, norm."""
    return frozenset(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", path))


def _likeness(a: frozenset[str], b: frozenset[str]) -> float:
    """The share of words in common, less one where the numbers differ."""
    numbers = {w for w in a if w.isdecimal()} != {w for w in b if w.isdecimal()}
    return len(a & b) / max(len(a | b), 1) - numbers


def _siblings(pairs: Pairs, ours: Sequence[Layer], theirs: Sequence[Layer]) -> None:
    """Equal layers side by side on both sides go by their last names, where these are the same set."""
    groups: dict[tuple[str, str, tuple[tuple[int, ...], ...]], list[int]] = {}
    for i, j in pairs.of.items():
        if i not in pairs.proven and not ours[i].made_up:
            groups.setdefault((ours[i].parent, theirs[j].parent, ours[i].kind), []).append(i)
    for members in groups.values():
        others = {theirs[pairs.of[i]].last: pairs.of[i] for i in members}
        lasts = {ours[i].last for i in members}
        if len(members) > 1 and lasts == others.keys() and not any(last.isdecimal() for last in lasts):
            for i in members:
                pairs.of[i] = others[ours[i].last]
                pairs.proven.add(i)


def _natural(path: str) -> list[tuple[int, int, str]]:
    """A key that sorts conv2 before conv10."""
    pieces = re.split(r"(\d+)", path)
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece]
