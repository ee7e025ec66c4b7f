"""Lookup tables and the like, which a SavedModel must be told of besides the variables."""

import inspect
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.trackable.resource import CapturableResource

_DEEPEST = 40  # objects in one another


def resources(*roots: Any) -> list[Any]:
    """The tables that models and functions hold, each once: in layers, modules, containers, or by a name.

    Args:
      roots: models, and functions, whose closures and globals are looked through as far as they name them.
    """
    found: dict[int, Any] = {}
    for root in roots:
        for resource in _walk(root, set(), 0):
            found[id(resource)] = resource
    return list(found.values())


def _walk(node: Any, seen: set[int], depth: int) -> Iterator[Any]:
    if id(node) in seen or depth > _DEEPEST:
        return
    seen.add(id(node))
    if isinstance(node, CapturableResource):
        yield node
        return
    for child in _children(node):
        yield from _walk(child, seen, depth + 1)


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, FunctionType):
        if not _foreign(node.__module__):
            named = inspect.getclosurevars(node)
            yield from [*named.nonlocals.values(), *named.globals.values()]
    elif isinstance(node, Mapping):
        yield from node.values()
    elif isinstance(node, list | tuple | set):
        yield from node
    elif isinstance(node, keras.Layer | tf.Module):
        yield from [value for name, value in vars(node).items() if not name.startswith("_obj_reference")]
    elif not isinstance(node, type | ModuleType) and type(node).__module__.startswith("keras."):
        yield from getattr(node, "__dict__", {}).values()  # what a layer keeps its parts in


def _foreign(module: str | None) -> bool:
    """Whether a function is of a library, none of whose globals are a user's tables."""
    return (module or "").partition(".")[0] in ("keras", "tensorflow", "numpy", "tf_keras")
