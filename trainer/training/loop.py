"""The outer loop: which steps to hand to the device at a time, and what happens between them.

The host is visited about once a second and at every event: a log point, an evaluation, a checkpoint, the
edge of a phase, the end. Events fall on fixed steps, so that they are the same whatever was interrupted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from trainer.data.feed import Feed, reading
from trainer.devices.cluster import elsewhere
from trainer.devices.replicas import worker
from trainer.errors import UserError, listing
from trainer.groups.phases import Events, Phase, phase_at
from trainer.report.reporter import Reporter
from trainer.training.evaluation import Evaluate
from trainer.training.failures import remedy, what_failed
from trainer.training.health import REMEDY, TOO_LARGE, Health, diagnosis
from trainer.training.log_points import LogPoints
from trainer.training.profile import Profile
from trainer.training.program import Program
from trainer.training.result import Result

VISIT = 1.0  # seconds between two visits of the host
TOGETHER = 100  # steps between two visits where several workers make them


@dataclass
class Loop:
    """One training run from the step its state stands at to the end, or to a signal.

    Attributes:
      program: compiled functions and state.
      phases: of the run.
      events: of the run.
      feed: training batches.
      reporter: for screen, files and hooks.
      evaluate: returns `{metric: value}` of the evaluation split after a step of a phase; None for none.
      save: writes a checkpoint of this step with the metrics of an evaluation at it; None for none.
      evaluate_first: an evaluation of the start step is still to be done, as a stop came before it.
      save_evaluated: save at every evaluation too, so that the best one is there to keep.
      profile: of some of the steps.
      histograms: whether to report the trained weights at each log point.
      meanwhile: called when the device is about to train for a while; what it starts must not be waited for.
      judge: says of the results of an evaluation by which condition they end the run, or "".
      whole: whether the state is one that a checkpoint may hold; an error can leave it half a step on.
    """

    program: Program
    phases: tuple[Phase, ...]
    events: Events
    feed: Feed
    reporter: Reporter
    evaluate: Evaluate | None
    save: Callable[[int, dict[str, float]], None] | None
    evaluate_first: bool = False
    save_evaluated: bool = False
    judge: Callable[[dict[str, float]], str] | None = None
    profile: Profile = field(default_factory=Profile)
    histograms: bool = False
    whole: bool = True
    meanwhile: Callable[[], None] = lambda: None
    _pace: float = 0.0  # steps a second, of the last call
    _passed_over: bool = False  # in the last call: what it measured is of a step that was not done
    _saved: int = 0
    _evaluating: bool = False

    def __post_init__(self) -> None:
        """Looks at the state once."""
        self._health = Health(self.program)
        self._points = LogPoints(self.program, self.feed, self.reporter, self.histograms)

    def run(self) -> Result:
        """Trains to the end.

        Raises:
          UserError: a step that is not finite under `--on_nonfinite=halt`, or one that failed; the state
            before it was saved.
          KeyboardInterrupt: it came; the state was saved.
        """
        began, result = time.perf_counter(), Result(step=self._step())
        first = self._saved = result.step
        self._points.start(first)
        try:
            if self.evaluate_first and self.evaluate:
                self._evaluate(result)
                if result.metrics:  # beside the checkpoint of this step that has none
                    self._save(result)
            for phase in self.phases:
                if phase.stop > result.step and not result.over:
                    self._train(phase, result)
        except KeyboardInterrupt:
            result.step, result.metrics = self._step(), {}
            self._save_last(result)
            raise
        except tf.errors.OpError as error:
            if worker(self.program.strategy)[1] > 1 and elsewhere(error):  # that one tells what it was
                raise
            raise UserError(self._failure(error, result)) from error
        finally:
            self.profile.close()
        self._save_last(result)
        result.steps, result.seconds = result.step - first, time.perf_counter() - began
        return result

    def _train(self, phase: Phase, result: Result) -> None:
        """A phase, or what is left of it."""
        names = listing(group.name for group in phase.active)
        self.reporter.note(f"Compiling steps {result.step} to {phase.stop} ({names}): this may take a while.")
        train = self.program.trainer(phase, self.feed)
        self._pace = 0.0
        while result.step < phase.stop and not result.over:
            before = result.step
            self.profile.at(before)
            self._call(train, phase, result)
            if self.program.halted.numpy():
                self._points.tell_skipped()
                if result.step != before:
                    result.metrics = {}
                self._save_last(result)
                raise self._halt(diagnosis(self.program, phase, self.feed, result.step))
            result.stopped = bool(self.program.stopped.numpy())
            self._visit(phase, result)
            best = self.save_evaluated and bool(result.metrics)
            if self.events.due(self.events.save, result.step) or best or result.over:
                self._save(result)

    def _step(self) -> int:
        return int(self.program.state.step.numpy())

    def _save(self, result: Result) -> None:
        if self.save:
            self.save(result.step, result.metrics)
        self._saved = result.step

    def _save_last(self, result: Result) -> None:
        if self._saved != result.step:
            self._save(result)

    def _evaluate(self, result: Result) -> None:
        """An evaluation at this step; it may be cut short, or end the run."""
        phase = phase_at(self.phases, result.step)
        self._evaluating = True
        result.metrics = self.evaluate(phase) if self.evaluate else {}
        self._evaluating = False
        result.stopped = bool(self.program.stopped.numpy())
        if self.judge and result.metrics:
            result.ended = self.judge(result.metrics)
        self._heed_hooks(result)

    def _heed_hooks(self, result: Result) -> None:
        """Ends the run where a hook asks for it; of several workers all must, after one more step."""
        if self.reporter.stop and worker(self.program.strategy)[1] == 1:
            result.stopped = True
        elif self.reporter.stop:
            self.program.stop.assign(True)

    def _call(self, train: Any, phase: Phase, result: Result) -> None:
        """Hands the device as many steps as fit into a visit."""
        step = result.step
        most = max(1, int(self._pace * VISIT)) if self._pace else 1
        if worker(self.program.strategy)[1] > 1:  # each of which must come to the same number
            most = TOGETHER
        n = min(self.events.next(step, phase) - step, most)
        began, copy = time.perf_counter(), self._health.copy()
        try:
            with reading(self.feed, step, n):
                done = int(train(self.feed.chunk(step, n), tf.constant(n)).numpy())
        except KeyboardInterrupt:
            if copy and self._health.sick():
                self._health.back(copy)
            raise
        sick = self._health.sick()
        self._passed_over = bool(sick)
        if sick:
            self._again(train, copy, range(step, step + n), sick)
        seconds = time.perf_counter() - began
        if not self._pace:  # it compiled as well: rates count from its end
            self._points.leave_out(done, seconds)
            self.meanwhile()
        self._pace = done / seconds if self._pace else 20 / VISIT
        result.training_seconds += seconds
        result.step = self._step()

    def _again(self, train: Any, copy: Any, steps: range, sick: list[str]) -> None:
        """Finds the steps of a call whose update is not finite, and halts there or passes over them.

        Raises:
          UserError: under `--on_nonfinite=halt`; the state before the step was saved.
        """
        mode = f"--on_nonfinite={self.program.settings.on_nonfinite}"
        if not copy:
            self.whole = False
            reason = f"in steps {steps.start + 1} to {self._step()}, {self._health.blamed(sick)}"
            raise UserError(f"{mode}: {reason}, and {TOO_LARGE} {REMEDY}")
        take = lambda at: train(self.feed.chunk(at, 1), tf.constant(1))  # noqa: E731
        for at, reason in self._health.again(take, copy, steps):
            if self.program.settings.on_nonfinite == "halt":
                self._save_last(Result(step=at))
                raise self._halt(f"{mode}: {reason}")
            self.reporter.warn(f"{mode}: {reason}")
            self.program.pass_over()

    def _halt(self, reason: str) -> UserError:
        """What ends a run before a step that is not finite, once the state before it is saved."""
        kept = "saved" if self.save else "kept"
        return UserError(f"{reason} The state before it is {kept}. {REMEDY}")

    def _visit(self, phase: Phase, result: Result) -> None:
        """Reports where the run stands, and evaluates where that is due."""
        step = result.step
        logs = self.events.due(self.events.log, step)
        measured = not self._passed_over
        self._points.visit(step, result.training_seconds, phase if logs else None, measured)
        if logs:
            self._heed_hooks(result)
        result.metrics = {}
        if self.evaluate and not result.stopped and self.events.due(self.events.evaluate, step):
            self._evaluate(result)

    def _failure(self, error: tf.errors.OpError, result: Result) -> str:
        """Tells of an op that failed in a step or an evaluation, once what can be saved is saved."""
        result.step, result.metrics = self._step(), {}
        what = f"the evaluation after step {result.step}" if self._evaluating else f"step {result.step + 1}"
        reason = f"{what} failed: {what_failed(error, self.program)}"
        self.whole = self._evaluating or self.program.gradient_half.gated
        if not self.whole:  # nothing keeps an update from beginning before the whole step is known
            kept = "With --on_nonfinite=off the step may be half done, so that nothing of it is saved."
        elif worker(self.program.strategy)[1] > 1:  # the others may not be asked to come to a save
            kept = "The other workers end, too."
        else:
            self._save_last(result)
            kept = f"The state after step {result.step} is {'saved' if self.save else 'kept'}."
            kept = kept if result.step else "No step was done before it."
        return f"{reason} {kept} {remedy(error)}"
