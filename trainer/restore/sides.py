"""A model and a source as two lists of layers in the same terms, so that they can be laid side by side."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from trainer.model.names import ModelVariable
from trainer.readers import WeightsFile
from trainer.readers.keras_names import snake
from trainer.restore.torch_kinds import CELLS, Kind, kind_of, stored_shape

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer on one side.

    Attributes:
      path: of the layer, with slashes: `layer1/0/conv1`; "" for what stands outside any.
      shapes: `{word: shape}` of its arrays, as the source stores them.
      names: `{word: name}` on its own side.
      made_up: whether Keras made up its name from its class and a count, so that it says nothing.
    """

    path: str
    shapes: Mapping[str, Shape]
    names: Mapping[str, str]
    made_up: bool = False

    @property
    def kind(self) -> tuple[Shape, ...]:
        """What another layer must have to be its equal: the shapes."""
        return tuple(sorted(self.shapes.values()))

    @property
    def last(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> str:
        """Its path without the last part."""
        return self.path.rpartition("/")[0]


def apart(ours: list[Layer], theirs: list[Layer]) -> tuple[list[Layer], list[Layer]]:
    """Both sides with what stands outside any layer taken one by one, where it is not one layer on both."""
    top = [layer.kind for side in (ours, theirs) for layer in side if not layer.path]
    if len(top) < 2 or top[0] == top[1]:
        return ours, theirs
    return _singles(ours), _singles(theirs)


def _singles(side: list[Layer]) -> list[Layer]:
    found: list[Layer] = []
    for layer in side:
        if layer.path:
            found.append(layer)
        else:
            words = layer.shapes.items()
            found += [Layer(word, {"": shape}, {"": layer.names[word]}) for word, shape in words]
    return found


def of_model(variables: Sequence[ModelVariable], layout: str) -> list[Layer]:
    """The layers of a model in its order, in the terms of a source of that layout; random state left out."""
    shapes: dict[str, dict[str, Shape]] = {}
    names: dict[str, dict[str, str]] = {}
    made_up: dict[str, bool] = {}
    for variable in variables:
        if variable.random:
            continue
        path, _, word = variable.name.rpartition("/")
        words = {word: variable.shape}
        if layout == "torch":
            path, words = _torch_variable(variable, path, word)
        for word, shape in words.items():
            shapes.setdefault(path, {})[word] = shape
            names.setdefault(path, {})[word] = variable.name
        made_up[path] = _made_up(path.rpartition("/")[2], variable.layer)
    return [Layer(path, shapes[path], names[path], made_up[path]) for path in shapes]


def of_source(source: WeightsFile, layout: str) -> list[Layer]:
    """The layers of a source in its order."""
    shapes: dict[str, dict[str, Shape]] = {}
    names: dict[str, dict[str, str]] = {}
    ends = ("in_proj_weight", "q_proj_weight")
    packed = {n.replace(".", "/").rpartition("/")[0] for n in source.specs if n.endswith(ends)}
    for name, spec in source.specs.items():
        for path, word, shape in _split(name, spec.shape, layout, packed):
            shapes.setdefault(path, {})[word] = shape
            names.setdefault(path, {})[word] = name
    return [Layer(path, shapes[path], names[path]) for path in shapes]


def _made_up(name: str, layer: object) -> bool:
    return re.sub(r"_\d+$", "", name) == snake(type(layer).__name__)


def _torch_variable(variable: ModelVariable, path: str, word: str) -> tuple[str, dict[str, Shape]]:
    """The path of the layer and `{PyTorch's word: shape}` of one variable."""
    kind = kind_of(variable)
    if not isinstance(kind, Kind):
        return path, {word: variable.shape}
    if isinstance(variable.layer, CELLS):
        path = re.sub(r"(^|/)cell$", "", path)
    shape = stored_shape(variable)
    return path, {word: shape for word in kind.words}


def _split(name: str, shape: Shape, layout: str, attentions: Collection[str]) -> list[tuple[str, str, Shape]]:
    """(path, word, shape) of a weight; three of a packed attention."""
    if layout != "torch":
        at = max(name.rfind("/"), name.rfind("."))
        return [(name[: max(at, 0)].replace(".", "/"), name[at + 1 :], shape)]
    path, _, word = name.replace(".", "/").rpartition("/")
    parent, _, last = path.rpartition("/")
    if match := re.fullmatch(r"in_proj_(weight|bias)", word):
        part = (shape[0] // 3, *shape[1:]) if shape else shape
        return [(f"{path}/{which}_dense".lstrip("/"), match[1], part) for which in ("query", "key", "value")]
    if last == "out_proj" and parent in attentions:
        return [(f"{parent}/output_dense".lstrip("/"), word, shape)]
    if match := re.fullmatch(r"((?:weight|bias)_[ih]h)(_l\d+)(_reverse)?", word):
        path += "" if match[2] == "_l0" else match[2]
        return [(path + ("/backward_layer" if match[3] else ""), match[1], shape)]
    return [(path, word, shape)]
