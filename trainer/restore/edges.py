"""Where TensorFlow itself would take a model's variables from in an object-graph checkpoint: along its edges.

A checkpoint of `tf.train.Checkpoint` stores the graph of objects that it was written from. TensorFlow
restores by walking that graph and the live objects together, along edges of equal names. Layers of a
functional Keras model have numbers for edges, so there the order counts and not the layers' names.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from trainer.model.names import ModelVariable
from trainer.readers.source import Edges


def by_edges(model: Any, variables: Sequence[ModelVariable], edges: Edges) -> dict[str, str]:
    """`{variable: name in the source}` where the edges lead to all variables of the model; else nothing.

    The model may be the root of the stored graph or one step below it (`tf.train.Checkpoint(model=...)`).
    """
    name_of = {id(v.keras if v.keras is not None else v.value): v.name for v in variables}
    wanted = {v.name for v in variables if not v.random}
    starts = [0, *edges.children[0].values()] if edges.children else []
    for start in dict.fromkeys(starts):
        found = _walk(model, start, edges, name_of)
        if wanted <= found.keys() and len(set(found.values())) == len(found):
            return {name: found[name] for name in wanted}
    return {}


def _walk(model: Any, start: int, edges: Edges, name_of: dict[int, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    stack, seen = [(model, start)], set()
    while stack:
        live, node = stack.pop()
        if id(live) in seen:
            continue
        seen.add(id(live))
        if id(live) in name_of:
            if node in edges.names:
                found[name_of[id(live)]] = edges.names[node]
            continue
        below = edges.children[node]
        for edge, child in tf.train.TrackableView.children(live).items():
            if edge in below:
                stack.append((child, below[edge]))
    return found
