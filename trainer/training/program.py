"""The compiled functions: n training steps a call, and the evaluation of a split.

A step is two halves. In the gradient half (`gradients.py`) each replica runs the model forward and
backward over its share of the batch, and one packed all-reduce sums gradients, loss and metrics. In the
apply half, here, which a non-finite step skips, each group's Keras optimizer moves its variables.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.data.feed import MASK, Feed
from trainer.groups.optimizers import GroupOptimizer
from trainer.groups.rules import Phase
from trainer.groups.schedules import Schedule
from trainer.model.names import FrozenLayers, ModelVariable
from trainer.training.gradients import Gradients, Half, Settings, regularization, staged
from trainer.training.state import LOSS_SCALE_GROWTH, RECENT, TrainState


class Program:
    """The compiled training and evaluation of one run.

    Args:
      strategy: as `trainer.devices.strategy` chose it.
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
        self.model = model
        self.state = state
        self.schedules = schedules
        self.settings = settings
        self.frozen = FrozenLayers(model, state.variables)
        self.replicas = strategy.num_replicas_in_sync
        with tf.device("CPU:0"):
            # Set from outside while a call runs: the loop ends after the step in hand.
            self.stop = tf.Variable(False, trainable=False)
            # Whether the last call ended so: on all workers alike, whichever of them was asked to stop.
            self.stopped = tf.Variable(False, trainable=False)
            self.halted = tf.Variable(False, trainable=False)
        preprocess = getattr(module, "preprocess", None)
        self.half = Gradients(
            staged(module.loss),
            staged(preprocess) if preprocess else None,
            model,
            state,
            settings,
            self.replicas,
            self.stop,
        )

    def trainer(self, phase: Phase, feed: Feed) -> Callable[[Any, tf.Tensor], tf.Tensor]:
        """The compiled loop of one phase: `(chunk, n) -> steps done`, n an int32 scalar tensor.

        Less than n steps are done when `stop` was set or a step halted. Layers all of whose
        variables are frozen in this phase run as `trainable=False` from now on.
        """
        self.frozen.enter(phase.names)
        active = [v for v in self.state.variables if v.name in phase.names]
        halts = self.settings.on_nonfinite == "halt"

        def step(i: tf.Tensor, _: tf.Tensor, chunk: Any) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, self._step(phase, active, feed, feed.draw(chunk, i))

        # AutoGraph is for the user's functions alone: it would take seconds over ours at every start.
        @tf.function(input_signature=[feed.spec, tf.TensorSpec([], tf.int32)], autograph=False)
        def train(chunk: Any, n: tf.Tensor) -> tf.Tensor:
            def more(i: tf.Tensor, stopping: tf.Tensor) -> tf.Tensor:
                go = tf.logical_and(i < n, tf.logical_not(stopping))
                return tf.logical_and(go, tf.logical_not(self.halted)) if halts else go

            start = (tf.constant(0), tf.constant(False))
            done, stopping = tf.while_loop(more, lambda i, was: step(i, was, chunk), start)
            self.stopped.assign(stopping)
            return done

        return train

    def evaluator(self, feed: Feed) -> Callable[[Any, tf.Tensor], tf.Tensor]:
        """The compiled evaluation: `(chunk, n) -> sums` float64, as `TrainState.sums` of n batches."""

        trained = [v for v in self.state.variables if v.trainable]

        def one(drawn: Any) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            replica = context.replica_id_in_sync_group
            batch = dict(feed.take(drawn, replica, self.replicas))
            mask = batch.pop(MASK)
            batch = self.half.preprocess(batch, False, tf.zeros([2], tf.int32))
            with keras.StatelessScope(collect_losses=True) as scope:
                losses, metrics = self.half.loss(batch, False)
            # Such a loss is a batch's; it counts for each of the examples that are real.
            own = sum(tf.cast(x, losses.dtype) for x in scope.losses + regularization(trained))
            sums = self.half.sums(losses, metrics, mask, own * tf.reduce_sum(tf.cast(mask, losses.dtype)))
            return tf.concat([sums, [tf.cast(self.stop, sums.dtype)]], 0)

        @tf.function(input_signature=[feed.spec, tf.TensorSpec([], tf.int32)], autograph=False)
        def evaluate(chunk: Any, n: tf.Tensor) -> tf.Tensor:
            def batch(i: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                sums = self.strategy.run(one, args=(feed.draw(chunk, i),))
                return i + 1, total + tf.cast(self.strategy.reduce("SUM", sums, axis=None), tf.float64)

            zero = tf.zeros([2 * (1 + len(self.state.metrics)) + 1], tf.float64)
            start = (tf.constant(0), zero)
            _, total = tf.while_loop(lambda i, total: tf.logical_and(total[-1] <= 0, i < n), batch, start)
            self.stopped.assign(total[-1] > 0)
            return total[:-1]

        return evaluate

    def gradients(self, phase: Phase, feed: Feed) -> Callable[[Any], tuple[dict[str, Any], tf.Tensor]]:
        """`chunk -> ({variable: gradient}, sums)` of the chunk's first step, applied to nothing.

        The gradients are summed over the replicas and neither clipped nor unscaled.
        """
        active = [v for v in self.state.variables if v.name in phase.names]

        @tf.function(input_signature=[feed.spec], autograph=False)
        def compute(chunk: Any) -> tuple[dict[str, Any], tf.Tensor]:
            drawn = feed.draw(chunk, tf.constant(0))
            run = self.strategy.run(lambda d: self.half.reduced(active, feed, d)[:4], args=(drawn,))
            self._assign(run[3])
            local = self.strategy.experimental_local_results
            return {v.name: local(g)[0] for v, g in zip(active, run[0], strict=True)}, local(run[1])[0]

        return compute

    # The apply half: cross-replica context

    def _step(self, phase: Phase, active: Sequence[ModelVariable], feed: Feed, drawn: Any) -> tf.Tensor:
        """One step; returns whether the loop is to stop after it."""
        run = self.strategy.run(lambda d: tuple(self.half.step(active, feed, d)), args=(drawn,))
        half = Half(*run)
        local = self.strategy.experimental_local_results
        if self.half.gated:
            apply, skip = (lambda: self._apply(phase, active, half)), (lambda: self._skip(half))
            tf.cond(local(half.finite)[0], apply, skip)
        else:
            self._apply(phase, active, half)
        return local(half.stopping)[0]

    def _apply(self, phase: Phase, active: Sequence[ModelVariable], half: Half) -> None:
        state, update = self.state, self.strategy.extended.update
        step = state.step.read_value()
        gradients = {v.name: g for v, g in zip(active, half.gradients, strict=True)}
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
        if state.scale is not None and state.good is not None:
            more = state.scale * 2
            grow = state.good + 1 >= LOSS_SCALE_GROWTH
            state.scale.assign(tf.where(grow & tf.math.is_finite(more), more, state.scale))
            state.good.assign(tf.where(grow, tf.zeros([], tf.int64), state.good + 1))

    def _skip(self, half: Half) -> None:
        """What a non-finite step leaves: its place in the counters, and a smaller loss scale."""
        state = self.state
        self._assign(half.before)
        halt = tf.constant(self.settings.on_nonfinite == "halt")
        if state.scale is not None and state.good is not None:
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


def _mover(optimizer: GroupOptimizer, variable: ModelVariable) -> Callable[..., None]:
    return lambda value, gradient, rate: optimizer.update(variable, value, gradient, rate)


def _add(to: tf.Variable, value: tf.Tensor) -> None:
    to.assign_add(tf.cast(value, to.dtype))
