"""The evaluation of a split: its feed, and the function that runs it and reports."""

import contextlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from trainer.data.feed import Feed
from trainer.data.sources.tfds import Dataset
from trainer.data.streaming import eval_feed, residency
from trainer.devices.strategy import worker
from trainer.flags.config import Config
from trainer.report.screen import Reporter
from trainer.run.build import Built
from trainer.training.gradients import Settings
from trainer.training.loop import evaluate
from trainer.training.program import Program
from trainer.training.state import TrainState

Evaluate = Callable[[], dict[str, float]]


def feed(config: Config, built: Built, dataset: Dataset) -> Feed | None:
    """Every example of the evaluation split once; None with `--eval_split=none`."""
    strategy, decode = built.strategy, getattr(built.module, "decode", None)
    if config.eval_split == "none":
        return None
    way = residency(config.data_residency, dataset, config.eval_split, decode, strategy)
    workers = worker(strategy)
    return eval_feed(way, dataset, config.eval_split, decode, strategy, config.batch_size, workers)


def evaluator(
    examples: Feed | None, program: Program, reporter: Reporter, weights: tuple[str, ...]
) -> Evaluate | None:
    """A function that evaluates the weights as they stand and reports the result; None without a feed.

    It returns nothing, and has reported nothing, where it was stopped before the end.

    Args:
      examples: an evaluation feed.
      program: whose weights are evaluated.
      reporter: told the results.
      weights: `raw`, `ema` or both, in the order to evaluate them in; the last one's metrics are
        what the function returns.
    """
    if examples is None:
        return None
    function = program.evaluator(examples)
    swap = tf.function(lambda: program.state.swap_averages(program.strategy))

    def one(kind: str) -> dict[str, float]:
        with _swapped(swap) if kind == "ema" else contextlib.nullcontext():
            return evaluate(program, function, examples)

    def all_kinds() -> dict[str, float]:
        results = {kind: one(kind) for kind in weights}
        if not all(results.values()):
            return {}
        step = int(program.state.step.numpy())
        for kind, values in results.items():
            reporter.evaluation({"kind": "eval", "step": step, "weights": kind, **values})
        return results[weights[-1]]

    return all_kinds


@contextlib.contextmanager
def _swapped(swap: Callable[[], None]) -> Iterator[None]:
    """The averages of the weights in the place of the weights, for as long as the context lasts."""
    swap()
    try:
        yield
    finally:
        swap()


def make_program(config: Config, built: Built, metrics: tuple[str, ...]) -> Program:
    """What evaluates the model's weights and cannot train them."""
    with built.strategy.scope():
        state = TrainState(built.variables, (), metrics, ema=False, loss_scale=False)
    return Program(built.strategy, built.module, built.model, state, {}, Settings(batch=config.batch_size))
