"""The compiled functions: n training steps a call, and the evaluation of a split.

A step is two halves. In the gradient half (`gradients.py`) each replica runs the model forward and
backward over its share of the batch, and one packed all-reduce sums gradients, loss and metrics. In the
apply half (`updates.py`), which a non-finite step skips, each group's Keras optimizer moves its variables.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.data.feed import MASK, Feed
from trainer.groups.phases import Phase
from trainer.groups.schedules import Schedule
from trainer.model.frozen import FrozenLayers
from trainer.model.module import ModelModule
from trainer.model.names import ModelVariable
from trainer.training import window
from trainer.training.gradients import Gradients, Settings, StepResult, regularization, staged
from trainer.training.norms import GradientNorms
from trainer.training.state import TrainState
from trainer.training.updates import Updates


class Program:
    """The compiled training and evaluation of one run.

    Args:
      strategy: as `trainer.devices` chose it.
      module: the model module.
      model: what its `build` returned.
      state: made in the strategy's scope.
      schedules: `{group name: schedule}`, each of the step relative to the group's start.
      settings: see there.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        module: ModelModule,
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
        self.gradient_norms = GradientNorms([o.group for o in state.optimizers])
        self.gradient_half = Gradients(
            staged(module.loss),
            staged(module.preprocess) if module.preprocess else None,
            model,
            state,
            settings,
            self.replicas,
            self.stop,
        )
        self.apply_half = Updates(strategy, state, schedules, settings, self.halted)

    def trainer(self, phase: Phase, feed: Feed) -> Callable[[Any, tf.Tensor], tf.Tensor]:
        """The compiled loop of one phase: `(chunk, n) -> steps done`, n an int32 scalar tensor.

        Less than n steps are done when `stop` was set or a step halted. Layers all of whose
        variables are frozen in this phase run as `trainable=False` from now on.
        """
        self.frozen.enter(phase.names)
        active = self._active(phase)
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
        """The compiled evaluation: `(chunk, n) -> window` float64 of n batches together."""

        trained = [v for v in self.state.variables if v.trainable]
        half = self.gradient_half

        def one(drawn: Any) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            replica = context.replica_id_in_sync_group
            batch = dict(feed.take(drawn, replica, self.replicas))
            mask = batch.pop(MASK)
            batch = half.preprocess(batch, False, tf.zeros([2], tf.int32))
            with keras.StatelessScope(collect_losses=True) as scope:
                losses, metrics = half.loss(batch, False)
            # Such a loss is a batch's; it counts for each of the examples that are real.
            own = sum(tf.cast(x, losses.dtype) for x in scope.losses + regularization(trained))
            sums = half.sums(losses, metrics, mask, own * tf.reduce_sum(tf.cast(mask, losses.dtype)))
            return tf.concat([sums, [tf.cast(self.stop, sums.dtype)]], 0)

        @tf.function(input_signature=[feed.spec, tf.TensorSpec([], tf.int32)], autograph=False)
        def evaluate(chunk: Any, n: tf.Tensor) -> tf.Tensor:
            def batch(i: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                sums = self.strategy.run(one, args=(feed.draw(chunk, i),))
                return i + 1, total + tf.cast(self.strategy.reduce("SUM", sums, axis=None), tf.float64)

            zero = tf.zeros([window.size(self.state.metrics) + 1], tf.float64)
            start = (tf.constant(0), zero)
            _, total = tf.while_loop(lambda i, total: tf.logical_and(total[-1] <= 0, i < n), batch, start)
            self.stopped.assign(total[-1] > 0)
            return total[:-1]

        return evaluate

    def gradients(self, phase: Phase, feed: Feed) -> Callable[[Any], tuple[dict[str, Any], tf.Tensor]]:
        """`chunk -> ({variable: gradient}, window)` of the chunk's first step, applied to nothing.

        The gradients are summed over the replicas and neither clipped nor unscaled.
        """
        active = self._active(phase)

        @tf.function(input_signature=[feed.spec], autograph=False)
        def compute(chunk: Any) -> tuple[dict[str, Any], tf.Tensor]:
            drawn = feed.draw(chunk, tf.constant(0))
            parts = self.strategy.run(
                lambda d: tuple(self.gradient_half.reduced(active, feed, d)), args=(drawn,)
            )
            result = StepResult(*parts)
            self.apply_half.assign(result.before)
            local = self.strategy.experimental_local_results
            slopes = {v.name: local(g)[0] for v, g in zip(active, result.gradients, strict=True)}
            return slopes, local(result.sums)[0]

        return compute

    def _active(self, phase: Phase) -> list[ModelVariable]:
        return [v for v in self.state.variables if v.name in phase.names]

    def _step(self, phase: Phase, active: Sequence[ModelVariable], feed: Feed, drawn: Any) -> tf.Tensor:
        """One step; returns whether the loop is to stop after it."""
        parts = self.strategy.run(lambda d: tuple(self.gradient_half.step(active, feed, d)), args=(drawn,))
        result = StepResult(*parts)
        local = self.strategy.experimental_local_results
        names = [v.name for v in active]
        self.gradient_norms.see(phase, dict(zip(names, (local(g)[0] for g in result.gradients), strict=True)))
        if self.gradient_half.gated:
            apply = lambda: self.apply_half.apply(phase, result)  # noqa: E731
            tf.cond(local(result.finite)[0], apply, lambda: self.apply_half.skip(result))
        else:
            self.apply_half.apply(phase, result)
        return local(result.stopping)[0]
