"""The gradient half of a step: what each replica computes of its share of the batch, and the one reduce.

The model runs in a `Scope`. What its layers would write (BatchNormalization statistics, a kernel that is
normalised in place) comes back as values, for the apply half to assign; what they read as random state is
derived from (seed, step, replica), so that there is none to save.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.data.feed import Feed
from trainer.groups.phases import Phase
from trainer.model.names import ModelVariable
from trainer.model.returns import Term, rows_of, some_losses
from trainer.model.scope import Scope
from trainer.training import backward, packing, window
from trainer.training.backward import Slopes
from trainer.training.network import Network
from trainer.training.norms import by_group
from trainer.training.state import TrainState


@dataclass(frozen=True)
class Settings:
    """What of the flags a step depends on.

    Attributes:
      batch: examples of one update, over all replicas and accumulated batches.
      accumulate: forward and backward passes whose gradients one update sums, as one pass over all their
        examples would.
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
      gradients: of what has an update, in the model's order.
      sums: the window of this step's batch, see `window.py`.
      updates: `{variable name: new value}` of what the forward pass itself moves.
      before: `{variable name: value}` to put back where the step is skipped.
      stopping: bool scalar, some worker wants to stop after this step.
      finite: bool scalar, loss and gradient norm are finite.
      norms: of the gradient of each group that is due, [due groups]; [0] where the step itself has no need
        of them.
    """

    gradients: list[Any]
    sums: tf.Tensor
    updates: dict[str, tf.Tensor]
    before: dict[str, tf.Tensor]
    stopping: tf.Tensor
    finite: tf.Tensor
    norms: tf.Tensor


@dataclass(frozen=True)
class Gradients:
    """Forward and backward pass, in replica context.

    Attributes:
      network: of the run.
      state: of the run; read, never written.
      settings: see there.
      replicas: how many share a batch.
      stop: bool scalar variable: set where this process is to stop.
    """

    network: Network
    state: TrainState
    settings: Settings
    replicas: int
    stop: tf.Variable

    @property
    def gated(self) -> bool:
        """Whether a step that is not finite is to change nothing."""
        return self.settings.on_nonfinite != "off" or self.state.scale is not None

    def step(self, phase: Phase, feed: Feed, drawn: Any) -> StepResult:
        """The gradients of what trains in a phase on a batch: reduced, unscaled, checked and clipped.

        Half precision is kept from underflow by a dynamic loss scale (Micikevicius et al. 2018).
        """
        result = self.reduced(phase, feed, drawn)
        gradients = [packing.distinct(g) for g in result.gradients]
        factor = None
        if self.state.scale is not None:
            factor = 1 / self.state.scale.read_value()
        finite, norms = result.finite, result.norms
        if self.gated or self.settings.clip_norm:
            squares = self.squares(phase, gradients)
            norm, norms = tf.sqrt(tf.reduce_sum(squares)), tf.sqrt(squares)
            if factor is not None:
                norm *= tf.cast(factor, norm.dtype)
            loss = window.loss_sum(result.sums, self.state.means)
            finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
            if self.settings.clip_norm:
                shrink = packing.shrink(norm, self.settings.clip_norm)
                factor = shrink if factor is None else tf.cast(factor, norm.dtype) * shrink
        if factor is not None:
            gradients = [packing.scaled(g, factor) for g in gradients]
            norms *= tf.cast(factor, norms.dtype)
        return result._replace(gradients=gradients, finite=finite, norms=norms)

    def squares(self, phase: Phase, gradients: Sequence[Any]) -> tf.Tensor:
        """[due groups]: square norms of their gradients, which are given for what has an update, in order."""
        names = [v.name for v in self.state.moved(phase)]
        return packing.square_sums(by_group(phase, dict(zip(names, gradients, strict=True))))

    def reduced(self, phase: Phase, feed: Feed, drawn: Any) -> StepResult:
        """The step's sums over the replicas, each the same on every replica; nothing is checked yet."""
        context = tf.distribute.get_replica_context()
        before = self.plain()
        slopes, sums, updates = self._accumulated(phase, feed, drawn, context.replica_id_in_sync_group)
        stopping = tf.cast(self.stop, sums.dtype)
        if self.replicas > 1:
            flat = tf.nest.flatten(slopes)
            flat, (sums, stopping) = packing.all_reduce(context, flat, (sums, stopping))
            slopes = tf.nest.pack_sequence_as(slopes, flat)
            updates = _averaged(context, updates, before)
        weights = window.weights(sums, self.state.means)
        gradients = backward.combined(slopes, weights, self.state.moved(phase))
        still = {v.name for v in self.state.variables if not moves(v, phase)}
        updates |= {name: value for name, value in before.items() if name in still}
        true, none = tf.constant(True), tf.zeros([0])
        return StepResult(gradients, sums, updates, before, stopping > 0, true, none)

    def plain(self) -> dict[str, tf.Tensor]:
        """The values of the plain variables that a forward pass writes, to be put back."""
        written = (v for v in self.state.variables if v.keras is None and v.assigned)
        return {v.name: v.value.read_value() for v in written}

    def _accumulated(
        self, phase: Phase, feed: Feed, drawn: Any, replica: tf.Tensor
    ) -> tuple[Slopes, tf.Tensor, dict[str, tf.Tensor]]:
        """This replica's share of a step: its accumulated batches one after the other."""
        count = self.settings.accumulate
        step = self.state.step.read_value()

        def run(index: Any, carried: dict[str, tf.Tensor]) -> Any:
            part = index * self.replicas + replica
            key = tf.random.experimental.stateless_fold_in([self.settings.seed, 0], step)
            key = tf.random.experimental.stateless_fold_in(key, part)
            batch = feed.take(drawn, part, self.replicas * count)
            if not self.settings.jit_compile:
                return self._pass(phase, batch, key, carried)
            compiled = tf.function(lambda *args: self._pass(phase, *args), jit_compile=True, autograph=False)
            return compiled(batch, key, carried)

        slopes, sums, updates = run(0, {})
        if count > 1:
            # Rows that differ from batch to batch have no fixed size: the loop carries dense sums.
            slopes = tf.nest.map_structure(tf.convert_to_tensor, slopes)

            def add(index: tf.Tensor, slopes: Slopes, sums: tf.Tensor, updates: Any) -> Any:
                more, more_sums, updates = run(index, updates)
                added = tf.nest.map_structure(lambda a, b: a + tf.convert_to_tensor(b), slopes, more)
                return index + 1, added, sums + more_sums, updates

            start = (tf.constant(1), slopes, sums, updates)
            _, slopes, sums, updates = tf.while_loop(lambda i, *_: i < count, add, start)
        return slopes, sums, updates

    def _pass(
        self, phase: Phase, batch: dict[str, Any], key: tf.Tensor, carried: dict[str, tf.Tensor]
    ) -> tuple[Slopes, tf.Tensor, dict[str, tf.Tensor]]:
        """One forward and backward pass: (gradients, sums, new values of what the pass itself moves)."""
        variables, moved = self.state.variables, self.state.moved(phase)
        active = [v for v in variables if v.name in phase.names]
        rows = rows_of(batch)
        batch = self.network.preprocess(batch, True, key)
        # Each pass of each replica adds what the model adds once; together they are to weigh one.
        size, passes = self.settings.batch, self.replicas * self.settings.accumulate
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in moved])
            with Scope(variables, key, phase.names, carried) as scope:
                terms, metrics = self.network.loss(batch, True, rows)
                own = scope.losses + regularization(active)
            found = backward.objectives(terms, own, phase.loss_of, size, passes)
            if self.state.scale is not None:
                scale = self.state.scale
                found = [x._replace(value=x.value * tf.cast(scale, x.value.dtype)) for x in found]
        slopes = _slopes(tape, found, moved, self.replicas)
        updates = {}
        for v in variables:
            value = scope.assigned(v)
            if v.keras is None and v.assigned:
                value = v.value.read_value()
            if value is not None and moves(v, phase):
                value.set_shape(v.shape)
                updates[v.name] = value
        losses = some_losses(terms)
        own_loss = sum(tf.cast(x, losses.dtype) for x in own) / passes * size
        return slopes, self.sums(terms, metrics, tf.ones_like(losses), own_loss), updates

    def sums(
        self, terms: Mapping[str, Term], metrics: Mapping[str, Any], mask: tf.Tensor, added: Any
    ) -> tf.Tensor:
        """The window of a batch; arguments as of `window.of_batch`."""
        return window.of_batch(terms, metrics, self.state.means, mask, added)


def _slopes(
    tape: tf.GradientTape, found: Sequence[backward.Objective], active: Sequence[ModelVariable], replicas: int
) -> Slopes:
    """The gradients of one pass, weighted, for each of the variables `active`."""
    result: Slopes = [{} for _ in active]
    for objective in found:
        moved = [(i, v) for i, v in enumerate(active) if v.name in objective.moves]
        gradients = tape.gradient(objective.value, [v.value for _, v in moved])
        for (i, v), gradient in zip(moved, gradients, strict=True):
            if gradient is not None:
                gradient = _shaped(gradient, v, replicas)
                if objective.weight is not None:
                    gradient = packing.scaled(gradient, objective.weight)
                result[i][objective.divisor] = gradient
    return result


def regularization(variables: Sequence[ModelVariable]) -> list[tf.Tensor]:
    """The weight regularisers of `variables`, scalars, each once."""
    kept = [v.keras for v in variables if v.keras is not None]
    return [v.regularizer(v.value) for v in kept if getattr(v, "regularizer", None) is not None]


def moves(variable: ModelVariable, phase: Phase) -> bool:
    """Whether what a forward pass leaves in a variable is to stay."""
    if variable.trainable:
        return variable.name in phase.names
    return not variable.random and variable.name not in phase.still


def _shaped(gradient: Any, variable: ModelVariable, replicas: int) -> Any:
    """`gradient` with its static shape, which lengths that differ from batch to batch hide.

    Of a `tf.IndexedSlices` several replicas gather the rows, and for that their number must be the same in
    every step: where it is not known, the gradient becomes dense.
    """
    if isinstance(gradient, tf.IndexedSlices):
        if replicas == 1 or gradient.values.shape.is_fully_defined():
            return gradient
        gradient = tf.convert_to_tensor(gradient)
    if isinstance(gradient, tf.Tensor):
        gradient.set_shape(variable.shape)
    return gradient


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
