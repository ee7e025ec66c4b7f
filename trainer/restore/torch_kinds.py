"""How PyTorch stores the variables of each kind of layer, and what makes Keras's arrays of them.

Linear [out, in]; convolutions [out, in, ...], transposed ones [in, out, ...], depthwise ones as grouped
[channels * multiplier, 1, ...]; recurrent layers [gates * units, in] with two biases. PyTorch's
documentation of `torch.nn` states each shape and, for LSTM and GRU, the order of the gates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from trainer.model.names import ModelVariable

Apply = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Conversion:
    """What is done to the stored arrays: in words, and the function of them.

    Attributes:
      by_rows: whether the function of some rows of one array is a stretch of the last axis of the whole.
    """

    text: str
    apply: Apply
    by_rows: bool = False


@dataclass(frozen=True)
class Kind:
    """How PyTorch stores a variable: the word for it, several where they become one; what is done to it."""

    words: tuple[str, ...]
    conversion: Conversion | None = None


def one(function: Callable[[np.ndarray], np.ndarray]) -> Apply:
    """A function of one array, for the first of several."""
    return lambda arrays: function(arrays[0])


def _kernel(array: np.ndarray) -> np.ndarray:
    """[out, in, ...] as [..., in, out]; of a transposed convolution, [in, out, ...] as [..., out, in]."""
    if array.ndim < 2:
        raise ValueError(f"{list(array.shape)} is not [out, in, ...]")
    return array.transpose(*range(2, array.ndim), 1, 0)


TRANSPOSED = Conversion("transposed from PyTorch's layout", one(_kernel), by_rows=True)


def last_word(variable: ModelVariable) -> str:
    """`kernel` of `block/fc/kernel`."""
    return variable.name.rpartition("/")[2]


def kind_of(variable: ModelVariable) -> Kind | str | None:
    """How PyTorch stores the variable: None where it is not known, a text where it cannot be restored."""
    layer, word = variable.layer, last_word(variable)
    if isinstance(layer, CELLS):
        return _cell(layer, word)
    for classes, words in _WORDS:
        if isinstance(layer, classes) and word in words:
            return words[word]
    if isinstance(layer, keras.layers.EinsumDense):
        return _einsum(variable, layer, word)
    if isinstance(layer, _DEPTHWISE) and word == "kernel":
        return Kind(("weight",), Conversion("from PyTorch's grouped convolution", one(_depthwise(variable))))
    return Kind(("bias",)) if isinstance(layer, _DEPTHWISE) and word == "bias" else None


def stored_shape(variable: ModelVariable) -> tuple[int, ...]:
    """The shape of PyTorch's array, of each where there are two; the variable's where it is unknown."""
    layer, word, shape = variable.layer, last_word(variable), variable.shape
    if isinstance(layer, keras.layers.EinsumDense):
        if word == "bias":
            return (math.prod(shape),)
        _, kernel, output = _subscripts(layer)
        inner = math.prod(n for n, axis in zip(shape, kernel, strict=True) if axis not in output)
        return (math.prod(shape) // inner, inner)
    if isinstance(layer, _DEPTHWISE) and word == "kernel":
        return (shape[-2] * shape[-1], 1, *shape[:-2])
    if word in ("kernel", "recurrent_kernel") and kind_of(variable) and len(shape) > 1:
        return (shape[-1], shape[-2], *shape[:-2])
    return shape[-1:] if isinstance(layer, CELLS) and word == "bias" else shape


def _subscripts(layer: Any) -> tuple[str, str, str]:
    """Input, kernel and output of an EinsumDense's equation."""
    inputs, _, rest = layer.equation.replace(" ", "").partition(",")
    kernel, _, output = rest.partition("->")
    return inputs, kernel, output


def _depthwise(variable: ModelVariable) -> Callable[[np.ndarray], np.ndarray]:
    channels, times = variable.shape[-2:]

    def convert(array: np.ndarray) -> np.ndarray:
        if array.ndim < 3 or array.shape[:2] != (channels * times, 1):
            raise ValueError(f"{list(array.shape)} is not [{channels * times}, 1, ...]")
        return array.reshape(channels, times, *array.shape[2:]).transpose(*range(2, array.ndim), 0, 1)

    return convert


def _einsum(variable: ModelVariable, layer: Any, word: str) -> Kind | str | None:
    """A Linear over several axes, such as the heads of an attention."""
    shape = variable.shape
    if word == "bias":
        return Kind(("bias",), Conversion("reshaped", one(lambda array: array.reshape(shape))))
    inputs, kernel, output = _subscripts(layer)
    contracted = [axis for axis in kernel if axis in inputs and axis not in output]
    order = [axis for axis in inputs if axis in contracted] + [axis for axis in output if axis in kernel]
    if word != "kernel" or list(kernel) != order:
        return None

    def convert(array: np.ndarray) -> np.ndarray:
        return matrix(array).reshape(shape)

    return Kind(("weight",), Conversion("transposed and reshaped from PyTorch's layout", one(convert)))


def matrix(array: np.ndarray) -> np.ndarray:
    """[out, in] as [in, out]; ValueError for anything else."""
    if array.ndim != 2:
        raise ValueError(f"{list(array.shape)} is not [out, in]")
    return array.T


CELLS = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
_BOTH = ("bias_ih", "bias_hh")


def _cell(cell: Any, word: str) -> Kind | str | None:
    """A recurrent cell: gates of an LSTM lie alike in both, a GRU's update and reset gate change places."""
    gru = isinstance(cell, keras.layers.GRUCell)
    if gru and not cell.reset_after:
        return (
            "PyTorch's GRU applies the reset gate after the product. Build the layer with reset_after=True; "
            "there are no weights that make the other kind equal."
        )

    def gates(array: np.ndarray) -> np.ndarray:
        if not gru:
            return array
        if array.shape[0] % 3:
            raise ValueError(f"{list(array.shape)} does not hold three gates")
        reset, update, new = np.split(array, 3)
        return np.concatenate([update, reset, new])

    if word in ("kernel", "recurrent_kernel"):
        text = "transposed, gates in Keras's order" if gru else "transposed from PyTorch's layout"
        conversion = Conversion(text, one(lambda array: matrix(gates(array))))
        return Kind(("weight_ih" if word == "kernel" else "weight_hh",), conversion)
    if word != "bias":
        return None
    if gru:
        return Kind(
            _BOTH, Conversion("both biases, gates in Keras's order", lambda b: np.stack(list(map(gates, b))))
        )
    return Kind(_BOTH, Conversion("both biases summed", _summed))


def _summed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The sum in float64, at the width that is stored."""
    return np.sum([array.astype(np.float64) for array in arrays], axis=0).astype(arrays[0].dtype)


_L = keras.layers
_BIAS = {"bias": Kind(("bias",))}
_LINEAR = {
    "kernel": Kind(("weight",), Conversion("transposed from PyTorch's layout", one(matrix), by_rows=True)),
    **_BIAS,
}
_CONVOLUTION = {"kernel": Kind(("weight",), TRANSPOSED), **_BIAS}
_NORM = {"gamma": Kind(("weight",)), "beta": Kind(("bias",))}
_STATISTICS = {"moving_mean": Kind(("running_mean",)), "moving_variance": Kind(("running_var",))}
_DEPTHWISE = (_L.DepthwiseConv1D, _L.DepthwiseConv2D)
_WORDS: tuple[tuple[Any, Mapping[str, Kind]], ...] = (
    (_L.Dense, _LINEAR),
    ((_L.Conv1D, _L.Conv2D, _L.Conv3D), _CONVOLUTION),
    ((_L.Conv1DTranspose, _L.Conv2DTranspose, _L.Conv3DTranspose), _CONVOLUTION),
    (_L.BatchNormalization, _NORM | _STATISTICS),
    ((_L.LayerNormalization, _L.GroupNormalization), _NORM),
    (_L.RMSNormalization, {"scale": Kind(("weight",))}),
    (_L.Embedding, {"embeddings": Kind(("weight",))}),
)
