"""Arrays in PyTorch's layout for Keras's layers: what `--init_layout=torch` means.

A name is looked for as it is, or with dots for slashes and PyTorch's own word in the last place:
`layer1/0/conv1/kernel` is `layer1.0.conv1.weight`. What is done to the array follows from the layer of the
variable (`torch_kinds.py`) and never from a shape, so a square matrix is as safe as any other.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from trainer.model.names import ModelVariable
from trainer.readers import WeightsFile
from trainer.readers.source import Spec
from trainer.restore.flat_images import before_flatten
from trainer.restore.torch_kinds import CELLS, TRANSPOSED, Conversion, Kind, kind_of, last_word, matrix, one

if TYPE_CHECKING:
    from trainer.restore.decide import Decision


@dataclass(frozen=True)
class Found:
    """Where a variable comes from in a file of PyTorch's, or why it cannot."""

    sources: tuple[str, ...]
    conversion: Conversion | None = None
    problem: str = ""


def unstated(source: WeightsFile, layout: str) -> str:
    """The problem of a file whose layout must be stated and is not; "" for none."""
    if source.torch and not layout:
        return (
            " ! its names look like PyTorch's, which stores matrices [out, in], convolutions [out, in, ...]. "
            "Add --init_layout=torch (or, where the arrays are in Keras's layout all the same, "
            "--init_layout=keras)."
        )
    if layout and not source.neutral:
        return f" ! --init_layout={layout}: a {source.kind} is in Keras's layout. Remove it."
    return ""


def from_torch(
    variable: ModelVariable, names: Sequence[str], specs: Mapping[str, Spec], adapted: bool
) -> Found:
    """Where a variable comes from in a PyTorch state dict.

    Args:
      variable: of the model.
      names: it is looked for under, the likeliest first.
      specs: what the file holds.
      adapted: whether an `--init_adapt` rule says how to go on from there.
    """
    kind = kind_of(variable)
    if isinstance(kind, str):
        return Found((names[0],), problem=kind)
    for name in names:
        for sources, conversion in _candidates(variable, kind, name, specs):
            if all(source in specs for source in sources):
                if kind is None and len(variable.shape) > 1 and not adapted:
                    return Found(sources, problem=_unknown(variable))
                if adapted and isinstance(variable.layer, keras.layers.EinsumDense) and conversion:
                    conversion = TRANSPOSED if len(variable.shape) > 2 else conversion
                return Found(sources, conversion)
    word = variable.name.rpartition("/")[2] if kind is None else kind.words[0]
    return Found((_dotted(names[0], word),))


def flattened(model: Any, entries: Sequence["Decision"], layout: str) -> Iterator[str]:
    """The problems of arrays behind a flattened image that no `--init_adapt` speaks of."""
    open_ = {e.variable.name for e in entries if layout == "torch" and e.sources and not e.adapt}
    for variable, shape in flat_variables(model, [e.variable for e in entries if e.variable.name in open_]):
        name = re.escape(variable.name)
        rule = f"--init_adapt='{name} flattened({list(shape)})', or " if shape else "what puts it right, or "
        yield (
            f" ! {variable.name}: its layer follows a flattened image {list(shape) or '(merged)'}, "
            f"whose numbers PyTorch has in another order. Add {rule}--init_adapt='{name} as_is()' where the "
            "PyTorch model flattens channels last."
        )


def flat_variables(
    model: Any, variables: Sequence[ModelVariable]
) -> Iterator[tuple[ModelVariable, tuple[int, ...]]]:
    """(variable, shape of the image) where an image is flattened: PyTorch puts channels first, Keras last.

    Kernels of Dense layers and the vectors of normalizations; shape () where several images are merged.
    Seen in functional and sequential models only.
    """
    for variable in variables if isinstance(model, keras.Model) else ():
        layer = variable.layer
        kernel = isinstance(layer, keras.layers.Dense) and variable.keras is layer._kernel
        if kernel or isinstance(layer, _NORMALIZATIONS):
            shape = before_flatten(layer, model)
            if shape is not None:
                yield variable, shape


def _unknown(variable: ModelVariable) -> str:
    where = type(variable.layer).__name__
    name = re.escape(variable.name)
    return (
        f"how PyTorch stores a variable of {where} is not known. Say what to do: --init_adapt='{name} "
        f"transpose(1, 0)', or '{name} as_is()'."
    )


def _dotted(name: str, word: str) -> str:
    path = name.replace("/", ".").rpartition(".")[0]
    return f"{path}.{word}" if path else word


def _candidates(
    variable: ModelVariable, kind: Kind | None, name: str, specs: Mapping[str, Spec]
) -> Iterator[tuple[tuple[str, ...], Conversion | None]]:
    """(names in the file, what is done to the arrays) that a name may mean."""
    dotted = name.replace("/", ".")
    if kind is None:
        yield from (((text,), None) for text in dict.fromkeys((name, dotted)))
        return
    if isinstance(variable.layer, CELLS):
        yield from ((sources, kind.conversion) for sources in _recurrent(dotted, kind.words))
        return
    for text in dict.fromkeys((name, dotted)):
        if text in specs:
            yield (text,), kind.conversion
    if isinstance(variable.layer, keras.layers.EinsumDense):
        yield from _attention(variable, dotted)
    # Only the variable's own last word stands for PyTorch's.
    if dotted.rpartition(".")[2] == last_word(variable):
        yield tuple(_dotted(dotted, word) for word in kind.words), kind.conversion


def _attention(variable: ModelVariable, dotted: str) -> Iterator[tuple[tuple[str, ...], Conversion | None]]:
    """A projection of a MultiHeadAttention: packed with two others, or by PyTorch's name for it."""
    match = re.fullmatch(r"((?:.+\.)?)(query|key|value|output)_dense\.(kernel|bias)", dotted)
    if not match:
        return
    path, which, word = match.groups()
    kernel, shape = word == "kernel", variable.shape
    end = "weight" if kernel else "bias"

    def whole(array: np.ndarray) -> np.ndarray:
        return (matrix(array) if kernel else array).reshape(shape)

    if which == "output":
        yield (f"{path}out_proj.{end}",), Conversion("from PyTorch's attention", one(whole))
        return
    part = ("query", "key", "value").index(which)

    def packed(array: np.ndarray) -> np.ndarray:
        if array.shape[0] % 3:
            raise ValueError(f"{list(array.shape)} is not a packed query, key and value")
        return whole(np.split(array, 3)[part])

    text = f"the {which} of PyTorch's packed attention"
    yield (f"{path}in_proj_{end}",), Conversion(text, one(packed))
    yield (f"{path}{which[0]}_proj_{end}",), Conversion("from PyTorch's attention", one(whole))


def _recurrent(dotted: str, words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Names of a recurrent layer's arrays: `path.weight_ih_l0`, `..._l0_reverse`, or of a bare cell."""
    if match := re.fullmatch(r"((?:.+\.)?)(?:weight|bias)_[ih]h((?:_l\d+(?:_reverse)?)?)", dotted):
        path, ends = match[1], [match[2]]
    else:
        path, _ = _without(dotted.rpartition(".")[0], "cell")
        path, _ = _without(path, "forward_layer")
        path, backwards = _without(path, "backward_layer")
        back = "_reverse" if backwards else ""
        numbered = re.fullmatch(r"(.*?)(_l\d+)(_reverse)?", path)
        ends = [f"{numbered[2]}{numbered[3] or back}"] if numbered else [f"_l0{back}", back]
        path = numbered[1] if numbered else path
        path += "." if path else ""
    for end in ends:
        yield tuple(f"{path}{word}{end}" for word in words)


def _without(path: str, last: str) -> tuple[str, bool]:
    """A path without its last part, where that is `last`."""
    before, _, part = path.rpartition(".")
    return (before, True) if part == last else (path, False)


_NORMALIZATIONS = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)
