"""The evaluation of a split: its feed, and the function that runs it and reports."""

import contextlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from trainer import distribution, pipelines
from trainer.building import Built
from trainer.config import Config
from trainer.data import Dataset
from trainer.feeds import Feed
from trainer.gradients import Settings
from trainer.loop import evaluate
from trainer.report import Reporter
from trainer.state import TrainState
from trainer.step import Program

Evaluate = Callable[[], dict[str, float]]


def feed(config: Config, built: Built, dataset: Dataset) -> Feed | None:
    """Every example of the evaluation split once; None with `--eval_split=none`."""
    strategy, decode = built.strategy, getattr(built.module, "decode", None)
    if config.eval_split == "none":
        return None
    way = pipelines.residency(config.data_residency, dataset, config.eval_split, decode, strategy)
    workers = distribution.worker(strategy)
    return pipelines.eval_feed(way, dataset, config.eval_split, decode, strategy, config.batch_size, workers)


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


def program(config: Config, built: Built, metrics: tuple[str, ...]) -> Program:
    """What evaluates the model's weights and cannot train them."""
    with built.strategy.scope():
        state = TrainState(built.variables, (), metrics, ema=False, loss_scale=False)
    return Program(built.strategy, built.module, built.model, state, {}, Settings(batch=config.batch_size))
