"""The compiled functions: n training steps a call, and the evaluation of a split.

A step is two halves. In the gradient half (`gradients.py`) each replica runs the model forward and
backward over its share of the batch, and one packed all-reduce sums gradients, loss and metrics. In the
apply half (`updates.py`), which a non-finite step skips, each group's Keras optimizer moves its variables.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import tensorflow as tf

from trainer.data.feed import Feed
from trainer.groups.phases import Phase
from trainer.groups.schedules import Schedule
from trainer.model.frozen import FrozenLayers
from trainer.model.graphs import for_effect
from trainer.training import window
from trainer.training.forward import Forward
from trainer.training.gradients import Gradients, Settings, StepResult
from trainer.training.network import Network
from trainer.training.norms import Norms, of_active
from trainer.training.split_metrics import Rows
from trainer.training.state import TrainState
from trainer.training.updates import Updates


class Program:
    """The compiled training and evaluation of one run.

    Args:
      strategy: as `trainer.devices` chose it.
      network: what the user brought.
      state: made in the strategy's scope.
      schedules: `{group name: schedule}`, each of the step relative to the group's start.
      settings: see there.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        network: Network,
        state: TrainState,
        schedules: Mapping[str, Schedule],
        settings: Settings,
    ) -> None:
        self.strategy = strategy
        self.network = network
        self.state = state
        self.schedules = schedules
        self.settings = settings
        self.frozen = FrozenLayers(state.variables)
        self.replicas = strategy.num_replicas_in_sync
        with tf.device("CPU:0"):
            # Set from outside while a call runs: the loop ends after the step in hand.
            self.stop = tf.Variable(False, trainable=False)
            # Whether the last call ended so: on all workers alike, whichever of them was asked to stop.
            self.stopped = tf.Variable(False, trainable=False)
            self.halted = tf.Variable(False, trainable=False)
        self.norms = Norms()
        self.gradient_half = Gradients(network, state, settings, self.replicas, self.stop)
        self.apply_half = Updates(strategy, state, schedules, settings, self.halted)

    def trainer(self, phase: Phase, feed: Feed) -> Callable[[Any, tf.Tensor], tf.Tensor]:
        """The compiled loop of one phase: `(chunk, n) -> steps done`, n an int32 scalar tensor.

        Less than n steps are done when `stop` was set or a step halted. Of the n-th `norms` tells. Layers
        that are frozen in this phase run as `trainable=False` from now on.
        """
        self.frozen.enter(phase.names, phase.still)
        halts = self.settings.on_nonfinite == "halt"
        dtype = self.state.moved(phase)[0].value.dtype

        # AutoGraph is for the user's functions alone: it would take seconds over ours at every start.
        @tf.function(input_signature=[feed.spec, tf.TensorSpec([], tf.int32)], autograph=False)
        def train(chunk: Any, n: tf.Tensor) -> tf.Tensor:
            def before(end: tf.Tensor) -> Callable[..., tf.Tensor]:
                def more(i: tf.Tensor, stopping: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
                    go = tf.logical_and(i < end, tf.logical_not(stopping))
                    return tf.logical_and(go, tf.logical_not(self.halted)) if halts else go

                return more

            def leg(
                i: tf.Tensor, stopping: tf.Tensor, _: tf.Tensor
            ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
                last, weights = i >= n - 1, self.norms.weights(phase)

                def step(i: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
                    return i + 1, *self._step(phase, feed, feed.draw(chunk, i), last)

                start = (i, stopping, tf.zeros([len(phase.active)], dtype))
                i, stopping, norms = tf.while_loop(before(tf.where(last, n, n - 1)), step, start)
                return i, stopping, self.norms.of(phase, weights, norms)

            nothing = tf.zeros([3, len(phase.active)], tf.float64)
            start = (tf.constant(0), tf.constant(False), nothing)
            done, stopping, norms = tf.while_loop(before(n), leg, start)
            self.stopped.assign(stopping)
            self.norms.keep(norms)
            return done

        return train

    def evaluator(
        self, feed: Feed, active: frozenset[str] | None = None
    ) -> Callable[[Any, tf.Tensor], tuple[tf.Tensor, dict[str, tf.Tensor]]]:
        """The compiled evaluation: `(chunk, n) -> (window float64, {output: [n, batch, ...]})` of n batches.

        The second is empty where the model module has no `outputs`.

        What is random in it starts from the seed and the position of the first example of a replica's
        share: no two batches repeat, and another batch size draws others.

        Args:
          feed: an evaluation feed.
          active: names of the weights that train at this step: the regularisers of others count for
            nothing, as in training. None for all that the model does not declare frozen.
        """
        forward = Forward(self.gradient_half, feed, active)
        rows = Rows(self.strategy, self.network.outputs.specs if self.network.outputs else {})

        @tf.function(input_signature=[feed.spec, tf.TensorSpec([], tf.int32)], autograph=False)
        def evaluate(chunk: Any, n: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            def batch(i: tf.Tensor, total: tf.Tensor, kept: Any) -> tuple[tf.Tensor, tf.Tensor, Any]:
                sums, given, before = self.strategy.run(forward.share, args=(feed.draw(chunk, i), i))
                self.apply_half.assign(before)
                total += tf.cast(self.strategy.reduce("SUM", sums, axis=None), tf.float64)
                return i + 1, total, rows.write(kept, i, given)

            zero = tf.zeros([window.size(self.state.means) + 1], tf.float64)
            start = (tf.constant(0), zero, rows.start(n))
            more = lambda i, total, _: tf.logical_and(total[-1] <= 0, i < n)  # noqa: E731
            _, total, kept = tf.while_loop(more, batch, start)
            self.stopped.assign(total[-1] > 0)
            return total[:-1], rows.stack(kept)

        return evaluate

    def pass_over(self) -> None:
        """Counts the next step as one that was not finite and changed nothing; computes nothing of it."""
        nothing = StepResult([], tf.zeros([]), {}, {}, *3 * [tf.constant(False)])
        tf.function(lambda: self.apply_half.skip(nothing), autograph=False)()

    @property
    def evaluated_otherwise(self) -> frozenset[str]:
        """Names of the weights that make a difference in evaluation by whether they train."""
        own = (v for v in self.state.variables if v.trainable and v.keras is not None)
        return frozenset(v.name for v in own if v.assigned or getattr(v.keras, "regularizer", None))

    def gradients(self, phase: Phase, feed: Feed) -> Callable[[Any], tuple[dict[str, Any], tf.Tensor]]:
        """`chunk -> ({variable: gradient}, window)` of the chunk's first step, applied to nothing.

        The gradients are summed over the replicas and neither clipped nor unscaled.
        """
        self.frozen.enter(phase.names, phase.still)
        moved = self.state.moved(phase)

        @tf.function(input_signature=[feed.spec], autograph=False)
        def compute(chunk: Any) -> tuple[dict[str, Any], tf.Tensor]:
            drawn = feed.draw(chunk, tf.constant(0))
            parts = self.strategy.run(
                lambda d: tuple(self.gradient_half.reduced(phase, feed, d)), args=(drawn,)
            )
            result = StepResult(*parts)
            self.apply_half.assign(result.before)
            local = self.strategy.experimental_local_results
            slopes = {v.name: local(g)[0] for v, g in zip(moved, result.gradients, strict=True)}
            return slopes, local(result.sums)[0]

        return compute

    def _step(self, phase: Phase, feed: Feed, drawn: Any, watched: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One step, of the groups that are due at it.

        (Whether the loop is to stop after it, norms of its gradients if it is `watched`.)
        """
        if len(phase.turns) == 1:
            return self._update(phase.turns[0], feed, drawn, watched)
        step = self.state.step.read_value()
        due = tf.stack([(step - group.start) % group.rule.every == 0 for group in phase.active])
        turns = [[group.name not in turn.rests for group in phase.active] for turn in phase.turns]
        now = tf.argmax(
            tf.cast(tf.reduce_all(tf.constant(turns) == due, axis=1), tf.int32), output_type=tf.int32
        )
        update = partial(self._update, feed=feed, drawn=drawn, watched=watched)
        return tf.switch_case(now, [partial(update, turn) for turn in phase.turns])

    def _update(
        self, phase: Phase, feed: Feed, drawn: Any, watched: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        parts = self.strategy.run(lambda d: tuple(self.gradient_half.step(phase, feed, d)), args=(drawn,))
        result = StepResult(*parts)
        local = self.strategy.experimental_local_results
        norms = local(result.norms)[0]
        if not norms.shape[0]:  # the step has no need of them, and shall not pay for them
            own = [local(g)[0] for g in result.gradients]
            squares = lambda: self.gradient_half.squares(phase, own)  # noqa: E731
            nothing = lambda: tf.zeros([len(phase.due)], own[0].dtype)  # noqa: E731
            norms = tf.sqrt(tf.cond(watched, squares, nothing))
        norms = of_active(phase, norms)
        if self.gradient_half.gated:
            apply = lambda: self.apply_half.apply(phase, result)  # noqa: E731
            # An assertion of the user's own has no output: nothing is to be written before it has held.
            finite = local(result.finite)[0]
            if checks := for_effect(graph.get_operations()[before:]):
                with tf.control_dependencies(checks):
                    finite = tf.identity(finite)
            tf.cond(finite, apply, lambda: self.apply_half.skip(result))
        else:
            self.apply_half.apply(phase, result)
        return local(result.stopping)[0], norms
