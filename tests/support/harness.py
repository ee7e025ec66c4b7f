"""A run in a few lines for tests: a model, rules and arrays, with no flags, files or data sets."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import trainer
from trainer.data.feed import MASK
from trainer.devices import strategy as strategies
from trainer.flags.config import Config
from trainer.groups.group_optimizer import GroupOptimizer
from trainer.groups.phases import Phase
from trainer.model.names import ModelVariable
from trainer.run.assemble import Assembled, assemble
from trainer.training.program import Program

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

    def fault(self, step: int, n: int) -> None:
        return None

    def waited(self) -> None:
        return None

    def take(self, drawn: tf.Tensor, part: Any, parts: int) -> dict[str, tf.Tensor]:
        size = self.batch // parts
        rows = tf.ensure_shape(drawn[part * size : (part + 1) * size], [size])
        batch = {name: tf.gather(tf.constant(a), rows % self.examples) for name, a in self.arrays.items()}
        return {**batch, MASK: tf.cast(rows < self.examples, tf.float32)} if self.mask else batch


@dataclasses.dataclass
class Made:
    """What `make` returns: a run, its program, and shortcuts into them."""

    run: Assembled
    program: Program
    feed: Any

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.run.parts.phases

    @property
    def variables(self) -> tuple[ModelVariable, ...]:
        return self.run.built.variables

    @property
    def optimizers(self) -> tuple[GroupOptimizer, ...]:
        return self.run.parts.optimizers

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
    batch: int = 8,
    **flags: Any,
) -> Made:
    """A run over `build`'s model, whose feed has the rows of `arrays` in order.

    `batch` is of an update; `flags` are flags, and `preprocess` and `depth` of the model module.
    """
    parts = {name: flags.pop(name) for name in ("preprocess", "depth") if name in flags}
    accumulate = flags.get("accumulate", 1)
    config = Config(
        model=trainer.ModelModule(build=build, loss=loss, **parts),
        dataset=arrays,
        group=rules,
        batch_size=batch // accumulate,
        train_for=steps,
        **{
            "eval_split": "none",
            "bad_examples": "keep",  # tests plant NaN
            "on_nonfinite": "skip" if flags.get("precision") == "mixed_float16" else "off",
            **flags,
        },
    )
    config.check()
    run = assemble(config, on=(strategy or tf.distribute.get_strategy(), "as given"))
    stored = run.split.source.arrays("train")
    return Made(run, run.program(), ArrayFeed(stored, batch))


def use_precision(precision: str) -> None:
    """Keras's float type and policy, as the program sets them."""
    keras.config.set_floatx("float64" if precision == "float64" else "float32")
    keras.config.set_dtype_policy(precision)


def mirrored(count: int = 2) -> tf.distribute.Strategy:
    """A MirroredStrategy over logical CPUs."""
    return strategies.mirrored([f"CPU:{i}" for i in range(count)])


def digits(examples: int, dtype: str = "float64", side: int = 28) -> dict[str, np.ndarray]:
    """Random images in [0, 1] and labels 0 to 9, always the same."""
    random = np.random.default_rng(7)
    return {
        "image": random.random((examples, side, side, 1)).astype(dtype),
        "label": random.integers(0, 10, examples),
    }
