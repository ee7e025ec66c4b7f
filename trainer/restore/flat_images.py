"""Where a functional or sequential Keras model flattens an image before a layer, and of which shape."""

import math
from typing import Any

import keras

_L = keras.layers
_KEEPS_ORDER = (
    *(_L.Dropout, _L.Activation, _L.ReLU, _L.LeakyReLU, _L.PReLU, _L.ELU, _L.Softmax, _L.GaussianNoise),
    *(_L.BatchNormalization, _L.LayerNormalization, _L.Identity),
)
_MERGES = (_L.Concatenate, _L.Add, _L.Average, _L.Maximum, _L.Multiply, _L.Subtract)
_DEEPEST = 100  # layers gone back


def before_flatten(layer: Any, model: keras.Model, depth: int = 0) -> tuple[int, ...] | None:
    """The shape [..., channels] that is flattened before a layer, () where several are merged.

    None where nothing is flattened, or nothing whose order matters (one channel, one place).
    """
    found: set[tuple[int, ...]] = set()
    for before in _before(layer, model) if depth < _DEEPEST else ():
        if isinstance(before, _L.Flatten | _L.Reshape):
            shape = tuple(before.input.shape[1:])
            if len(before.output.shape) == 2 and _matters(shape):
                found.add(shape)
        elif isinstance(before, _MERGES):
            if before_flatten(before, model, depth + 1) is not None:
                found.add(())
        elif isinstance(before, _KEEPS_ORDER):
            further = before_flatten(before, model, depth + 1)
            found |= {further} if further is not None else set()
    return None if not found else found.pop() if len(found) == 1 else ()


def _matters(shape: tuple[Any, ...]) -> bool:
    known = all(isinstance(n, int) for n in shape)
    return len(shape) > 1 and known and shape[-1] > 1 and math.prod(shape[:-1]) > 1


def _before(layer: Any, model: keras.Model) -> list[Any]:
    """The layers whose outputs a layer takes, in and out of nested models."""
    found = []
    for node in getattr(layer, "_inbound_nodes", ()):
        for parent in node.parent_nodes:
            operation = parent.operation
            if isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
                found += [tensor._keras_history.operation for tensor in operation.outputs]
            elif isinstance(operation, _L.InputLayer):
                nested = [m for m in model._flatten_layers() if m is not model and _starts(m, operation)]
                found += [before for m in nested for before in _before(m, model)]
            else:
                found.append(operation)
    return list({id(operation): operation for operation in found}.values())


def _starts(model: Any, layer: Any) -> bool:
    inputs = getattr(model, "inputs", None) if isinstance(model, keras.Model) else None
    return any(tensor._keras_history.operation is layer for tensor in inputs or ())
