"""Which layers run frozen: those whose variables all are."""

from collections.abc import Sequence
from typing import Any

import keras

from trainer.model.names import ModelVariable


class FrozenLayers:
    """Runs wholly frozen Keras layers as `trainable=False`, so that BatchNormalization keeps its statistics.

    A layer without trainable variables of its own follows what its folder of the model does. Layers
    that the model itself declares not trainable stay so.
    """

    def __init__(self, model: Any, variables: Sequence[ModelVariable]) -> None:
        self._leaves: dict[int, tuple[keras.Layer, set[str]]] = {}
        self._frozen: dict[int, keras.Layer] = {}
        trainable = [v.name for v in variables if v.trainable]
        for variable in variables:
            layer = variable.layer
            if variable.random or not isinstance(layer, keras.Layer) or not layer.trainable:
                continue
            _, names = self._leaves.setdefault(id(layer), (layer, set()))
            if variable.trainable:
                names.add(variable.name)
        for layer, names in self._leaves.values():
            if not names:
                own = next(v.name for v in variables if v.layer is layer)
                folder = own.rpartition("/")[0].rpartition("/")[0]
                names.update(n for n in trainable if folder and n.startswith(folder + "/"))

    @property
    def now(self) -> frozenset[int]:
        """Which layers are frozen at present, for `set`."""
        return frozenset(self._frozen)

    def set(self, frozen: frozenset[int]) -> None:
        """Freezes just these layers, as `now` gave them."""
        for key, (layer, _) in self._leaves.items():
            layer._trainable = key not in frozen
        self._frozen = {key: layer for key, (layer, _) in self._leaves.items() if key in frozen}

    def enter(self, active: frozenset[str]) -> None:
        """Freezes the layers none of whose variables is in `active`, and lets go of the others."""
        for key, (layer, names) in self._leaves.items():
            freeze = bool(names) and not names & active
            if freeze != (key in self._frozen):
                # Not through the `trainable` setter: that one sets every layer inside as well.
                layer._trainable = not freeze
                if freeze:
                    self._frozen[key] = layer
                else:
                    del self._frozen[key]
