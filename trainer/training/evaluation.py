"""The evaluation of a split: the mean loss and metrics of the weights as they stand."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from trainer.data.feed import Feed, reading
from trainer.groups.phases import Phase
from trainer.report.reporter import Reporter
from trainer.training import window
from trainer.training.program import Program

Evaluate = Callable[[Phase], dict[str, float]]


def evaluate(program: Program, function: Any, feed: Feed) -> dict[str, float]:
    """Mean loss and metrics over the whole split, each example once; `examples` counts them.

    Empty where the program was asked to stop before the end: a part of a split is no evaluation.

    Args:
      program: whose weights, as they stand.
      function: its compiled `evaluator`.
      feed: an evaluation feed.
    """
    assert feed.steps is not None
    with reading(feed, 0, feed.steps):
        sums = function(feed.chunk(0, feed.steps), tf.constant(feed.steps)).numpy()
    if program.stopped.numpy():
        return {}
    return {**window.means(sums, program.state.metrics), "examples": window.examples(sums)}


def evaluator(examples: Feed, program: Program, reporter: Reporter, weights: tuple[str, ...]) -> Evaluate:
    """A function that evaluates the weights as they stand after a step of a phase, and reports the result.

    It returns nothing, and has reported nothing, where it was stopped before the end.

    Args:
      examples: an evaluation feed.
      program: whose weights are evaluated.
      reporter: told the results.
      weights: `raw`, `ema` or both, in the order to evaluate them in; the last one's metrics are
        what the function returns.
    """
    functions: dict[frozenset[str], Any] = {}  # compiled anew only where the phase makes a difference
    swap = tf.function(lambda: program.state.swap_averages(program.strategy))

    def one(kind: str, phase: Phase) -> dict[str, float]:
        key = program.evaluated_otherwise & phase.names
        function = functions.setdefault(key, program.evaluator(examples, phase.names))
        with _swapped(swap) if kind == "ema" else contextlib.nullcontext():
            return evaluate(program, function, examples)

    def all_kinds(phase: Phase) -> dict[str, float]:
        results = {kind: one(kind, phase) for kind in weights}
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
