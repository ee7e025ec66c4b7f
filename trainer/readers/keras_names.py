"""What Keras calls the variables that it stores by number, and its layers that it stores by class.

A `.weights.h5` file keeps a layer's variables as `vars/0`, `vars/1`, ... in the order in which the layer
made them. The names follow from the kind of layer, which is told, in this order, by the configuration
in a `.keras` file, the folder's name (Keras names it after the class), the layer's own name, and the shapes.
Where none of these tells, the number stays.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

_KERNEL = ("kernel", "bias")
_RECURRENT = ("kernel", "recurrent_kernel", "bias")
_NORM = ("gamma", "beta")
# Orders of creation in Keras; (name, option of the layer that makes it, or "").
_ORDERS: Mapping[str, tuple[str, ...]] = {
    "separable_conv1d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "lstm_cell": _RECURRENT,
    "gru_cell": _RECURRENT,
    "simple_rnn_cell": _RECURRENT,
    "conv_lstm_cell": _RECURRENT,
    "batch_normalization": (*_NORM, "moving_mean", "moving_variance"),
    "layer_normalization": _NORM,
    "group_normalization": _NORM,
    "rms_normalization": ("scale",),
    "normalization": ("mean", "variance", "count"),
    "embedding": ("embeddings",),
    "p_re_lu": ("alpha",),
    "spectral_normalization": ("vector_u",),
}
_PLAIN = re.compile(r"(einsum_)?dense|(depthwise_)?conv[123]d(_transpose)?")
_OPTIONS = {"gamma": "scale", "beta": "center", "bias": "use_bias"}


@dataclass(frozen=True)
class KerasLayer:
    """A layer as a `.keras` file's configuration describes it."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


def layers(config: Any, folder: str = "") -> dict[str, KerasLayer]:
    """`{folder in the weights file: KerasLayer}` of a functional or sequential model's configuration."""
    found: dict[str, KerasLayer] = {}
    inner = config.get("config") if isinstance(config, dict) else None
    entries = inner.get("layers") if isinstance(inner, dict) else None
    used: dict[str, int] = {}
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
            continue
        kind = snake(entry["class_name"])
        used[kind] = used.get(kind, -1) + 1
        place = f"{folder}layers/{kind}" + (f"_{used[kind]}" if used[kind] else "")
        options = entry.get("config")
        options = options if isinstance(options, dict) else {}
        name = options.get("name", entry.get("name"))
        if is_name(name):
            found[place] = KerasLayer(name, kind, options)
        found |= layers(entry, place + "/")
    return found


def variables(
    shapes: Sequence[tuple[int, ...]], hints: Sequence[str], options: Mapping[str, Any]
) -> list[str]:
    """Names of a layer's variables in their order.

    Args:
      shapes: of `vars/0`, `vars/1`, ...
      hints: what may tell the kind of layer, the surest first: `conv2d_1`, `query_dense`.
      options: the layer's configuration where it is known.
    """
    numbers = [str(index) for index in range(len(shapes))]
    order = next((order for order in map(_order, hints) if order), None)
    if order is None:
        return _by_shape(shapes) or numbers
    if options:
        order = tuple(n for n in order if options.get(_OPTIONS.get(n, ""), True) is not False)
    if len(order) == len(shapes):
        return list(order)
    if order[-1] == "bias" and len(order) - 1 == len(shapes):
        return list(order[:-1])
    if order[-2:] == ("moving_mean", "moving_variance") and 2 <= len(shapes) <= 3:
        # Without center or scale: which of the two is there cannot be told.
        return numbers[:-2] + list(order[-2:])
    return numbers


def is_name(name: object) -> TypeGuard[str]:
    """Whether a stored layer name can be part of a variable's name."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 200
        and name.isprintable()
        and "/" not in name
        and not name.isspace()
    )


def snake(class_name: str) -> str:
    """A class's folder in a weights file: `DepthwiseConv2D` -> `depthwise_conv2d`."""
    name = re.sub(r"\W+", "", class_name[:200])
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _order(hint: str) -> tuple[str, ...] | None:
    kind = re.sub(r"_\d+$", "", hint)
    if kind in _ORDERS:
        return _ORDERS[kind]
    return _KERNEL if _PLAIN.fullmatch(kind) or kind.endswith("_dense") else None


def _by_shape(shapes: Sequence[tuple[int, ...]]) -> list[str] | None:
    """A kernel with the bias of its last dimensions, a recurrent cell, or a normalization."""
    ranks = [len(shape) for shape in shapes]
    if len(shapes) == 2 and ranks[0] >= 2 and 0 < ranks[1] < ranks[0]:
        return list(_KERNEL) if shapes[1] == shapes[0][-ranks[1] :] else None
    if len(shapes) == 3 and ranks[:2] == [2, 2] and shapes[0][1] == shapes[1][1]:
        return list(_RECURRENT) if shapes[2][-1:] == shapes[0][1:] else None
    if set(ranks) == {1} and len(set(shapes)) == 1 and len(shapes) in (2, 4):
        return list(_ORDERS["batch_normalization"][: len(shapes)])
    return None
