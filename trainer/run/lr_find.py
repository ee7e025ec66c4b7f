"""A learning-rate range test (Smith 2017, section 3.3) of one group at a time, the others as planned.

Each group is tested in the phase in which it starts: its rate rises exponentially, the loss of the same
batches without the group's updates is subtracted. What is left is what this group's rate does to the loss,
whatever the others learn meanwhile. The state of the run is afterwards what it was, bit for bit.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.feed import Feed
from trainer.devices.replicas import copies
from trainer.errors import UserError
from trainer.groups.phases import Group, Phase
from trainer.groups.rules import Rule
from trainer.groups.schedules import Schedule
from trainer.run.assemble import Assembled
from trainer.training import window
from trainer.training.program import Program

SMOOTHED = 3  # neighbouring points whose mean is looked at
LEAST = 0.02  # of the loss; a smaller change is taken for noise


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to try: `rates` rates from `low` to `high`, each for `batches` batches.

    Raises:
      UserError: there is nothing to try.
    """

    low: float = 1e-6
    high: float = 10.0
    rates: int = 30
    batches: int = 3

    def __post_init__(self) -> None:
        """Refuses what is no sweep."""
        if not (0 < self.low < self.high < float("inf")) or self.rates < 10 or self.batches < 1:
            raise UserError(
                f"lr_find: low={self.low}, high={self.high}, rates={self.rates}, batches={self.batches}: "
                "low must be above 0 and below high, rates at least 10, batches at least 1."
            )

    @property
    def values(self) -> np.ndarray:
        """The rates, float64."""
        return np.geomspace(self.low, self.high, self.rates)


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """The range test of a group.

    Attributes:
      group: its name.
      rates: those tried, up to where the loss diverged.
      losses: mean loss over the batches of each.
      change: `(loss - loss without the group's updates) / loss at the start`, smoothed.
      steepest: the rate at which `change` falls fastest per decade; None where it hardly falls.
      tenth: a tenth of the rate at which `change` is least; None likewise.
      line: the group's line for a flagfile, with `tenth` as its first rate; None where there is none.
    """

    group: str
    rates: list[float]
    losses: list[float]
    change: list[float]
    steepest: float | None
    tenth: float | None
    line: str | None

    @property
    def borne(self) -> float | None:
        """The highest rate tried at which the loss is hardly worse than without this group's updates."""
        fine = [rate for rate, change in zip(self.rates, self.change, strict=True) if change < LEAST]
        return max(fine, default=None)


def lr_find(assembled: Assembled, program: Program, sweep: Sweep) -> dict[str, RangeTest]:
    """The range test of each group, by name. Puts the run back.

    Args:
      assembled: the run.
      program: its state, which may stand at any step.
      sweep: what to try.

    Raises:
      UserError: `--strategy=multi_worker`.
    """
    if assembled.config.strategy == "multi_worker":
        raise UserError(
            "--strategy=multi_worker: --mode=lr_find runs in one process; its rates hold for the same "
            "--batch_size on several. Leave it out."
        )
    feed = assembled.training_feed()
    with put_back(program):
        tester = _Tester(assembled, program, feed)
        return {group.name: tester.test(group, sweep) for group in assembled.parts.groups}


@contextmanager
def put_back(program: Program) -> Iterator[Callable[[], None]]:
    """The state is after it what it was, on every replica; so are the layers that run frozen.

    Yields a function that puts it back at once.
    """
    variables = {id(c): c for v in program.state.named().values() for c in copies(v)}
    kept = {key: tf.identity(copy.read_value()) for key, copy in variables.items()}
    frozen = program.frozen.now

    def back() -> None:
        for key, copy in variables.items():
            copy.assign(kept[key])

    try:
        yield back
    finally:
        back()
        program.frozen.set(frozen)


class _Tester:
    """Steps of a run in which one group's rate is given and all others are as planned."""

    def __init__(self, assembled: Assembled, program: Program, feed: Feed) -> None:
        self._assembled, self._feed = assembled, feed
        self._names = [group.name for group in assembled.parts.groups]
        with tf.device("CPU:0"):
            self._tested = tf.Variable(0, trainable=False)
            self._rate = tf.Variable(tf.zeros([], tf.float64), trainable=False)
        nonfinite = "off" if program.state.scale is None else "skip"
        settings = dataclasses.replace(program.settings, on_nonfinite=nonfinite)
        rates = {
            name: self._schedule(i, assembled.parts.schedules[name]) for i, name in enumerate(self._names)
        }
        self._program = Program(program.strategy, program.network, program.state, rates, settings)
        self._program.frozen = program.frozen
        self._compiled: dict[int, Any] = {}

    def _schedule(self, index: int, planned: Schedule) -> Schedule:
        def rate(step: tf.Tensor) -> tf.Tensor:
            usual = planned(step)
            given = tf.cast(self._rate.read_value(), usual.dtype)
            return tf.where(tf.equal(self._tested.read_value(), index), given, usual)

        return rate

    def test(self, group: Group, sweep: Sweep) -> RangeTest:
        """One group, from the present state, in the phase in which it starts."""
        self._tested.assign(self._names.index(group.name))
        state, rates = self._program.state, sweep.values
        at = int(state.step.numpy())
        start = at if group.start <= at < group.stop else group.start
        phase = next(p for p in self._assembled.parts.phases if p.start <= start < p.stop)
        with put_back(self._program) as back:
            # Of a group that rests at most steps, as many updates as of others.
            n, loss_of = sweep.batches * group.rule.every, f"loss/{group.rule.loss}".rstrip("/")
            without = np.array([x[loss_of] for x in self._means(phase, start, 0 * rates, n)])
            back()
            found: list[float] = []
            scale = np.nanmean(np.abs(without)) or 1.0
            for k, means in enumerate(self._means(phase, start, rates, n)):
                loss = means[loss_of]
                change = (np.append(found, loss) - without[: k + 1]) / scale
                if not np.isfinite(loss) or change[-1] - np.nanmin(change) > 1:
                    break
                found.append(loss)
        change = smoothed((np.array(found) - without[: len(found)]) / scale)
        tried = rates[: len(found)]
        steepest, tenth = suggestions(tried, change)
        line = None if tenth is None else with_rate(group.rule, tenth)
        return RangeTest(group.name, tried.tolist(), found, change.tolist(), steepest, tenth, line)

    def _means(
        self, phase: Phase, start: int, rates: np.ndarray, n: int
    ) -> Iterator[defaultdict[str, float]]:
        """The means over n batches at each rate; batches whose step was passed over do not count."""
        program, state = self._program, self._program.state
        if phase.start not in self._compiled:
            self._compiled[phase.start] = program.trainer(phase, self._feed)
        program.frozen.enter(phase.names)
        state.step.assign(start)
        last: defaultdict[str, float] = defaultdict(lambda: np.nan)
        for k, rate in enumerate(rates):
            self._rate.assign(rate)
            state.sums.assign(tf.zeros_like(state.sums.read_value()))
            self._compiled[phase.start](self._feed.chunk(start + k * n, n), tf.constant(n))
            if window.examples(state.sums.numpy()):
                last.update(window.means_of(state.sums.numpy(), state.means))
            yield last


def smoothed(values: np.ndarray) -> np.ndarray:
    """Means of `SMOOTHED` neighbours; of fewer at the ends."""
    reach = SMOOTHED // 2
    parts = [values[max(i - reach, 0) : i + reach + 1] for i in range(len(values))]
    return np.array([part.mean() for part in parts])


def suggestions(rates: np.ndarray, change: np.ndarray) -> tuple[float | None, float | None]:
    """(rate of the steepest descent per decade, a tenth of the minimum's rate); None where nothing falls.

    Example:
      >>> rates = np.geomspace(1e-4, 1.0, 41)
      >>> change = np.cos(np.linspace(0, 2 * np.pi, 41)) - 1  # falls fastest at a quarter, is least half-way
      >>> [float(f"{rate:.2g}") for rate in suggestions(rates, change)]
      [0.001, 0.001]
    """
    if len(rates) < SMOOTHED or change.min() > -LEAST:
        return None, None
    least = int(change.argmin())
    slopes = np.gradient(change, np.log10(rates))
    steepest = int(slopes[: least + 1].argmin())
    return float(rates[steepest]), float(rates[least]) / 10


def with_rate(rule: Rule, rate: float) -> str | None:
    """The rule with `rate` as the first rate of its schedule; None where that is not one number.

    Example:
      >>> from trainer.groups.rules import parse_rules
      >>> with_rate(parse_rules([".* adam  one_cycle(1e-3, warmup=5%)"])[0], 0.0123)
      '--group=.* adam  one_cycle(0.012, warmup=5%)'
    """
    assert rule.schedule is not None and rule.optimizer is not None
    at = 0
    for column in (rule.pattern.pattern, rule.optimizer.text):  # in which the same text may stand
        at = rule.text.index(column, at) + len(column)
    written, number = rule.schedule.text, r"[0-9.]+(?:[eE][+-]?[0-9]+)?"
    pattern = rf"^((?:\w+\(\s*(?:(?:rate|peak|initial)\s*=\s*)?)?){number}(?=\s*[,)]|$)"
    changed, times = re.subn(pattern, rf"\g<1>{rate:.2g}", written)
    return f"--group={rule.text[:at]}{rule.text[at:].replace(written, changed, 1)}" if times else None
