"""What the host says of a run at each visit, and at a log point writes down."""

from dataclasses import dataclass, field

import tensorflow as tf

from trainer.data.feed import Feed
from trainer.errors import listing
from trainer.groups.phases import Phase
from trainer.report.reporter import Reporter
from trainer.training import window
from trainer.training.program import Program
from trainer.training.state import RECENT


@dataclass
class LogPoints:
    """Numbers of the steps since the last log point.

    Attributes:
      program: compiled functions and state.
      feed: training batches.
      reporter: for screen, files and hooks.
      histograms: whether to report the trained weights at each log point.
    """

    program: Program
    feed: Feed
    reporter: Reporter
    histograms: bool = False
    _last: tuple[int, float] = (0, 0.0)  # step and training seconds at the last log point
    _skipped: int = 0
    _warned: set[str] = field(default_factory=set)

    def start(self, step: int) -> None:
        """The state stands at `step`."""
        self._last = (step, 0.0)
        self._skipped = int(self.program.state.skipped.numpy())

    def leave_out(self, steps: int, seconds: float) -> None:
        """Some steps count for no rate, as a function was compiled in them."""
        step, trained = self._last
        self._last = step + steps, trained + seconds
        self.feed.waited()  # nor does the pipeline's own start tell how it keeps up

    def visit(self, step: int, seconds: float, phase: Phase | None, measured: bool) -> None:
        """Says where the run stands.

        Args:
          step: the state's.
          seconds: of training, in all.
          phase: of the last step, where this is a log point; None where it is none.
          measured: whether the program's norms are of that step.
        """
        state = self.program.state
        means = window.means_of(state.sums.numpy(), state.means)
        rate = self._rate(step, seconds)
        self.tell_skipped()
        others = {name: value for name, value in means.items() if name != "loss"}
        self.reporter.progress(step, means["loss"], others, rate)
        if phase:
            self._log(step, phase, means, rate, measured)
            self._last = step, seconds

    def tell_skipped(self) -> None:
        """Says which steps were skipped since it was said last."""
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

    def _rate(self, step: int, seconds: float) -> float:
        """Examples a second since the last log point, without the steps in which a phase was compiled."""
        seconds -= self._last[1]
        return (step - self._last[0]) * self.feed.batch / seconds if seconds > 0 else 0.0

    def _log(self, step: int, phase: Phase, means: dict[str, float], rate: float, measured: bool) -> None:
        state = self.program.state
        self._tell_of_weights(step)
        last = tf.constant(step - 1, tf.int64)
        rates = {g.name: float(self.program.schedules[g.name](last - g.start)) for g in phase.active}
        self.reporter.log(
            {
                "kind": "train",
                "step": step,
                "epoch": step / self.reporter.steps_per_epoch,
                **means,
                "learning_rate": rates,
                **(self.program.norms.numbers(phase) if measured else {}),
                "examples_per_second": rate,
                **self._input_wait(step, rate),
                "skipped_steps": int(state.skipped.numpy()),
                **({"loss_scale": float(state.scale.numpy())} if state.scale is not None else {}),
            }
        )
        if self.histograms:
            weights = [v for v in state.variables if v.name in phase.names]
            self.reporter.histograms(step, {v.name: v.value.numpy() for v in weights})
        state.sums.assign(tf.zeros_like(state.sums.read_value()))

    def _tell_of_weights(self, step: int) -> None:
        """Says once of each mean that nothing gave it a weight, and that a step had no gradient by it."""
        state = self.program.state
        sentences = {
            name: f"The weights of the {name} sum to 0 up to step {step}: it is NaN."
            for name in window.weightless(state.sums.numpy(), state.means)
        }
        if state.weightless is not None and (steps := int(state.weightless.numpy())):
            sentences["a step"] = (
                f"In {steps} of the steps up to {step} the weights of a loss sum to 0: such a step has no "
                "gradient of it."
            )
        for name, sentence in sentences.items():
            if name not in self._warned:
                self._warned.add(name)
                self.reporter.warn(sentence)

    def _input_wait(self, step: int, rate: float) -> dict[str, float]:
        """The share of the time since the last log point that steps waited for data; {} where none can."""
        waited = self.feed.waited()
        if waited is None or not rate:
            return {}
        return {"input_wait": min(1.0, waited * rate / ((step - self._last[0]) * self.feed.batch))}
