"""All that a run is at a step: a flat dictionary of variables under names of its own."""

from collections.abc import Sequence

import tensorflow as tf

from trainer.groups import group_optimizer
from trainer.groups.group_optimizer import GroupOptimizer
from trainer.groups.phases import Phase
from trainer.model.names import ModelVariable
from trainer.model.returns import Means
from trainer.training import window

# Micikevicius et al. 2018, with the numbers of Keras: double after so many good steps, halve at an overflow.
LOSS_SCALE_START = 2.0**15
LOSS_SCALE_GROWTH = 2000
RECENT = 16


class TrainState:
    """The variables of a run: the model's, the optimizers', and what a loop adds. Make it in scope.

    Attributes:
      variables: the model's variables.
      optimizers: the built group optimizers.
      step: int64 scalar, steps done.
      means: that the loss yields.
      sums: float64, the open log window, see `window.py`.
      weightless: int64 scalar, steps of this process at which some loss had no weight; None without weights.
      averages: `{variable name: average}`, an exponential moving average of the weights after each update
        (Polyak & Juditsky 1992; Kingma & Ba 2015, section 7.2); empty without `--ema`.
      skipped: int64 scalar, steps that were non-finite and changed nothing.
      recent: int64 [16], the newest of those steps, the k-th at index k % 16.
      scale, good: loss scale and the steps since it last changed; None without float16.
    """

    def __init__(
        self,
        variables: Sequence[ModelVariable],
        group_optimizers: Sequence[GroupOptimizer],
        means: Means,
        ema: bool,
        loss_scale: bool,
    ) -> None:
        self.variables = tuple(variables)
        self.optimizers = tuple(group_optimizers)
        self.means = means
        self.step = _variable(tf.zeros([], tf.int64))
        self.sums = _variable(tf.zeros([window.size(means)], tf.float64))
        self.weightless = _variable(tf.zeros([], tf.int64)) if means.weighted else None
        self.skipped = _variable(tf.zeros([], tf.int64))
        self.recent = _variable(-tf.ones([RECENT], tf.int64))
        self.scale = _variable(tf.constant(LOSS_SCALE_START)) if loss_scale else None
        self.good = _variable(tf.zeros([], tf.int64)) if loss_scale else None
        trained = [v for o in group_optimizers for v in o.group.variables] if ema else []
        self.averages = {v.name: _variable(v.value.read_value()) for v in trained}

    def moved(self, phase: Phase) -> list[ModelVariable]:
        """What has an update in a phase, in the model's order."""
        losses = phase.loss_of
        return [v for v in self.variables if v.name in losses]

    def named(self) -> dict[str, tf.Variable]:
        """`{name: variable}` of everything that a resumed run needs; a checkpoint holds just this."""
        loop = {
            "step": self.step,
            "window/sums": self.sums,
            "nonfinite/skipped": self.skipped,
            "nonfinite/recent": self.recent,
        }
        if self.scale is not None:
            loop |= {"loss_scale/scale": self.scale, "loss_scale/good": self.good}
        return {
            **{f"model/{v.name}": v.value for v in self.variables},
            **group_optimizer.state(self.optimizers),
            **{f"ema/{name}": average for name, average in self.averages.items()},
            **loop,
        }

    def swap_averages(self, strategy: tf.distribute.Strategy) -> None:
        """Exchanges the weights and their averages, bit for bit; a second call puts them back."""
        for variable in self.variables:
            if variable.name in self.averages:
                _swap(strategy, variable.value, self.averages[variable.name])


def _variable(value: tf.Tensor) -> tf.Variable:
    return tf.Variable(value, trainable=False)


def _swap(strategy: tf.distribute.Strategy, one: tf.Variable, other: tf.Variable) -> None:
    def exchange(a: tf.Variable, b: tf.Variable) -> None:
        kept = tf.identity(a.read_value())
        a.assign(b.read_value())
        b.assign(kept)

    strategy.extended.update(one, exchange, args=(other,), group=False)
