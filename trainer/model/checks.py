"""What a model and its loss must be, checked before any data is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from trainer.errors import UserError, listing
from trainer.model.module import ModelModule, guarded
from trainer.model.names import ModelVariable

_RETURNS = "(loss [B], {metric: value [B] or (value [B], weight [B])})"


def check_features(module: ModelModule, model: Any, features: Any, what: str) -> None:
    """Lets the module's own `check(model, features)`, where it has one, refuse a data set by ValueError.

    Args:
      module: the model module.
      model: what its `build` returned.
      features: of the data set, as its source has them.
      what: the flags, for the message.

    Raises:
      UserError: it raised.
    """
    own = module.check
    if own is None:
        return

    def check() -> None:
        try:
            own(model, features)
        except ValueError as error:
            raise UserError(f"{what}: {error}.") from error

    guarded(check, f"{what}: the model's check")


def check_precision(model: Any, variables: Sequence[ModelVariable], precision: str) -> None:
    """Refuses a model whose variables or layers do not have the precision asked for.

    Raises:
      UserError: names the first such variable.
    """
    storage = tf.float64 if precision == "float64" else tf.float32
    for v in variables:
        if v.trainable and v.dtype != storage:
            raise UserError(
                f"--precision={precision}: {v.name} is {v.dtype.name}. Let the model's build make its "
                f"variables in keras.config.floatx(), which is {storage.name} then."
            )
    if precision.startswith("mixed"):
        half = precision.removeprefix("mixed_")
        layers = [v.layer for v in variables if isinstance(v.layer, keras.Layer)]
        if not any(layer.compute_dtype == half for layer in layers):
            raise UserError(
                f"--precision={precision}: no Keras layer of the model computes in {half}. Mixed precision "
                "is a policy of Keras layers; a plain tf.Module takes --precision=float32 or float64."
            )


@dataclass
class LossTrace:
    """The loss and its gradient, traced on a batch of the data's shapes; nothing is run.

    Attributes:
      module: the model module.
      model: what its `build` returned.
      variables: of the model.
      trained: names of those that some group trains.
    """

    module: ModelModule
    model: Any
    variables: Sequence[ModelVariable]
    trained: frozenset[str]
    _metrics: tuple[str, ...] = ()
    _watched: Sequence[Any] = ()
    _loose: list[str] = field(default_factory=list)

    def check(
        self, spec: Mapping[str, tf.TensorSpec], batch: int, strategy: tf.distribute.Strategy
    ) -> tuple[str, ...]:
        """Names of the metrics, sorted.

        Args:
          spec: of one decoded example.
          batch: examples of one replica's batch.
          strategy: in whose scope the model was built.

        Raises:
          UserError: `loss` raises, returns something else than (loss [B], {metric: [B]}), uses a trainable
            variable that has no name here, or does not depend on a variable that is to be trained.
        """
        batched = {k: tf.TensorSpec([batch, *s.shape], s.dtype) for k, s in spec.items()}

        def on_replicas(batch: Any) -> None:
            strategy.run(self._trace, args=(batch,))

        guarded(lambda: tf.function(on_replicas).get_concrete_function(batched), "--model: its loss")
        known = {id(v.value) for v in self.variables}
        strange = [w.name for w in self._watched if id(_container(w)) not in known]
        if strange:
            raise UserError(
                f"--model: its loss uses the trainable variable {listing(strange)}, to which no attribute of "
                "the model leads. Make it in build, and keep it in the model."
            )
        if self._loose:
            raise UserError(
                f"--group: the loss does not depend on {listing(self._loose)}, so there is no gradient to "
                "train it by. Add a rule before the others that freezes it, such as "
                f"--group='{self._loose[0]} frozen'."
            )
        return self._metrics

    def _trace(self, batch: Any) -> None:
        if self.module.preprocess:
            batch = self.module.preprocess(batch, True, tf.zeros([2], tf.int32))
        with tf.GradientTape() as tape, keras.StatelessScope(collect_losses=True) as scope:
            result = self.module.loss(self.model, batch, True)
            losses = _checked(result, _batch_size(batch))
            total = tf.reduce_sum(losses) + sum(tf.cast(x, losses.dtype) for x in scope.losses)
        self._metrics = tuple(sorted(result[1]))
        self._watched = tape.watched_variables()
        wanted = [v for v in self.variables if v.name in self.trained]
        slopes = tape.gradient(total, [v.value for v in wanted])
        self._loose = [v.name for v, s in zip(wanted, slopes) if s is None]  # noqa: B905


def _container(variable: Any) -> Any:
    """The MirroredVariable of which `variable` is one replica's copy, or the variable itself."""
    container = getattr(variable, "_distributed_container", None)
    return container() if container else variable


@tf.autograph.experimental.do_not_convert  # no user's code in it
def _batch_size(batch: Any) -> int | None:
    sizes = {x.shape[0] for x in tf.nest.flatten(batch) if x.shape.rank}
    return sizes.pop() if len(sizes) == 1 else None


@tf.autograph.experimental.do_not_convert  # no user's code in it
def _checked(result: Any, size: int | None) -> tf.Tensor:
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise UserError(f"--model: its loss returned {type(result).__name__}, not {_RETURNS}.")
    for name, value in result[1].items():
        if name == "loss" or not isinstance(name, str):
            raise UserError(f"--model: a metric is called {name!r}; give it another name, such as accuracy.")
        if isinstance(value, tuple) and len(value) != 2:
            raise UserError(f"--model: the metric {name!r} has {len(value)} parts. loss returns {_RETURNS}.")
        for part in value if isinstance(value, tuple) else (value,):
            _check_vector(f"the metric {name!r}", part, size)
    _check_vector("the loss", result[0], size)
    if not result[0].dtype.is_floating:
        raise UserError(f"--model: the loss is {result[0].dtype.name}, not a float.")
    return result[0]


def _check_vector(what: str, value: Any, size: int | None) -> None:
    if not tf.is_tensor(value) or value.shape.rank != 1 or (size and value.shape[0] not in (None, size)):
        got = f"shape {value.shape}" if tf.is_tensor(value) else type(value).__name__
        if tf.is_tensor(value) and value.shape.rank is None:
            got = "a shape that is known only when it runs (say it: tf.ensure_shape(value, [None]))"
        raise UserError(
            f"--model: {what} has {got}, but one value per example ([{size or 'B'}]) is needed: the trainer "
            f"divides by the global batch. loss returns {_RETURNS}."
        )
