"""Names for the variables of a TF2 object graph, from the graph stored in the checkpoint itself.

The rule:
1. A variable is named by the attributes that lead to it from the root, leading underscores dropped:
   `encoder/conv/kernel`, `blocks/0/bias`. Of several ways the first in the file's order counts; the
   ways through optimizers, metrics and Keras's own books (`keras_api`, ...) do not.
2. Keras keeps a functional model's layers by number. Such a layer gets the name that stands in its
   variables' stored names (`full_name`); a nested model whose name is not stored there gets none.
3. Variables that only a list such as `variables` leads to (an exported model) keep their stored name.
4. A first component `model`, `net`, `network` or `module` that all variables share is dropped: it is
   the word in `tf.train.Checkpoint(model=...)`.
5. Where two variables would get one name, both keep the names of the file's keys.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.readers.source import Edges, Spec, is_state, unique

_VALUE = "VARIABLE_VALUE"
_SUFFIX = "/.ATTRIBUTES/" + _VALUE
_DEEPEST = 64  # of attributes within attributes; honest models stay far below
_WRAPPERS = ("model", "net", "network", "module")
# Lists of variables that Keras and SavedModel keep beside the attributes.
_COLLECTIONS = ("variables", "trainable_variables", "non_trainable_variables", "_all_variables")
_BOOKS = frozenset(
    (
        *_COLLECTIONS,
        *"keras_api signatures regularization_losses _tracked _inbound_nodes _outbound_nodes _losses "
        "_losses_override optimizer _optimizer metrics _metrics compiled_metrics _compile_metrics "
        "_loss_tracker layer_metrics".split(),
    )
)
_LAYER_LISTS = frozenset(("_operations", "_layers", "_self_tracked_trackables"))
_NUMBERED = re.compile(r"layer(_with_weights)?-\d+")


@dataclass(frozen=True)
class _Leaf:
    """A variable: the way to it (a string, or the node of a layer known by number), its stored name."""

    steps: tuple[str | int, ...]
    full_name: str
    key: str


def names(graph: Any, held: Mapping[str, Spec]) -> tuple[dict[str, str], list[str]]:
    """`({name: key} of the weights, names of everything else)` of a `TrackableObjectGraph`.

    Args:
      graph: the parsed proto.
      held: what the checkpoint holds, by its own keys.

    Raises:
      ValueError: a graph that refers to nodes or tensors that are not there, or is absurdly deep.
    """
    nodes = graph.nodes
    visited, leaves = _walk(nodes)
    leaves += _collected(nodes, visited, leaves)
    layer_names = _layer_names(leaves)
    pairs: list[tuple[str, str]] = []
    for leaf in leaves:
        if leaf.key not in held:
            if leaf.key.endswith(_SUFFIX):
                raise ValueError(f"the object graph names {leaf.key!r}, which is not there")
            continue
        steps = (layer_names[step] if isinstance(step, int) else step for step in leaf.steps)
        pairs.append(("/".join(step for step in steps if step), leaf.key.removesuffix(_SUFFIX)))
    first = {n.partition("/")[0] for n, raw in pairs if not is_state(n, held[_key(raw)])}
    if len(first) == 1 and (wrapper := first.pop()) in _WRAPPERS:
        pairs = [(name.removeprefix(wrapper + "/"), raw) for name, raw in pairs]
    named = {name: _key(raw) for name, raw in unique(pairs).items()}
    weights = {name: key for name, key in named.items() if not is_state(name, held[key])}
    taken = set(weights.values())
    state = [key.removesuffix(_SUFFIX) for key in held if key not in taken]
    return weights, state


def edges(graph: Any, weights: Mapping[str, str]) -> Edges:
    """The graph itself, for those who go along its edges.

    Args:
      graph: the parsed proto.
      weights: `{name: key}` as `names` gives it.
    """
    called = {key: name for name, key in weights.items()}
    children = tuple({c.local_name: c.node_id for c in node.children} for node in graph.nodes)
    if any(not 0 <= child < len(children) for node in children for child in node.values()):
        raise ValueError("the object graph refers to nodes that are not there")
    found = {
        number: called[value.checkpoint_key]
        for number, node in enumerate(graph.nodes)
        for value in node.attributes
        if value.checkpoint_key in called
    }
    return Edges(children, found)


def _key(raw: str) -> str:
    return raw + _SUFFIX


def _walk(nodes: Any) -> tuple[list[int], list[_Leaf]]:
    """Depth first along attributes, each node once; circles end where they began."""
    visited: dict[int, None] = {}
    leaves: list[_Leaf] = []
    stack: list[tuple[int, tuple[str | int, ...], bool]] = [(0, (), False)]
    while stack:
        number, steps, numbered = stack.pop()
        if number in visited:
            continue
        if len(steps) > _DEEPEST:
            raise ValueError(f"the object graph is more than {_DEEPEST} levels deep")
        node = nodes[number]
        if _is_optimizer(node):
            continue
        visited[number] = None
        leaves += _values(node, steps)
        below = list(_children(node, numbered))
        stack += [(child, steps + step, listed) for step, child, listed in reversed(below)]
    return list(visited), leaves


def _children(node: Any, numbered: bool) -> Iterator[tuple[tuple[str | int, ...], int, bool]]:
    """(step of the way, node, whether that node is a numbered list of layers)."""
    for child in node.children:
        name = child.local_name
        if name in _BOOKS:
            continue
        if name in _LAYER_LISTS:
            yield (), child.node_id, True
        elif numbered or _NUMBERED.fullmatch(name):
            yield (child.node_id,), child.node_id, False
        elif name == "_functional":
            yield (), child.node_id, False
        else:
            yield (name.lstrip("_") or name,), child.node_id, False


def _is_optimizer(node: Any) -> bool:
    below = {child.local_name for child in node.children}
    return (
        len(node.slot_variables) > 0
        or ("_iterations" in below and not below.isdisjoint(("_learning_rate", "_variables")))
        or {"iter", "learning_rate"} <= below
    )


def _values(node: Any, steps: tuple[str | int, ...]) -> list[_Leaf]:
    return [
        _Leaf(steps, value.full_name.removesuffix(":0"), value.checkpoint_key)
        for value in node.attributes
        if value.name == _VALUE
    ]


def _collected(nodes: Any, visited: list[int], leaves: list[_Leaf]) -> list[_Leaf]:
    """Variables that only a list such as `variables` leads to, under their stored names."""
    taken = {leaf.key for leaf in leaves}
    full_names: set[str] = set()
    found: list[_Leaf] = []
    for wanted in _COLLECTIONS:
        for number in visited:
            for child in nodes[number].children:
                if child.local_name != wanted:
                    continue
                for item in nodes[child.node_id].children:
                    for leaf in _values(nodes[item.node_id], ()):
                        # An exported model holds `_all_variables` as copies of `variables`.
                        copy = wanted == "_all_variables" and leaf.full_name in full_names
                        if leaf.key not in taken and not copy:
                            taken.add(leaf.key)
                            full_names.add(leaf.full_name)
                            name = leaf.full_name or leaf.key.removesuffix(_SUFFIX)
                            found.append(_Leaf((name,), leaf.full_name, leaf.key))
    return found


def _layer_names(leaves: list[_Leaf]) -> dict[int, str]:
    """The name of each numbered layer, where all its variables' stored names agree on one."""
    agreed: dict[int, set[str]] = {}
    for leaf in leaves:
        parts = leaf.full_name.split("/")
        numbered = [position for position, step in enumerate(leaf.steps) if isinstance(step, int)]
        for position in numbered:
            from_end = len(leaf.steps) - position
            name = parts[-from_end] if from_end <= len(parts) else ""
            if not name and position == numbered[-1] and len(parts) > 1:
                # A cell or the like inside that the stored name leaves out: `lstm/kernel` at `cell/kernel`.
                name = parts[0]
            step = leaf.steps[position]
            assert isinstance(step, int)
            agreed.setdefault(step, set()).add(name)
    return {node: next(iter(found)) if len(found) == 1 else "" for node, found in agreed.items()}
