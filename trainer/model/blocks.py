"""The blocks of a model: siblings that it numbers, as its variables' names tell.

`blocks/0/..`, `blocks/1/..` (a list of layers), `block_0/..`, `block_1/..` (layers with numbers, Keras's
own among them: `dense`, `dense_1`), `block_1_expand/..`, `block_1_project/..` (several that share one). The
outermost numbering counts; what lies inside a block belongs to it. Long tables are folded by them.
"""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

MOST_ROWS = 26  # of a table that is to fit on one screen with what stands around it

# Not the 2 of conv2d: that is no number of a sibling.
_NUMBER = re.compile(r"\d+(?!(?:(?<=onv\d)|(?<=orm\d))[dD](?![A-Za-z]))")


@dataclass(frozen=True)
class Block:
    """One of several numbered siblings.

    Attributes:
      series: what the siblings share, such as `trunk/block_`.
      number: what tells them apart; -1 for the first of `dense`, `dense_1`.
    """

    series: str
    number: int


def blocks(names: Iterable[str]) -> dict[str, Block | None]:
    """`{variable name: the outermost block it lies in}`; None where it lies in none.

    Example:
      >>> found = blocks(["stem/kernel", "block_1_in/kernel", "block_1_out/kernel", "block_2/kernel"])
      >>> [block and block.number for block in found.values()]
      [None, 1, 1, 2]
    """
    paths = {name: name.split("/")[:-1] for name in names}
    children: dict[str, dict[str, None]] = {}
    for path in paths.values():
        for i, segment in enumerate(path):
            children.setdefault("/".join(path[:i]), {})[segment] = None
    numbered = {node: _numbered(list(segments)) for node, segments in children.items()}
    return {name: _outermost(path, numbered) for name, path in paths.items()}


def _outermost(path: Sequence[str], numbered: dict[str, dict[str, tuple[str, int]]]) -> Block | None:
    for i, segment in enumerate(path):
        if found := numbered["/".join(path[:i])].get(segment):
            return Block("/".join([*path[:i], found[0]]), found[1])
    return None


def _numbered(siblings: Sequence[str]) -> dict[str, tuple[str, int]]:
    """`{sibling: (what stands before its number, the number)}` of those of which there are several."""
    places = {
        s: [(s[: match.start()], int(match[0]), match.end() == len(s)) for match in _NUMBER.finditer(s)]
        for s in siblings
    }
    whole = {prefix for found in places.values() for prefix, _, ends in found if ends}
    series: dict[str, set[int]] = {}
    for sibling in siblings:
        if f"{sibling}_" in whole:  # Keras's first of `dense`, `dense_1`
            places[sibling].append((f"{sibling}_", -1, True))
        for prefix, number, _ in places[sibling]:
            series.setdefault(prefix, set()).add(number)
    result = {}
    for sibling, found in places.items():
        several = [(prefix, number) for prefix, number, _ in found if len(series[prefix]) > 1]
        if several:
            result[sibling] = several[0]
    return result


# Folding


def fold(
    names: Sequence[str], kinds: Sequence[Hashable | None], most: int | None = MOST_ROWS
) -> list[tuple[str, list[int]]]:
    """Rows of a table of variables, folded until there are at most `most`: (label, which of the rows).

    Tried in turn: no folding, by layer (`enc/conv/*`), by block (`block_3_*`, `blocks/3/*`), by all numbered
    siblings together (`blocks/*`) and outermost folder, everything (`*`). Rows of different kinds never fold.

    Args:
      names: of variables, in order.
      kinds: for each, what must be the same in rows that fold; None goes with any.
      most: None for no folding at all.
    """
    found = blocks(names)
    folds: list[tuple[str, list[int]]] = []
    for labels in _labels(names, found):
        rows: dict[tuple[str, Hashable], list[int]] = {}
        first = {
            label: kind for label, kind in list(zip(labels, kinds, strict=True))[::-1] if kind is not None
        }
        for i, (label, kind) in enumerate(zip(labels, kinds, strict=True)):
            rows.setdefault((label, first.get(label) if kind is None else kind), []).append(i)
        folds = [(names[own[0]] if len(own) == 1 else label, own) for (label, _), own in rows.items()]
        if most is None or len(folds) <= most:
            break
    return folds


def _labels(names: Sequence[str], found: dict[str, Block | None]) -> Iterable[list[str]]:
    layers = [f"{name.rpartition('/')[0]}/*" if "/" in name else name for name in names]
    yield list(names)
    yield layers
    shown: dict[Block, str] = {}
    for name in names:
        if block := found[name]:
            shown.setdefault(block, _label(name, block))
    yield [shown[b] if (b := found[name]) else layer for name, layer in zip(names, layers, strict=True)]
    yield [
        f"{b.series}*" if (b := found[name]) else f"{name.split('/')[0]}/*" if "/" in name else name
        for name in names
    ]
    yield ["*"] * len(names)


def _label(name: str, block: Block) -> str:
    """`blocks/3/*`, or `block_3_*` where several siblings may share the number."""
    folders, depth = name.split("/"), block.series.count("/")
    segment, start = folders[depth], len(block.series.rpartition("/")[2])
    match = _NUMBER.match(segment, start) if block.number >= 0 else None
    end = match.end() if match else len(segment)
    between = "/" if end == len(segment) else "_" if segment[end] == "_" else ""
    return f"{'/'.join([*folders[:depth], segment[:end]])}{between}*"


def together(cells: Sequence[str]) -> str:
    """What a folded row shows of a column: the one value, else the common beginning, else both ends.

    Example:
      >>> together(["0.1", "0.1"]), together(["enc/a/w", "enc/b/w"]), together(["0.1", "0.5"])
      ('0.1', 'enc/*', '0.1..0.5')
    """
    if len(set(cells)) == 1:
        return cells[0]
    first, last = min(cells), max(cells)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    if slash := first[:same].rfind("/") + 1:
        return f"{first[:slash]}*"
    return f"{cells[0]}..{cells[-1]}"


def folded(names: Sequence[str], most: int = 12) -> str:
    """Names for a sentence, at most `most`, folded by layer or block: `head/kernel, blocks/3/* (12)`."""
    folds = fold(names, [None] * len(names), most)
    return ", ".join(f"{label} ({len(own)})" if len(own) > 1 else label for label, own in folds)
