"""The gradient half of a step: what each replica computes of its share of the batch, and the one reduce.

Keras layers run in a `keras.StatelessScope`. What they would write (BatchNormalization statistics)
comes back as values, for the apply half to assign; what they read as random state is derived from (seed,
step, replica), so that there is none to save.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from trainer.data.feed import Feed
from trainer.model.names import ModelVariable
from trainer.training import packing, window
from trainer.training.state import TrainState


@dataclass(frozen=True)
class Settings:
    """What of the flags a step depends on.

    Attributes:
      batch: examples of one update, over all replicas and accumulated batches.
      accumulate: forward and backward passes whose gradients one update sums, as one pass over all their
        examples would (the loss is a sum over examples, divided by `batch`).
      on_nonfinite: halt, skip or off.
    """

    batch: int
    accumulate: int = 1
    seed: int = 0
    clip_norm: float | None = None
    ema: float | None = None
    on_nonfinite: str = "off"
    jit_compile: bool = False


class StepResult(NamedTuple):
    """What the gradient half hands to the apply half, the same on every replica.

    Attributes:
      gradients: of the active variables, in their order.
      sums: the window of this step's batch, see `window.py`.
      updates: `{variable name: new value}` of the model's own state (BatchNormalization statistics).
      before: `{variable name: value}` to put back where the step is skipped.
      stopping: bool scalar, some worker wants to stop after this step.
      finite: bool scalar, loss and gradient norm are finite.
    """

    gradients: list[Any]
    sums: tf.Tensor
    updates: dict[str, tf.Tensor]
    before: dict[str, tf.Tensor]
    stopping: tf.Tensor
    finite: tf.Tensor


@dataclass(frozen=True)
class Gradients:
    """Forward and backward pass, in replica context.

    Attributes:
      own_loss: the model module's `loss`, `staged`.
      own_preprocess: its `preprocess`, `staged`; None where it has none.
      model: what its `build` returned.
      state: of the run; read, never written.
      settings: see there.
      replicas: how many share a batch.
      stop: bool scalar variable: set where this process is to stop.
    """

    own_loss: Callable[..., Any]
    own_preprocess: Callable[..., Any] | None
    model: Any
    state: TrainState
    settings: Settings
    replicas: int
    stop: tf.Variable

    @property
    def gated(self) -> bool:
        """Whether a step that is not finite is to change nothing."""
        return self.settings.on_nonfinite != "off" or self.state.scale is not None

    def step(self, active: Sequence[ModelVariable], feed: Feed, drawn: Any) -> StepResult:
        """The gradients of `active` on the batch `drawn`: reduced, unscaled, checked and clipped.

        Half precision is kept from underflow by a dynamic loss scale (Micikevicius et al. 2018).
        """
        result = self.reduced(active, feed, drawn)
        gradients = [packing.distinct(g) for g in result.gradients]
        factor = None
        if self.state.scale is not None:
            factor = 1 / self.state.scale.read_value()
        finite = result.finite
        if self.gated or self.settings.clip_norm:
            norm = tf.sqrt(packing.square_sum(gradients))
            if factor is not None:
                norm *= tf.cast(factor, norm.dtype)
            finite = tf.math.is_finite(norm) & tf.math.is_finite(window.loss_sum(result.sums))
            if self.settings.clip_norm:
                shrink = packing.shrink(norm, self.settings.clip_norm)
                factor = shrink if factor is None else tf.cast(factor, norm.dtype) * shrink
        if factor is not None:
            gradients = [packing.scaled(g, factor) for g in gradients]
        return result._replace(gradients=gradients, finite=finite)

    def reduced(self, active: Sequence[ModelVariable], feed: Feed, drawn: Any) -> StepResult:
        """The step's sums over the replicas, each the same on every replica; nothing is checked yet."""
        context = tf.distribute.get_replica_context()
        plain = [v for v in _state(self.state.variables) if v.keras is None]
        before = {v.name: v.value.read_value() for v in plain}
        gradients, sums, updates = self._accumulated(active, feed, drawn, context.replica_id_in_sync_group)
        stopping = tf.cast(self.stop, sums.dtype)
        if self.replicas > 1:
            gradients, (sums, stopping) = packing.all_reduce(context, gradients, (sums, stopping))
            updates = _averaged(context, updates, before)
        return StepResult(gradients, sums, updates, before, stopping > 0, tf.constant(True))

    def _accumulated(
        self, active: Sequence[ModelVariable], feed: Feed, drawn: Any, replica: tf.Tensor
    ) -> tuple[list[Any], tf.Tensor, dict[str, tf.Tensor]]:
        """This replica's share of a step: its accumulated batches one after the other."""
        count = self.settings.accumulate
        step = self.state.step.read_value()

        def run(index: Any, carried: dict[str, tf.Tensor]) -> Any:
            part = index * self.replicas + replica
            key = tf.random.experimental.stateless_fold_in([self.settings.seed, 0], step)
            key = tf.random.experimental.stateless_fold_in(key, part)
            batch = feed.take(drawn, part, self.replicas * count)
            if not self.settings.jit_compile:
                return self._pass(active, batch, key, carried)
            compiled = tf.function(lambda *args: self._pass(active, *args), jit_compile=True, autograph=False)
            return compiled(batch, key, carried)

        gradients, sums, updates = run(0, {})
        if count > 1:
            # Rows that differ from batch to batch have no fixed size: the loop carries dense sums.
            gradients = [tf.convert_to_tensor(g) for g in gradients]

            def add(index: tf.Tensor, gradients: Any, sums: tf.Tensor, updates: Any) -> Any:
                more, more_sums, updates = run(index, updates)
                pairs = zip(gradients, more, strict=True)
                added = [a + tf.convert_to_tensor(b) for a, b in pairs]
                return index + 1, added, sums + more_sums, updates

            start = (tf.constant(1), gradients, sums, updates)
            _, gradients, sums, updates = tf.while_loop(lambda i, *_: i < count, add, start)
        return gradients, sums, updates

    def _pass(
        self,
        active: Sequence[ModelVariable],
        batch: dict[str, tf.Tensor],
        key: tf.Tensor,
        carried: dict[str, tf.Tensor],
    ) -> tuple[list[Any], tf.Tensor, dict[str, tf.Tensor]]:
        """One forward and backward pass: (gradients, sums, new values of the model's own state)."""
        state = _state(self.state.variables)
        batch = self.preprocess(batch, True, key)
        mapping = [(v.keras, carried[v.name]) for v in state if v.name in carried and v.keras is not None]
        mapping += [(v.keras, _seed(key, v)) for v in self.state.variables if v.random]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in active])
            with keras.StatelessScope(mapping, collect_losses=True) as scope:
                losses, metrics = self.loss(batch, True)
            # Each pass of each replica adds such a loss once; together they are to weigh one.
            own = scope.losses + regularization(active)
            passes = self.replicas * self.settings.accumulate
            total = tf.reduce_sum(losses) / self.settings.batch
            total += sum(tf.cast(x, total.dtype) / passes for x in own)
            if self.state.scale is not None:
                total *= tf.cast(self.state.scale, total.dtype)
        gradients = tape.gradient(total, [v.value for v in active])
        gradients = [_shaped(g, v, self.replicas) for g, v in zip(gradients, active, strict=True)]
        updates = {}
        for v in state:
            plain = v.keras is None
            value = v.value.read_value() if plain else scope.get_current_value(v.keras)
            if value is not None:
                updates[v.name] = value
        own_loss = sum(tf.cast(x, losses.dtype) for x in own) / passes * self.settings.batch
        return gradients, self.sums(losses, metrics, tf.ones_like(losses), own_loss), updates

    def loss(self, batch: Any, training: bool) -> tuple[tf.Tensor, Mapping[str, Any]]:
        """What the module's own `loss` returns; losses of half precision are widened, to be summed."""
        losses, metrics = self.own_loss(self.model, batch, training)
        return tf.cast(losses, tf.float32) if losses.dtype.size < 4 else losses, metrics

    def sums(self, losses: tf.Tensor, metrics: Mapping[str, Any], mask: tf.Tensor, added: Any) -> tf.Tensor:
        """The window of a batch; arguments as of `window.of_batch`."""
        return window.of_batch(losses, metrics, self.state.metrics, mask, added)

    def preprocess(self, batch: Any, training: bool, key: tf.Tensor) -> Any:
        """The batch as the model module's own `preprocess` makes it."""
        return self.own_preprocess(batch, training, key) if self.own_preprocess else batch


def staged(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with AutoGraph: a Python `if` or `for` on a tensor works in it and in what it calls."""
    try:
        return tf.autograph.to_graph(function)
    except Exception:  # no source to be read, as for a lambda or a compiled module
        return function


def regularization(variables: Sequence[ModelVariable]) -> list[tf.Tensor]:
    """The weight regularisers of `variables`, scalars, each once."""
    kept = [v.keras for v in variables if v.keras is not None]
    return [v.regularizer(v.value) for v in kept if getattr(v, "regularizer", None) is not None]


def _shaped(gradient: Any, variable: ModelVariable, replicas: int) -> Any:
    """`gradient` with its static shape, which lengths that differ from batch to batch hide.

    Of a `tf.IndexedSlices` several replicas gather the rows, and for that their number must be the same in
    every step: where it is not known, the gradient becomes dense.
    """
    if isinstance(gradient, tf.IndexedSlices):
        if replicas == 1 or gradient.values.shape.is_fully_defined():
            return gradient
        gradient = tf.convert_to_tensor(gradient)
    return tf.ensure_shape(gradient, variable.value.shape)


def _state(variables: Sequence[ModelVariable]) -> list[ModelVariable]:
    """What a forward pass may write: variables not trained and not the state of a generator."""
    return [v for v in variables if not v.trainable and not v.random]


def _seed(key: tf.Tensor, variable: ModelVariable) -> tf.Tensor:
    """Start state of a Keras seed generator, from the step's key [2] and the generator's name."""
    folded = tf.random.experimental.stateless_fold_in(key, zlib.crc32(variable.name.encode()) >> 1)
    return tf.bitcast(tf.cast(folded, tf.int32), tf.uint32)


def _averaged(
    context: Any, updates: dict[str, tf.Tensor], before: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """Float state becomes its mean over the replicas; of other state, counters mostly, the first's counts."""
    floats = [name for name, value in updates.items() if value.dtype.is_floating]
    others = [name for name in updates if name not in floats]
    if floats:
        # A mean of equal values may round; the change of a constant is 0, and so is its mean.
        like = [updates[name] - before[name] if name in before else updates[name] for name in floats]
        widest = max((x.dtype for x in like), key=lambda dtype: dtype.size)
        mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, packing.pack(like, widest))
        means = dict(zip(floats, packing.unpack(mean, like), strict=True))
        updates = {**updates, **{n: before[n] + x if n in before else x for n, x in means.items()}}
    if others:
        like = [updates[name] for name in others]
        first = tf.cast(context.replica_id_in_sync_group == 0, tf.int64)
        chosen = context.all_reduce(tf.distribute.ReduceOp.SUM, first * packing.pack(like, tf.int64))
        updates = {**updates, **dict(zip(others, packing.unpack(chosen, like), strict=True))}
    return updates
