"""A run in a few lines for tests: a model, rules and arrays, with no flags, files or data sets."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from trainer.data.feed import MASK
from trainer.flags.calls import Clock
from trainer.groups import optimizers, schedules
from trainer.groups.optimizers import GroupOptimizer
from trainer.groups.rules import Phase, assign, parse_rules, phases, resolve
from trainer.model.module import check_loss
from trainer.model.names import ModelVariable, walk
from trainer.training.gradients import Settings
from trainer.training.program import Program
from trainer.training.state import TrainState

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass
class ArrayFeed:
    """Batches in order out of arrays in memory; step k has rows k * batch .. (k + 1) * batch - 1."""

    arrays: Arrays
    batch: int
    mask: bool = False

    @property
    def examples(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def steps(self) -> int:
        return -(-self.examples // self.batch)

    @property
    def spec(self) -> tf.TensorSpec:
        return tf.TensorSpec([None, self.batch], tf.int32)

    def chunk(self, step: int, n: int) -> tf.Tensor:
        rows = np.arange(step * self.batch, (step + n) * self.batch).reshape(n, self.batch)
        return tf.constant(rows, tf.int32)

    def draw(self, chunk: tf.Tensor, i: tf.Tensor) -> tf.Tensor:
        return chunk[i]

    def take(self, drawn: tf.Tensor, part: Any, parts: int) -> dict[str, tf.Tensor]:
        size = self.batch // parts
        rows = tf.ensure_shape(drawn[part * size : (part + 1) * size], [size])
        batch = {name: tf.gather(tf.constant(a), rows % self.examples) for name, a in self.arrays.items()}
        return {**batch, MASK: tf.cast(rows < self.examples, tf.float32)} if self.mask else batch


@dataclasses.dataclass
class Made:
    """What `make` returns: the program, and shortcuts into it."""

    program: Program
    phases: list[Phase]
    variables: list[ModelVariable]
    optimizers: list[GroupOptimizer]
    feed: Any

    def train(self, start: int, stop: int) -> None:
        """Steps `start` up to `stop`, in as many calls as there are phases."""
        for phase in self.phases:
            first, last = max(start, phase.start), min(stop, phase.stop)
            if first < last:
                function = self.program.trainer(phase, self.feed)
                function(self.feed.chunk(first, last - first), tf.constant(last - first))

    def values(self) -> dict[str, np.ndarray]:
        """Every model variable's value."""
        return {v.name: v.value.numpy() for v in self.variables}


def make(
    build: Callable[[], Any],
    loss: Callable[..., Any],
    rules: Sequence[str],
    arrays: Arrays,
    steps: int,
    strategy: tf.distribute.Strategy | None = None,
    precision: str = "float32",
    seed: int = 0,
    multipliers: Mapping[str, float] | None = None,
    no_decay: frozenset[str] = frozenset(),
    preprocess: Callable[..., Any] | None = None,
    **settings: Any,
) -> Made:
    """A program over `build`'s model. `settings` are those of `trainer.training.gradients.Settings`."""
    strategy = strategy or tf.distribute.get_strategy()
    keras.backend.clear_session()  # forgets the dtype policy, so it comes first
    use_precision(precision)
    keras.utils.set_random_seed(seed)
    module = SimpleNamespace(build=build, loss=loss, preprocess=preprocess)
    with strategy.scope():
        model = build()
        variables = walk(model)
        clock = Clock(None, settings["batch"], steps)
        resolved = resolve(assign(parse_rules(rules), variables), clock, steps)
        made = [
            GroupOptimizer(g, optimizers.make(g.rule.optimizer, g.rule.flag), multipliers or {}, no_decay)
            for g in resolved
        ]
        for optimizer in made:
            optimizer.build()
        batch = settings["batch"] // settings.get("accumulate", 1)
        spec = {name: tf.TensorSpec(a.shape[1:], a.dtype) for name, a in arrays.items()}
        trained = frozenset(v.name for g in resolved for v in g.variables)
        metrics = check_loss(
            module, model, variables, trained, spec, batch // strategy.num_replicas_in_sync, strategy
        )
        state = TrainState(
            variables, made, metrics, settings.get("ema") is not None, precision == "mixed_float16"
        )
    rates = {
        g.name: schedules.build(schedules.check(g.rule.schedule, ""), clock, g.stop - g.start, "")
        for g in resolved
    }
    program = Program(strategy, module, model, state, rates, Settings(seed=seed, **settings))
    feed = ArrayFeed(arrays, settings["batch"])
    return Made(program, phases(resolved, steps), variables, made, feed)


def use_precision(precision: str) -> None:
    """Keras's float type and policy, as the program sets them."""
    keras.config.set_floatx("float64" if precision == "float64" else "float32")
    keras.config.set_dtype_policy(precision)


def mirrored(count: int = 2) -> tf.distribute.Strategy:
    """A MirroredStrategy over logical CPUs, one of each size a process."""
    return _mirrored(count)  # apart, so that the cache sees one key for a default and the same number given


@functools.cache
def _mirrored(count: int) -> tf.distribute.Strategy:
    # TensorFlow numbers collectives by strategy from the same start; its own tests keep them apart so, too.
    with mock.patch.object(tf.distribute.MirroredStrategy, "_collective_key_base", 100_000 * count):
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def digits(examples: int, dtype: str = "float64", side: int = 28) -> dict[str, np.ndarray]:
    """Random images in [0, 1] and labels 0 to 9, always the same."""
    random = np.random.default_rng(7)
    return {
        "image": random.random((examples, side, side, 1)).astype(dtype),
        "label": random.integers(0, 10, examples),
    }
