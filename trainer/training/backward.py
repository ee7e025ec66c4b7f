"""What a pass differentiates for each loss, and how the gradients of several passes add up.

A loss is divided by a constant, the examples of an update, or by the sum of its weights over the whole
update, which is known only once the last pass on the last replica is done. So each pass differentiates its
own weighted mean, a number that half precision can hold, and multiplies the gradient by its own sum of
weights; what they add up to is divided once. What the model adds (`model.losses`) and regularisers keep their
scale, and therefore go apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.errors import UserError
from trainer.model.names import ModelVariable
from trainer.model.returns import Term, some_losses
from trainer.training import packing

FIXED = "/"  # the name of what constants divide; no loss is called so

Slopes = list[dict[str, Any]]  # of each variable, gradients by the name of the loss whose weights divide them


class Objective(NamedTuple):
    """A number to differentiate.

    Attributes:
      divisor: the loss whose weights divide it, or `FIXED`.
      value: scalar.
      weight: scalar, that its gradient has among those of other passes; None for 1.
      moves: names of the variables that it moves.
    """

    divisor: str
    value: tf.Tensor
    weight: tf.Tensor | None
    moves: frozenset[str]


def objectives(
    terms: Mapping[str, Term], own: Sequence[tf.Tensor], wanted: Mapping[str, str], batch: int, passes: int
) -> list[Objective]:
    """What one pass differentiates; to be called under its tape.

    Args:
      terms: losses and weights by name.
      own: scalars, what the model adds and its regularisers, each of which counts once in an update.
      wanted: `{variable: name of the loss that moves it}`, "" for the sum of all.
      batch: examples of an update.
      passes: of an update, over all replicas.
    """
    found = []
    for loss in dict.fromkeys(wanted.values()):
        chosen = [x for name, (x, weights) in terms.items() if weights is None and loss in ("", name)]
        values = [tf.reduce_sum(losses) / batch for losses in chosen]
        if own:
            dtype = some_losses(terms).dtype
            values.append(_sum([tf.cast(x, dtype) / passes for x in own]))
        if values:
            moves = frozenset(v for v, by in wanted.items() if by == loss)
            found.append(Objective(FIXED, _sum(values), None, moves))
    for name, (losses, weights) in terms.items():
        moves = frozenset(v for v, by in wanted.items() if by in ("", name))
        if weights is not None and moves:
            total = tf.reduce_sum(weights)
            counted = tf.where(weights > 0, losses, 0) * weights
            mean = tf.math.divide_no_nan(tf.reduce_sum(counted), total)
            found.append(Objective(name, mean, total, moves))
    return found


def combined(
    summed: Slopes, weights: Mapping[str, tf.Tensor], active: Sequence[ModelVariable]
) -> list[tf.Tensor | tf.IndexedSlices]:
    """A gradient for each of the variables `active`; 0 where the weights of a whole update sum to 0.

    Args:
      summed: over all passes of an update.
      weights: scalars, by the name of each loss that has weights, their sum.
      active: variables.

    Raises:
      UserError: no loss reaches one of them.
    """
    result = []
    for parts, v in zip(summed, active, strict=True):
        if not parts:
            raise UserError(
                f"--group: the loss does not depend on {v.name} in some steps of the run. Freeze it there "
                "(from=, until=)."
            )
        divided = [
            g if name == FIXED else packing.scaled(g, tf.math.reciprocal_no_nan(weights[name]))
            for name, g in parts.items()
        ]
        result.append(divided[0] if len(divided) == 1 else _sum([tf.convert_to_tensor(g) for g in divided]))
    return result


def _sum(values: Sequence[tf.Tensor]) -> tf.Tensor:
    return sum(values[1:], start=values[0])
