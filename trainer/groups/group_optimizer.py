"""The optimizer of one group; its state is known by the name of the variable it belongs to."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.errors import UserError
from trainer.groups.phases import Group
from trainer.model.names import ModelVariable


class GroupOptimizer:
    """The Keras optimizer of one group: built over its variables, stepped one variable at a time.

    Weight decay is decoupled (Loshchilov & Hutter 2019), for every optimizer that is given one; it and
    `--layer_decay` (Clark et al. 2020; Bao et al. 2022) are done here, as Keras does them in `apply`.

    Attributes:
      group: the group.
      keras: the Keras optimizer. Its learning rate is not used: rates are given to `update`.
    """

    def __init__(
        self,
        group: Group,
        optimizer: keras.optimizers.Optimizer,
        multipliers: Mapping[str, float],
        no_decay: frozenset[str],
    ) -> None:
        self.group = group
        self.keras = optimizer
        self._multipliers = multipliers
        self._no_decay = no_decay

    def build(self, only_shapes: bool = False) -> None:
        """Creates the state. Call it inside the strategy's scope.

        Args:
          only_shapes: for a plan: state that has a size and, where Keras can do without, no values.

        Raises:
          UserError: an optimizer that cannot train these variables.
        """
        # These two make state with values of its own, which Keras refuses to do statelessly.
        eager = not only_shapes or isinstance(self.keras, keras.optimizers.Adafactor | keras.optimizers.Nadam)
        scope = contextlib.nullcontext() if eager else keras.StatelessScope(initialize_variables=False)
        try:
            with scope:
                self.keras.build([v.handle for v in self.group.variables])
        except AttributeError as error:
            raise UserError(
                f"{self.group.rule.flag}: {type(self.keras).__name__} needs variables of Keras layers, and "
                f"{self.group.variables[0].name} is a plain tf.Variable ({error}). Use another optimizer."
            ) from None

    def slots(self) -> dict[str, dict[str, keras.Variable]]:
        """`{variable name: {slot: state}}`; what a group's variables share stands under each of them."""
        tracked = {id(v) for v in self.keras.variables}
        result: dict[str, dict[str, keras.Variable]] = {v.name: {} for v in self.group.variables}
        for attribute, value in vars(self.keras).items():
            slot = attribute.strip("_")
            if isinstance(value, keras.Variable) and slot != "learning_rate":
                for own in result.values():
                    own[slot] = value
            elif isinstance(value, list) and slot not in ("variables", "trainable_variables"):
                for name, item in zip(result, value, strict=False):
                    if id(item) in tracked and isinstance(item, keras.Variable):
                        result[name][slot] = item
        return result

    def begin(self) -> None:
        """What the optimizer does once a step, before its variables. Cross-replica context."""
        if isinstance(self.keras, keras.optimizers.Nadam):
            # Keras keeps this product in the method that wraps `update_step`, not in it.
            product = self.keras._u_product.value
            step = tf.cast(self.keras.iterations.value + 1, product.dtype)
            slow = tf.pow(tf.constant(0.96, product.dtype), step)
            product.assign(product * self.keras.beta_1 * (1.0 - 0.5 * slow))

    def update(self, variable: ModelVariable, value: tf.Variable, gradient: Any, rate: tf.Tensor) -> None:
        """Moves one variable, inside `strategy.extended.update`: weight decay, the Keras step, constraint.

        Args:
          variable: one of the group's.
          value: its copy on this device.
          gradient: `tf.Tensor` or `tf.IndexedSlices` of the variable's shape.
          rate: scalar; the group's learning rate at this step.
        """
        rate = tf.cast(rate * self.multiplier(variable), variable.dtype)
        decay = self.weight_decay(variable)
        if decay:
            value.assign_sub(value * tf.constant(decay, variable.dtype) * rate)
        self.keras.update_step(gradient, value, rate)
        constraint = getattr(variable.keras, "constraint", None)
        if constraint is not None:
            value.assign(constraint(value))

    def end(self) -> None:
        """Counts the step. Cross-replica context."""
        self.keras.iterations.value.assign_add(1)

    def multiplier(self, variable: ModelVariable) -> float:
        """What `--layer_decay` makes of the group's rate for this variable."""
        return self._multipliers.get(variable.name, 1.0)

    def weight_decay(self, variable: ModelVariable) -> float:
        """The decay that this variable gets: 0 where the optimizer or `--no_decay` says none."""
        if variable.name in self._no_decay:
            return 0.0
        if isinstance(self.keras, keras.optimizers.Muon) and self.keras._should_use_adamw(variable.handle):
            return float(self.keras.adam_weight_decay or 0.0)
        return float(self.keras.weight_decay or 0.0)


def state_bytes(optimizers: Iterable[GroupOptimizer]) -> dict[str, int]:
    """Bytes of optimizer state by variable name; what a group shares is counted at its first one."""
    seen: set[int] = set()
    result = {}
    for optimizer in optimizers:
        for name, slots in optimizer.slots().items():
            fresh = [s for s in slots.values() if id(s) not in seen]
            seen.update(id(s) for s in fresh)
            result[name] = sum(_bytes(s) for s in fresh)
    return result


def _bytes(variable: keras.Variable) -> int:
    size = 1
    for dimension in variable.shape:
        size *= dimension
    return size * tf.as_dtype(variable.dtype).size


def state(optimizers: Sequence[GroupOptimizer]) -> dict[str, tf.Variable]:
    """`{"optimizer/<variable name>/<slot>": variable}` of all groups."""
    return {
        f"optimizer/{name}/{slot}": variable.value
        for optimizer in optimizers
        for name, slots in optimizer.slots().items()
        for slot, variable in slots.items()
    }
