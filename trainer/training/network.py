"""What the user brought, as a step calls it: a model, and the functions of its module."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from trainer.model.module import ModelModule
from trainer.model.names import ModelVariable
from trainer.model.outputs import Outputs
from trainer.model.returns import Term, terms_of
from trainer.model.scope import Scope


@dataclass(frozen=True)
class Network:
    """A model and its functions, each with AutoGraph.

    Attributes:
      model: what `build` returned.
      variables: of the model, named.
      own_loss: the module's `loss`.
      own_preprocess: its `preprocess`; None where it has none.
      outputs: of the module; None where it has none.
    """

    model: Any
    variables: Sequence[ModelVariable]
    own_loss: Callable[..., Any]
    own_preprocess: Callable[..., Any] | None
    outputs: Outputs | None = None

    @classmethod
    def of(
        cls,
        module: ModelModule,
        model: Any,
        variables: Sequence[ModelVariable],
        outputs: Outputs | None = None,
    ) -> "Network":
        """The functions of a module, and what its `build` returned."""
        return cls(
            model,
            variables,
            _staged(module.loss),
            _staged(module.preprocess) if module.preprocess else None,
            replace(outputs, function=_staged(outputs.function)) if outputs else None,
        )

    def loss(
        self, batch: Any, training: bool, rows: int | None = None
    ) -> tuple[dict[str, Term], Mapping[str, Any]]:
        """What the module's own `loss` returns: losses with their weights, and metrics.

        Losses of half precision are widened, to be summed; no gradient goes through weights.

        Args:
          batch: preprocessed.
          training: whether it is to train.
          rows: examples of the batch, for a loss that tells only when it runs how many it has.
        """
        returned, metrics = self.own_loss(self.model, batch, training)
        terms = terms_of(returned)
        widest = max((losses.dtype for losses, _ in terms.values()), key=lambda dtype: dtype.size)
        for name, (losses, weights) in terms.items():
            if losses.shape[0] is None:
                losses = tf.ensure_shape(losses, [rows])
            losses = tf.cast(losses, tf.float32 if widest.size < 4 else widest)
            if weights is not None:
                weights = _counting(tf.ensure_shape(tf.cast(weights, losses.dtype), losses.shape))
            terms[name] = losses, weights
        return terms, metrics

    def preprocess(self, batch: Any, training: bool, key: tf.Tensor) -> Any:
        """The batch as the module's own `preprocess` makes it."""
        if self.own_preprocess is None:
            return batch
        with Scope(self.variables, key, what="preprocess"):
            return self.own_preprocess(batch, training, key)


def _staged(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with AutoGraph: a Python `if` or `for` on a tensor works in it and in what it calls."""
    try:
        return tf.autograph.to_graph(function)
    except Exception:  # no source to be read, as for a lambda or a compiled module
        return function


def _counting(weights: tf.Tensor) -> tf.Tensor:
    """The weights of a loss, constants to a gradient. XLA checks nothing: there a negative one is NaN."""
    weights = tf.stop_gradient(weights)
    negative = tf.reduce_any(weights < 0)
    tf.debugging.Assert(
        tf.logical_not(negative),
        [
            "The weights of a loss are negative, and a weight is 0 or more; the least is",
            tf.reduce_min(weights),
        ],
    )
    return tf.where(weights < 0, tf.constant(float("nan"), weights.dtype), weights)
