"""The compiled functions: n training steps a call, and the evaluation of a split.

A step is two halves. In the gradient half each replica runs the model forward and backward over its share
of the batch, and one packed all-reduce sums gradients, loss and metrics. In the apply half, which a
non-finite step skips, each group's Keras optimizer moves the variables of its group. Keras layers run in a
`keras.StatelessScope`: what they would write (BatchNormalization statistics) comes back as values, is
averaged over the replicas and assigned in the apply half; what they read as random state is
derived from (seed, step, replica), so that there is none to save.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from trainer import reduce
from trainer.feeds import MASK, Feed
from trainer.groups import Phase
from trainer.optimizers import GroupOptimizer
from trainer.state import LOSS_SCALE_GROWTH, RECENT, TrainState
from trainer.variables import FrozenLayers, ModelVariable

Schedule = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Settings:
    """What of the flags a step depends on.

    Attributes:
      batch: examples of one update, over all replicas and accumulated batches.
      accumulate: forward and backward passes whose gradients one update sums.
      on_nonfinite: halt, skip or off.
    """

    batch: int
    accumulate: int = 1
    seed: int = 0
    clip_norm: float | None = None
    ema: float | None = None
    on_nonfinite: str = "off"
    jit_compile: bool = False


class Program:
    """The compiled training and evaluation of one run.

    Args:
      strategy: as `trainer.distribution` chose it.
      module: the model module: `loss`, and `preprocess` where it has one.
      model: what its `build` returned.
      state: made in the strategy's scope.
      schedules: `{group name: schedule}`, each of the step relative to the group's start.
      settings: see there.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        module: Any,
        model: Any,
        state: TrainState,
        schedules: Mapping[str, Schedule],
        settings: Settings,
    ) -> None:
        self.strategy = strategy
        self.module = module
        self.model = model
        self.state = state
        self.schedules = schedules
        self.settings = settings
        self.gated = settings.on_nonfinite != "off" or state.scale is not None
        self.frozen = FrozenLayers(model, state.variables)
        self.replicas = strategy.num_replicas_in_sync
        with tf.device("CPU:0"):
            # Set from outside while a call runs: the loop ends after the step in hand.
            self.stop = tf.Variable(False, trainable=False)
            self.halted = tf.Variable(False, trainable=False)

    def trainer(self, phase: Phase, feed: Feed) -> Callable[[Any, tf.Tensor], tf.Tensor]:
        """The compiled loop of one phase: `(chunk, n) -> steps done`, n an int32 scalar tensor.

        Less than n steps are done when `stop` was set or a step halted. Layers all of whose
        variables are frozen in this phase run as `trainable=False` from now on.
        """
        self.frozen.enter(phase.names)
        active = [v for v in self.state.variables if v.name in phase.names]
        halts = self.settings.on_nonfinite == "halt"

        @tf.function(input_signature=[feed.spec, tf.TensorSpec([], tf.int32)])
        def train(chunk: Any, n: tf.Tensor) -> tf.Tensor:
            i = tf.constant(0)
            go = tf.constant(True)
            while tf.logical_and(go, i < n):
                stopping = self._step(phase, active, feed, feed.draw(chunk, i))
                go = tf.logical_not(stopping)
                if halts:
                    go = tf.logical_and(go, tf.logical_not(self.halted))
                i += 1
            return i

        return train

    def evaluator(self, feed: Feed) -> Callable[[Any, tf.Tensor], tf.Tensor]:
        """The compiled evaluation: `(chunk, n) -> sums` float64, as `TrainState.sums` of n batches."""

        trained = [v for v in self.state.variables if v.trainable]

        def one(drawn: Any) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            replica = context.replica_id_in_sync_group
            batch = dict(feed.take(drawn, replica, self.replicas))
            mask = batch.pop(MASK)
            batch = self._preprocess(batch, False, tf.zeros([2], tf.int32))
            with keras.StatelessScope(collect_losses=True) as scope:
                losses, metrics = self.module.loss(self.model, batch, False)
            # Such a loss is a batch's; it counts for each of the examples that are real.
            own = sum(tf.cast(x, losses.dtype) for x in scope.losses + regularization(trained))
            return self._sums(losses, metrics, mask, own * tf.reduce_sum(tf.cast(mask, losses.dtype)))

        @tf.function(input_signature=[feed.spec, tf.TensorSpec([], tf.int32)])
        def evaluate(chunk: Any, n: tf.Tensor) -> tf.Tensor:
            total = tf.zeros([2 * (1 + len(self.state.metrics))], tf.float64)
            for i in tf.range(n):
                if not self.stop:
                    sums = self.strategy.run(one, args=(feed.draw(chunk, i),))
                    total += tf.cast(self.strategy.reduce("SUM", sums, axis=None), tf.float64)
            return total

        return evaluate

    def gradients(self, phase: Phase, feed: Feed) -> Callable[[Any], tuple[dict[str, Any], tf.Tensor]]:
        """`chunk -> ({variable: gradient}, sums)` of the chunk's first step, applied to nothing.

        The gradients are summed over the replicas and neither clipped nor unscaled.
        """
        active = [v for v in self.state.variables if v.name in phase.names]

        @tf.function(input_signature=[feed.spec])
        def compute(chunk: Any) -> tuple[dict[str, Any], tf.Tensor]:
            drawn = feed.draw(chunk, tf.constant(0))
            run = self.strategy.run(lambda d: self._reduced(active, feed, d)[:2], args=(drawn,))
            local = self.strategy.experimental_local_results
            return {v.name: local(g)[0] for v, g in zip(active, run[0])}, local(run[1])[0]  # noqa: B905

        return compute

    # The gradient half: replica context

    def _half(self, active: Sequence[ModelVariable], feed: Feed, drawn: Any) -> "Half":
        """The gradient half of a step: reduced, unscaled, checked and clipped."""
        plain = [v for v in _state(self.state.variables) if v.keras is None and self.gated]
        before = {v.name: v.value.read_value() for v in plain}
        gradients, sums, updates, stopping = self._reduced(active, feed, drawn)
        factor = None
        if self.state.scale is not None:
            factor = 1 / self.state.scale.read_value()
        finite = tf.constant(True)
        if self.gated or self.settings.clip_norm:
            norm = tf.sqrt(reduce.square_sum(gradients))
            if factor is not None:
                norm *= tf.cast(factor, norm.dtype)
            finite = tf.math.is_finite(norm) & tf.reduce_all(tf.math.is_finite(sums))
            if self.settings.clip_norm:
                limit = tf.constant(self.settings.clip_norm, norm.dtype)
                shrink = limit / tf.maximum(norm, limit)
                factor = shrink if factor is None else tf.cast(factor, norm.dtype) * shrink
        if factor is not None:
            gradients = [reduce.scaled(g, factor) for g in gradients]
        return Half(gradients, sums, updates, before, finite, stopping)

    def _reduced(
        self, active: Sequence[ModelVariable], feed: Feed, drawn: Any
    ) -> tuple[list[Any], tf.Tensor, dict[str, tf.Tensor], tf.Tensor]:
        """(gradients, sums, updates, stop) of a step, each the same on every replica."""
        context = tf.distribute.get_replica_context()
        gradients, sums, updates = self._accumulated(active, feed, drawn, context.replica_id_in_sync_group)
        stopping = tf.cast(self.stop, sums.dtype)
        if self.replicas == 1:
            return gradients, sums, updates, stopping > 0
        dense = [g for g in gradients if not isinstance(g, tf.IndexedSlices)]
        like = [*dense, sums, stopping]
        packed = context.all_reduce(tf.distribute.ReduceOp.SUM, reduce.pack(like, like[0].dtype))
        *dense, sums, stopping = reduce.unpack(packed, like)
        rest = iter(dense)
        gradients = [
            context.all_reduce(tf.distribute.ReduceOp.SUM, g)
            if isinstance(g, tf.IndexedSlices)
            else next(rest)
            for g in gradients
        ]
        return gradients, sums, _averaged(context, updates), stopping > 0

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
            for index in tf.range(1, count):
                more, more_sums, updates = run(index, updates)
                gradients = [a + tf.convert_to_tensor(b) for a, b in zip(gradients, more)]  # noqa: B905
                sums += more_sums
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
        batch = self._preprocess(batch, True, key)
        mapping = [(v.keras, carried[v.name]) for v in state if v.name in carried and v.keras is not None]
        mapping += [(v.keras, _seed(key, v)) for v in self.state.variables if v.random]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in active])
            with keras.StatelessScope(mapping, collect_losses=True) as scope:
                losses, metrics = self.module.loss(self.model, batch, True)
            # Each pass of each replica adds such a loss once; together they are to weigh one.
            own = scope.losses + regularization(active)
            passes = self.replicas * self.settings.accumulate
            total = tf.reduce_sum(losses) / self.settings.batch
            total += sum(tf.cast(x, total.dtype) / passes for x in own)
            if self.state.scale is not None:
                total *= tf.cast(self.state.scale, total.dtype)
        gradients = tape.gradient(total, [v.value for v in active])
        updates = {}
        for v in state:
            plain = v.keras is None
            value = v.value.read_value() if plain else scope.get_current_value(v.keras)
            if value is not None:
                updates[v.name] = value
        own_loss = sum(tf.cast(x, losses.dtype) for x in own) / passes * self.settings.batch
        return gradients, self._sums(losses, metrics, tf.ones_like(losses), own_loss), updates

    def _preprocess(self, batch: Any, training: bool, key: tf.Tensor) -> Any:
        preprocess = getattr(self.module, "preprocess", None)
        return preprocess(batch, training, key) if preprocess else batch

    def _sums(self, losses: tf.Tensor, metrics: Mapping[str, Any], mask: tf.Tensor, own: Any) -> tf.Tensor:
        """[2 * (1 + metrics)]: sum and weight of the loss, then of each metric by name."""
        pairs = [(losses, tf.ones_like(losses))]
        for name in self.state.metrics:
            value = metrics[name]
            pairs.append(value if isinstance(value, tuple) else (value, tf.ones_like(losses)))
        parts = []
        for value, weight in pairs:
            weight = tf.cast(weight, losses.dtype) * tf.cast(mask, losses.dtype)
            # A padded or unweighted example counts nothing, whatever its value.
            value = tf.where(weight > 0, tf.cast(value, losses.dtype), 0)
            parts += [tf.reduce_sum(value * weight), tf.reduce_sum(weight)]
        parts[0] += tf.cast(own, losses.dtype)
        return tf.stack(parts)

    # The apply half: cross-replica context

    def _step(self, phase: Phase, active: Sequence[ModelVariable], feed: Feed, drawn: Any) -> tf.Tensor:
        """One step; returns whether the loop is to stop after it."""
        run = self.strategy.run(lambda d: tuple(self._half(active, feed, d)), args=(drawn,))
        half = Half(*run)
        local = self.strategy.experimental_local_results
        if not self.gated or local(half.finite)[0]:
            self._apply(phase, active, half)
        else:
            self._skip(half)
        return local(half.stopping)[0]

    def _apply(self, phase: Phase, active: Sequence[ModelVariable], half: "Half") -> None:
        state, update = self.state, self.strategy.extended.update
        step = state.step.read_value()
        gradients = {v.name: g for v, g in zip(active, half.gradients)}  # noqa: B905
        groups = {g.name for g in phase.active}
        for optimizer in state.optimizers:
            if optimizer.group.name not in groups:
                continue
            rate = self.schedules[optimizer.group.name](step - optimizer.group.start)
            optimizer.begin()
            for v in optimizer.group.variables:
                args = (gradients[v.name], rate)
                update(v.value, _mover(optimizer, v), args=args, group=False)
            optimizer.end()
        self._assign(half.updates)
        for v in state.variables:
            if v.name in state.averages:
                update(state.averages[v.name], self._average, args=(v.value,), group=False)
        update(state.sums, _add, args=(half.sums,), group=False)
        state.step.assign_add(1)
        if state.scale is not None:
            grow = state.good + 1 >= LOSS_SCALE_GROWTH
            state.scale.assign(tf.where(grow, state.scale * 2, state.scale))
            state.good.assign(tf.where(grow, tf.zeros([], tf.int64), state.good + 1))

    def _skip(self, half: "Half") -> None:
        """What a non-finite step leaves: its place in the counters, and a smaller loss scale."""
        state = self.state
        self._assign(half.before)
        halt = tf.constant(self.settings.on_nonfinite == "halt")
        if state.scale is not None:
            halt = tf.logical_and(halt, state.scale <= 1)
            state.scale.assign(tf.maximum(state.scale / 2, 1))
            state.good.assign(tf.zeros([], tf.int64))
        self.halted.assign(halt)
        # A step that halts the run is not done: the same command meets it again.
        done = tf.cast(tf.logical_not(halt), tf.int64)
        slot = tf.cast(tf.reshape(state.skipped % RECENT, [1, 1]), tf.int32)
        seen = tf.tensor_scatter_nd_update(state.recent, slot, tf.reshape(state.step + 1, [1]))
        state.recent.assign(tf.where(halt, state.recent, seen))
        state.skipped.assign_add(done)
        state.step.assign_add(done)

    def _assign(self, values: Mapping[str, Any]) -> None:
        for v in self.state.variables:
            if v.name in values:
                self.strategy.extended.update(
                    v.value, lambda to, x: to.assign(x), args=(values[v.name],), group=False
                )

    def _average(self, average: tf.Variable, value: tf.Variable) -> None:
        decay = tf.constant(self.settings.ema, average.dtype)
        average.assign(average * decay + value * (1 - decay))


class Half(NamedTuple):
    """What the gradient half hands to the apply half, the same on every replica.

    Attributes:
      gradients: of the active variables, in their order.
      sums: [2 * (1 + metrics)] of this step's batch.
      updates: `{variable name: new value}` of the model's own state (BatchNormalization statistics).
      before: `{variable name: value}` to put back where the step is skipped.
      finite: bool scalar, loss and gradient norm are finite.
      stopping: bool scalar, some worker wants to stop after this step.
    """

    gradients: list[Any]
    sums: tf.Tensor
    updates: dict[str, tf.Tensor]
    before: dict[str, tf.Tensor]
    finite: tf.Tensor
    stopping: tf.Tensor


def regularization(variables: Sequence[ModelVariable]) -> list[tf.Tensor]:
    """The weight regularisers of `variables`, scalars, each once."""
    kept = [v.keras for v in variables if v.keras is not None]
    return [v.regularizer(v.value) for v in kept if getattr(v, "regularizer", None) is not None]


def _state(variables: Sequence[ModelVariable]) -> list[ModelVariable]:
    """What a forward pass may write: variables not trained and not the state of a generator."""
    return [v for v in variables if not v.trainable and not v.random]


def _seed(key: tf.Tensor, variable: ModelVariable) -> tf.Tensor:
    """Start state of a Keras seed generator, from the step's key [2] and the generator's name."""
    folded = tf.random.experimental.stateless_fold_in(key, zlib.crc32(variable.name.encode()) >> 1)
    return tf.bitcast(tf.cast(folded, tf.int32), tf.uint32)


def _averaged(context: Any, updates: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Float state becomes its mean over the replicas; other state stays each replica's own."""
    floats = [name for name, value in updates.items() if value.dtype.is_floating]
    if not floats:
        return updates
    like = [updates[name] for name in floats]
    mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, reduce.pack(like, like[0].dtype))
    return {**updates, **dict(zip(floats, reduce.unpack(mean, like)))}  # noqa: B905


def _mover(optimizer: GroupOptimizer, variable: ModelVariable) -> Callable[..., None]:
    return lambda value, gradient, rate: optimizer.update(variable, value, gradient, rate)


def _add(to: tf.Variable, value: tf.Tensor) -> None:
    to.assign_add(tf.cast(value, to.dtype))
