"""The evaluation of a split: the mean loss and metrics of the weights as they stand."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.feed import Feed, reading
from trainer.groups.phases import Phase
from trainer.model.outputs import Evaluation
from trainer.report.reporter import Reporter
from trainer.training import split_metrics, window
from trainer.training.program import Program

Evaluate = Callable[[Phase], dict[str, float]]


def evaluate(program: Program, function: Any, feed: Feed) -> Evaluation:
    """Mean loss and metrics over the whole split, each example once; `examples` counts them.

    Without numbers where the program was asked to stop before the end: a part of a split is no evaluation.

    Args:
      program: whose weights, as they stand.
      function: its compiled `evaluator`.
      feed: an evaluation feed.
    """
    assert feed.steps is not None
    with reading(feed, 0, feed.steps):
        sums, rows = function(feed.chunk(0, feed.steps), tf.constant(feed.steps))
    if program.stopped.numpy():
        return Evaluation({}, {})
    yielded, sums = program.state.means, sums.numpy()
    numbers: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    split: dict[str, np.ndarray] = {}
    if program.network.outputs:
        split = split_metrics.flat(rows, feed.examples)
        numbers, arrays = split_metrics.of_split(
            program.strategy, program.network.outputs, split, yielded.names
        )
    means = window.means_of(sums, yielded)
    weightless = tuple(window.weightless(sums, yielded))
    return Evaluation({**means, **numbers, "examples": window.examples(sums)}, arrays, split, weightless)


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
    warned: set[str] = set()
    functions: dict[frozenset[str], Any] = {}  # compiled anew only where the phase makes a difference
    swap = tf.function(lambda: program.state.swap_averages(program.strategy))

    def one(kind: str, phase: Phase) -> Evaluation:
        key = program.evaluated_otherwise & phase.names
        function = functions.setdefault(key, program.evaluator(examples, phase.names))
        with _swapped(swap) if kind == "ema" else contextlib.nullcontext():
            return evaluate(program, function, examples)

    def all_kinds(phase: Phase) -> dict[str, float]:
        results = {kind: one(kind, phase) for kind in weights}
        if not all(result.numbers for result in results.values()):
            return {}
        step = int(program.state.step.numpy())
        for kind, (numbers, arrays, rows, weightless) in results.items():
            for name in set(weightless) - warned:
                reporter.warn(without_weight(name))
            warned.update(weightless)
            reporter.evaluation({"kind": "eval", "step": step, "weights": kind, **numbers}, arrays)
            reporter.rows = step, rows
        return results[weights[-1]].numbers

    return all_kinds


def without_weight(name: str) -> str:
    """The sentence on a loss or metric of an evaluation that no example gave a weight."""
    return f"The weights of the {name} sum to 0 in an evaluation: it is NaN, which is never the best."


@contextlib.contextmanager
def _swapped(swap: Callable[[], None]) -> Iterator[None]:
    """The averages of the weights in the place of the weights, for as long as the context lasts."""
    swap()
    try:
        yield
    finally:
        swap()
