"""The outer loop: which steps to hand to the device at a time, and what happens between them.

The host is visited about once a second and at every event: a log point, an evaluation, a checkpoint, the
edge of a phase, the end. Events fall on fixed steps, so that they are the same whatever was interrupted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.feed import Feed
from trainer.devices.strategy import worker
from trainer.errors import UserError, listing
from trainer.groups.rules import Phase
from trainer.report.screen import Reporter
from trainer.training.program import Program
from trainer.training.state import RECENT

VISIT = 1.0  # seconds between two visits of the host
TOGETHER = 100  # steps between two visits where several workers make them


@dataclass
class Events:
    """At which steps something happens: multiples of each period, and the end."""

    log: int
    evaluate: int
    save: int
    total: int

    def next(self, step: int, phase: Phase) -> int:
        """The first step after `step` at which the host must act."""
        due = [(step // period + 1) * period for period in (self.log, self.evaluate, self.save)]
        return min(*due, phase.stop, self.total)

    def due(self, period: int, step: int) -> bool:
        """Whether an event of this period falls on `step`."""
        return step % period == 0 or step == self.total


@dataclass
class Result:
    """How a run went: final metrics, seconds and steps of this process, whether it was stopped."""

    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    training_seconds: float = 0.0
    steps: int = 0
    stopped: bool = False


@dataclass
class Loop:
    """One training run from the step its state stands at to the end, or to a signal.

    Attributes:
      program: compiled functions and state.
      phases: of the run.
      events: of the run.
      feed: training batches.
      reporter: for screen and files.
      evaluate: returns `{metric: value}` of the evaluation split; None for no evaluation.
      save: writes a checkpoint of this step with the metrics of an evaluation at it.
      evaluate_first: an evaluation of the start step is still to be done, as a stop came before it.
      steps_per_epoch: for the report; fractional.
      save_evaluated: save at every evaluation too, so that the best one is there to keep.
    """

    program: Program
    phases: tuple[Phase, ...]
    events: Events
    feed: Feed
    reporter: Reporter
    evaluate: Callable[[], dict[str, float]] | None
    save: Callable[[int, dict[str, float]], None]
    steps_per_epoch: float
    evaluate_first: bool = False
    save_evaluated: bool = False
    _pace: float = 0.0  # steps a second, of the last call
    _logged: tuple[int, float] = (0, 0.0)  # step and training seconds at the last log point
    _skipped: int = 0

    def run(self) -> Result:
        """Trains to the end.

        Raises:
          UserError: a non-finite step under `--on_nonfinite=halt`; the state before it was saved.
        """
        state, result = self.program.state, Result()
        began, step = time.perf_counter(), int(state.step.numpy())
        first, saved = step, step
        self._logged = (step, 0.0)
        self._skipped = int(state.skipped.numpy())
        if self.evaluate_first and self.evaluate:
            result.metrics = self.evaluate()
            result.stopped = bool(self.program.stopped.numpy())
            if result.metrics:  # beside the checkpoint of this step that has none
                self.save(step, result.metrics)
        for phase in self.phases:
            if phase.stop <= step or result.stopped:
                continue
            train = self.program.trainer(phase, self.feed)
            self._pace = 0.0
            while step < phase.stop and not result.stopped:
                before, step = step, self._call(train, phase, step, result)
                if self.program.halted.numpy():
                    self._report_skipped()
                    if saved != step:
                        self.save(step, result.metrics if step == before else {})
                    raise UserError(self._diagnosis(phase, step))
                result.stopped = bool(self.program.stopped.numpy())
                result.metrics = self._visit(step, phase, result)
                result.stopped = bool(self.program.stopped.numpy())  # during an evaluation, too
                best = self.save_evaluated and bool(result.metrics)
                if self.events.due(self.events.save, step) or best or result.stopped:
                    self.save(step, result.metrics)
                    saved = step
        if saved != step:
            self.save(step, result.metrics)
        result.steps, result.seconds = step - first, time.perf_counter() - began
        return result

    def _call(self, train: Any, phase: Phase, step: int, result: Result) -> int:
        """Hands the device as many steps as fit into a visit; returns the step it stands at then."""
        most = max(1, int(self._pace * VISIT)) if self._pace else 1
        if worker(self.program.strategy)[1] > 1:  # each of which must come to the same number
            most = TOGETHER
        n = min(self.events.next(step, phase) - step, most)
        began = time.perf_counter()
        done = int(train(self.feed.chunk(step, n), tf.constant(n)).numpy())
        seconds = time.perf_counter() - began
        # The first call compiles as well, so that its pace says nothing but that a step can be had.
        self._pace = done / seconds if self._pace else 20 / VISIT
        result.training_seconds += seconds
        return int(self.program.state.step.numpy())

    def _visit(self, step: int, phase: Phase, result: Result) -> dict[str, float]:
        """Reports where the run stands; returns the evaluation's metrics where one was due."""
        means, rate = self._means(), self._rate(step, result)
        self._report_skipped()
        self.reporter.progress(step, means["loss"], _without_loss(means), rate)
        if self.events.due(self.events.log, step):
            self._log(step, phase, means, rate)
            self._logged = (step, result.training_seconds)
        if result.stopped or not self.evaluate or not self.events.due(self.events.evaluate, step):
            return {}
        return self.evaluate()

    def _rate(self, step: int, result: Result) -> float:
        """Examples a second since the last log point."""
        seconds = result.training_seconds - self._logged[1]
        return (step - self._logged[0]) * self.feed.batch / seconds if seconds > 0 else 0.0

    def _means(self) -> dict[str, float]:
        """Mean loss and metrics over the open window."""
        return means(self.program.state.sums.numpy(), self.program.state.metrics)

    def _log(self, step: int, phase: Phase, values: dict[str, float], rate: float) -> None:
        state = self.program.state
        last = tf.constant(step - 1, tf.int64)
        rates = {g.name: float(self.program.schedules[g.name](last - g.start)) for g in phase.active}
        self.reporter.log(
            {
                "kind": "train",
                "step": step,
                "epoch": step / self.steps_per_epoch,
                **values,
                "learning_rate": rates,
                "examples_per_second": rate,
                "skipped_steps": int(state.skipped.numpy()),
            }
        )
        state.sums.assign(tf.zeros_like(state.sums.read_value()))

    def _report_skipped(self) -> None:
        state = self.program.state
        skipped = int(state.skipped.numpy())
        if skipped == self._skipped:
            return
        recent = state.recent.numpy()
        shown = [int(recent[k % RECENT]) for k in range(max(self._skipped, skipped - RECENT), skipped)]
        scale = f" The loss scale is now {float(state.scale.numpy()):g}." if state.scale is not None else ""
        self.reporter.warn(
            f"{skipped - self._skipped} non-finite steps changed nothing: "
            f"{listing(map(str, shown), RECENT)}.{scale}"
        )
        self._skipped = skipped

    def _diagnosis(self, phase: Phase, step: int) -> str:
        """Names what was not finite in the step after `step`: the same batch again, applied to nothing."""
        gradients, sums = self.program.gradients(phase, self.feed)(self.feed.chunk(step, 1))
        bad = [name for name, g in gradients.items() if not np.all(np.isfinite(_dense(g)))]
        where = f"the gradients of {listing(bad, 5)}" if bad else "the gradient's norm"
        loss = "" if np.isfinite(sums.numpy()[0]) else ", and so is the loss"
        return (
            f"--on_nonfinite=halt: step {step + 1} is not finite: {where}{loss}. The state before it is "
            "saved. Lower the learning rate or give --clip_norm, or pass over such steps with "
            "--on_nonfinite=skip."
        )


def means(sums: np.ndarray, metrics: tuple[str, ...]) -> dict[str, float]:
    """`{"loss": mean, metric: mean}` of `TrainState.sums`; NaN where the weight is 0."""
    pairs = np.asarray(sums).reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        values = pairs[:, 0] / pairs[:, 1]
    return dict(zip(("loss", *metrics), map(float, values), strict=True))


def evaluate(program: Program, function: Any, feed: Feed) -> dict[str, float]:
    """Mean loss and metrics over the whole split, each example once; `examples` counts them.

    Empty where the program was asked to stop before the end: a part of a split is no evaluation.

    Args:
      program: whose weights, as they stand.
      function: its compiled `evaluator`.
      feed: an evaluation feed.
    """
    assert feed.steps is not None
    sums = function(feed.chunk(0, feed.steps), tf.constant(feed.steps)).numpy()
    if program.stopped.numpy():
        return {}
    return {**means(sums, program.state.metrics), "examples": int(sums[1])}


def _without_loss(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name != "loss"}


def _dense(gradient: Any) -> np.ndarray:
    return (gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient).numpy()
