"""A forward pass as a function: what Keras layers write in it, and draw in it, comes back as values."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.model.names import ModelVariable, is_random


class Scope(keras.StatelessScope):
    """The scope of one pass: no variable of Keras is written in it, and none is drawn from.

    A weight that trains and that a layer assigns in its `call` (spectral normalisation) has the assigned
    value from there on, as under Keras's `fit`: the gradient is taken at that value and belongs to the
    variable; none goes through the assignment. A weight that does not train keeps its value.

    Seed generators of the model start from `key` and their name, others from `key`, `what` and the order of
    their first use: nothing that is drawn depends on what was drawn before this pass.

    Args:
      variables: of the model.
      key: int32 [2], of this pass.
      active: names of the weights that train.
      carried: by variable name, a value to start from in the place of the variable's own.
      what: `loss` or `preprocess`, so that they do not draw the same numbers.

    Attributes:
      strange: paths of variables outside of the model that the pass would write, for `checks` to refuse.
      buried: names of variables that it assigns inside of an inner graph, the same.
    """

    def __init__(
        self,
        variables: Sequence[ModelVariable],
        key: tf.Tensor,
        active: frozenset[str] = frozenset(),
        carried: Mapping[str, tf.Tensor] | None = None,
        what: str = "loss",
    ) -> None:
        self._known = {id(v.keras): v for v in variables if v.keras is not None}
        self._active, self._key, self._what = active, key, what
        self._graph = tf.compat.v1.get_default_graph()
        self._strangers: list[Any] = []  # generators that are not the model's; kept, as an id lasts a life
        self.strange: list[str] = []
        self.buried: list[str] = []
        values = carried or {}
        mapping = [
            (v.keras, self._start(v, values[v.name]))
            for v in variables
            if v.name in values and v.keras is not None
        ]
        super().__init__(mapping, collect_losses=True)

    def assigned(self, variable: ModelVariable) -> tf.Tensor | None:
        """The value that the pass leaves in a variable; None where it writes none."""
        return self.state_mapping.get(id(variable.keras))

    def get_current_value(self, variable: Any) -> tf.Tensor | None:
        """As Keras's own; a seed generator that is used for the first time starts from the pass's key."""
        value = super().get_current_value(variable)
        if value is None and is_random(variable):
            own = self._known.get(id(variable))
            name = own.name if own else f"{self._what} {len(self._strangers)}"
            if own is None:
                self._strangers.append(variable)
            with self._graph.as_default():  # whichever inner graph uses it first
                value = tf.cast(start_of(self._key, name), variable.dtype)
            self.state_mapping[id(variable)] = value
        return value

    def add_update(self, update: tuple[Any, Any]) -> None:
        """As Keras's own, but for weights; see the class."""
        variable, value = update
        if is_random(variable):
            super().add_update(update)
            return
        own = self._known.get(id(variable))
        if own is None:
            self.strange.append(variable.path)
            super().add_update(update)
            return
        if tf.compat.v1.get_default_graph() is not self._graph:
            self.buried.append(own.name)  # no value comes out of an inner graph
            return
        if not own.trainable:
            super().add_update(update)
        elif own.name in self._active:
            super().add_update((variable, self._start(own, value)))

    def _start(self, variable: ModelVariable, value: tf.Tensor) -> tf.Tensor:
        """`value` in the place of the variable's own; a weight's gradient still is the variable's."""
        return _in_place_of(variable.value, value) if variable.name in self._active else value


def _in_place_of(variable: tf.Variable, value: tf.Tensor) -> tf.Tensor:
    """`value`, with the gradient of `variable`."""

    @tf.custom_gradient
    def replaced(_: tf.Tensor) -> Any:
        return tf.identity(value), lambda slope: slope

    return replaced(variable.read_value())


def start_of(key: tf.Tensor, name: str) -> tf.Tensor:
    """Start state of a Keras seed generator, uint32 [2], from a pass's key [2] and the generator's name."""
    folded = tf.random.experimental.stateless_fold_in(key, zlib.crc32(name.encode()) >> 1)
    return tf.bitcast(tf.cast(folded, tf.int32), tf.uint32)
