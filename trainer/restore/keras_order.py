"""What Keras's own `load_weights` would take from one of Keras's files, found without reading or assigning.

A `.weights.h5` file stores positions: folders number the layers of a class in the order of `model.layers`,
and a layer's variables in the order in which it made them. What goes where is therefore a matter of Keras's
own walk over the model, so that walk itself is run here: on a store that hands out placeholders of a
scratch graph, in a `StatelessScope`, which keeps every assignment from the model. Each assigned placeholder
is a path in the file.

A legacy `.h5` has names of layers: `by_name` is Keras's `load_weights(by_name=True)`, `by_order` the
plain one.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import tensorflow as tf
from keras.src.saving import saving_lib

from trainer.model.finalize import finalize
from trainer.model.names import ModelVariable
from trainer.readers.source import KerasFile, np_dtype

_OLD = "_layer_checkpoint_dependencies"  # where Keras 2.12 and 2.13 kept what is in `layers` now
_LONGEST = 300  # characters of Keras's reason for a refusal


@dataclass(frozen=True)
class Order:
    """Where Keras would take each variable from.

    Attributes:
      places: `{name of the variable: path in the file}`.
      refusal: Keras's reason, where it refuses the file for the model; "" where it loads it.
    """

    places: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""


def by_position(model: Any, variables: Sequence[ModelVariable], file: KerasFile) -> Order:
    """What `model.load_weights(file)` would load from a `.weights.h5` file, or the one in a `.keras` file.

    Where Keras refuses, `places` are those of the layers that fit, as its `skip_mismatch=True` has them.
    """
    if not isinstance(model, keras.Model):
        return Order(refusal="the file is that of a Keras model, and this is none")
    failed: set[int] = set()
    errors: dict[int, tuple[Any, Exception]] = {}
    with tf.Graph().as_default(), keras.StatelessScope() as scope, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = _Store(file)
        with _noted(variables) as noted:
            saving_lib._load_state(
                model,
                weights_store=store,
                assets_store=None,
                inner_path="",
                visited_saveables=set(),
                failed_saveables=failed,
                error_msgs=errors,
            )
    finalize(variables)  # a layer may have copied a placeholder
    lost = {id(v) for saveable, _ in errors.values() for v in _own(saveable)}
    places = {}
    for variable in variables:
        value = noted.get(variable.name)
        if variable.keras is not None:
            value = scope.get_current_value(variable.keras)
        path = store.path(value)
        if path is not None and id(variable.keras) not in lost:
            places[variable.name] = path
    return Order(places, _reason(errors) if failed else "")


@contextmanager
def _noted(variables: Sequence[ModelVariable]) -> Iterator[dict[str, Any]]:
    """`{variable: placeholder}` of plain `tf.Variable`s, which no scope keeps: those of tf-idf lookups."""
    noted: dict[str, Any] = {}
    plain = [v for v in variables if v.keras is None and isinstance(v.layer, keras.Layer)]

    def load(layer: Any, store: Any) -> None:
        for v in plain:
            key = v.name.rpartition("/")[2]
            if v.layer is layer and key in store:
                noted[v.name] = store[key]

    layers = {id(v.layer): v.layer for v in plain}.values()
    for layer in layers:
        layer.load_own_variables = partial(load, layer)
    try:
        yield noted
    finally:
        for layer in layers:
            del layer.load_own_variables


def by_name(model: Any, variables: Sequence[ModelVariable], file: KerasFile) -> dict[str, str]:
    """`{variable: path}` of the layers of a legacy file that have the name and the shapes of the model's.

    As `load_weights(by_name=True)`: within a layer, in order. Layers that do not fit are left out.
    """
    if not isinstance(model, keras.Model):
        return {}
    layers: dict[str, list[Any]] = {}
    for layer in model.layers:
        layers.setdefault(layer.name, []).append(layer)
    pairs: list[tuple[Any, str]] = []
    for name, paths in file.layers:
        for layer in layers.get(name, []):
            pairs += _zipped(_legacy_weights(layer), paths, file) or []
    own = dict(file.layers).get("top_level_model_weights", ())
    pairs += _zipped([*model._trainable_variables, *model._non_trainable_variables], own, file) or []
    return _named(variables, pairs)


def by_order(model: Any, variables: Sequence[ModelVariable], file: KerasFile) -> Order:
    """What plain `load_weights` would load from a legacy file: by order, whatever the names are."""
    if not isinstance(model, keras.Model):
        return Order(refusal="the file is that of a Keras model, and this is none")
    ours = [w for layer in model.layers if (w := _legacy_weights(layer))]
    theirs = [paths for name, paths in file.layers if paths and name != "top_level_model_weights"]
    if len(ours) != len(theirs):
        return Order(refusal=f"the model has {len(ours)} layers with weights, the file {len(theirs)}")
    pairs: list[tuple[Any, str]] = []
    for number, (weights, paths) in enumerate(zip(ours, theirs, strict=True)):
        zipped = _zipped(weights, paths, file)
        if zipped is None:
            return Order(refusal=f"the shapes of layer {number} differ")
        pairs += zipped
    return Order(_named(variables, pairs))


def _legacy_weights(layer: Any) -> list[Any]:
    """A layer's weights in the order of legacy files."""
    return [*layer.trainable_weights, *layer.non_trainable_weights]


def _zipped(weights: Sequence[Any], paths: Sequence[str], file: KerasFile) -> list[tuple[Any, str]] | None:
    """Weights with their paths, None where number or shapes differ."""
    fits = len(weights) == len(paths) and all(
        path in file.specs and tuple(weight.shape) == file.specs[path].shape
        for weight, path in zip(weights, paths, strict=True)
    )
    return list(zip(weights, paths, strict=True)) if fits else None


def _named(variables: Sequence[ModelVariable], pairs: Sequence[tuple[Any, str]]) -> dict[str, str]:
    path = {id(weight): place for weight, place in pairs}
    return {v.name: path[id(v.keras)] for v in variables if v.keras is not None and id(v.keras) in path}


def _own(saveable: Any) -> list[Any]:
    """The variables of a layer itself, not those of layers inside."""
    if isinstance(saveable, keras.Layer):
        return [*saveable._trainable_variables, *saveable._non_trainable_variables]
    return list(getattr(saveable, "variables", ()))


def _reason(errors: Mapping[int, tuple[Any, Exception]]) -> str:
    saveable, error = next(iter(errors.values()))
    name = getattr(saveable, "name", type(saveable).__name__)
    return f"{name}: " + " ".join(str(error).split())[:_LONGEST]


class _Store(saving_lib.H5IOStore):
    """A file as Keras sees it, with placeholders for arrays."""

    def __init__(self, file: KerasFile) -> None:
        self._specs = file.specs
        parents = (part for path in (*file.groups, *file.specs) for part in _parents(path))
        self._groups = file.groups | set(parents)
        self._here: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._below: dict[str, dict[str, str]] = {}
        for path in file.specs:
            folder, _, key = path.rpartition("/")
            self._below.setdefault(folder, {})[key] = path

    def __bool__(self) -> bool:
        return True

    def get(self, path: str) -> "_Store":
        """The variables of the layer at `path`; none where there is no such folder."""
        folder = f"{path}/vars" if path else "vars"
        if path and folder not in self._groups and _OLD in self._groups:
            folder = path.replace("layers", _OLD) + "/vars"
        self._here = self._below.get(folder, {})
        return self

    def has_path(self, path: str) -> bool:
        """Whether the file has a folder there."""
        return path in self._groups

    def __len__(self) -> int:
        return len(self._here)

    def keys(self) -> Any:
        """Numbers of the layer's variables."""
        return self._here.keys()

    def __contains__(self, key: object) -> bool:
        return key in self._here

    def __iter__(self) -> Iterator[str]:
        return iter(self._here)

    def __getitem__(self, key: str) -> tf.Tensor:
        path = self._here[key]
        spec = self._specs[path]
        placeholder = tf.compat.v1.placeholder(tf.as_dtype(np_dtype(spec.dtype)), spec.shape)
        self._paths[placeholder.op.name] = path
        return placeholder

    def path(self, value: Any) -> str | None:
        """The path whose placeholder was assigned, through a change of width at most."""
        if not tf.is_tensor(value):
            return None
        op = value.op
        while op.type in ("Cast", "Identity"):
            op = op.inputs[0].op
        return self._paths.get(op.name)


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts)))
