"""Which layers run frozen: those whose variables all are, and those whose state is."""

from collections.abc import Sequence

import keras

from trainer.model.names import ModelVariable


def trained_in(owner: object, variables: Sequence[ModelVariable]) -> frozenset[str]:
    """Names of the trainable variables of a layer or module: its own, else of those inside it."""
    own = frozenset(v.name for v in variables if v.trainable and v.layer is owner)
    inside = (v.name for v in variables if v.trainable and any(layer is owner for layer in v.above))
    return own or frozenset(inside)


class FrozenLayers:
    """Runs frozen Keras layers as `trainable=False`, so that BatchNormalization keeps its statistics.

    Frozen is a layer that has variables to train and none of them trains, or state of which some does not
    move. Layers that the model itself declares not trainable stay so.
    """

    def __init__(self, variables: Sequence[ModelVariable]) -> None:
        self._layers: dict[int, tuple[keras.Layer, frozenset[str], set[str]]] = {}
        self._frozen: set[int] = set()
        for v in variables:
            layer = v.layer
            if v.random or not isinstance(layer, keras.Layer) or not layer.trainable:
                continue
            if id(layer) not in self._layers:
                self._layers[id(layer)] = layer, trained_in(layer, variables), set()
            if not v.trainable:
                self._layers[id(layer)][2].add(v.name)

    @property
    def now(self) -> frozenset[int]:
        """Which layers are frozen at present, for `set`."""
        return frozenset(self._frozen)

    def set(self, frozen: frozenset[int]) -> None:
        """Freezes just these layers, as `now` gave them."""
        for key, (layer, _, _) in self._layers.items():
            layer._trainable = key not in frozen
        self._frozen = {key for key in self._layers if key in frozen}

    def enter(self, active: frozenset[str], still: frozenset[str] = frozenset()) -> None:
        """Freezes the layers of a phase, and lets go of the others.

        Args:
          active: names of the variables that train.
          still: names of the state that does not move.
        """
        for key, (layer, trained, state) in self._layers.items():
            freeze = bool(state & still) or (bool(trained) and not trained & active)
            if freeze != (key in self._frozen):
                # Not through the `trainable` setter: that one sets every layer inside as well.
                layer._trainable = not freeze
                self._frozen ^= {key}
