"""What a chart can show: curves, a timeline, a confusion matrix, a range test; each drawn onto an `Axes`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.report.charts import SERIES
from trainer.report.history import Series

POINTS = 600  # of a curve, at most
ENTRIES = 8  # of a legend, which beyond that would hide the curves
LABELLED = 20  # classes of a confusion matrix whose cells have room for a number
SHORT = 10  # characters of a class at an axis of it
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Curves:
    """What to draw of some curves over the step.

    Attributes:
      series: by label.
      phases: steps at which the run's phases begin and end, `[(first, last + 1)]`; every second is shaded.
      points: labels of curves that have a dot for each value.
      zero: whether the axis begins at 0; otherwise it is logarithmic where the values span much.
    """

    series: Mapping[str, Series]
    phases: Sequence[tuple[int, int]] = ()
    points: frozenset[str] = field(default_factory=frozenset)
    zero: bool = False

    def __call__(self, axes: Any, colours: Mapping[str, str]) -> None:
        """Draws them."""
        for first, last in self.phases[1::2]:
            axes.axvspan(first, last, color=colours["band"], linewidth=0, zorder=0)
        for index, (label, series) in enumerate(self.series.items()):
            steps, values = thinned(series)
            if not steps:  # keeps its colour for other charts
                continue
            dots = "o" if label in self.points or len(steps) == 1 else None
            axes.plot(
                steps,
                values,
                _DASHES[index // len(SERIES) % len(_DASHES)],
                color=colours[SERIES[index % len(SERIES)]],
                marker=dots,
                markersize=3.5,
                linewidth=1.5,
                label=label if index < ENTRIES else f"_{label}",
            )
        values = [v for _, numbers in self.series.values() for v in numbers if abs(v) < 1e30]
        if self.zero:
            axes.set_ylim(bottom=0)
        elif values and min(values) > 0 and max(values) > 15 * min(values):
            axes.set_yscale("log")
            _few_ticks(axes.yaxis)
        _step_axis(axes)
        if len(self.series) > 1:
            more = len(self.series) - ENTRIES
            legend = axes.legend(
                loc="best", frameon=False, fontsize=8, labelcolor=colours["fg"], handlelength=1.6
            )
            legend.set_title(f"and {more} more" if more > 0 else None)


@dataclass(frozen=True)
class Timeline:
    """Which group trains when: a bar for each time that it does.

    Attributes:
      phases: (first step, last + 1, names of the groups that train).
      groups: all of them, the first on top.
    """

    phases: Sequence[tuple[int, int, Sequence[str]]]
    groups: Sequence[str]

    def __call__(self, axes: Any, colours: Mapping[str, str]) -> None:
        """Draws it."""
        for index, name in enumerate(self.groups):
            bars = [(first, last - first) for first, last in _joined(self.phases, name)]
            colour = colours[SERIES[index % len(SERIES)]]
            axes.broken_barh(bars, (index - 0.35, 0.7), facecolors=colour, linewidth=0)
        axes.set_yticks(range(len(self.groups)), [_short(name, 24) for name in self.groups])
        axes.set_ylim(len(self.groups) - 0.5, -0.5)
        axes.set_xlim(0, max((last for _, last, _ in self.phases), default=1))
        axes.grid(False, axis="y")
        _step_axis(axes, values=False)


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: rows are labels, columns what was predicted, shaded by the share of the row.

    Attributes:
      counts: int [C, C].
      classes: C names.
    """

    counts: np.ndarray
    classes: Sequence[str]

    def __call__(self, axes: Any, colours: Mapping[str, str]) -> None:
        """Draws it."""
        share = self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)
        axes.grid(False)
        count = len(self.classes)
        if count > LABELLED:
            # Cells too small for numbers, and too many to be drawn one by one.
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        else:
            for i, j in np.argwhere(self.counts):
                axes.add_patch(_cell(i, j, colours["s0"], float(0.08 + 0.5 * share[i, j])))
                text = f"{self.counts[i, j]:,}"
                axes.text(j, i, text, ha="center", va="center", fontsize=min(8, 80 / count))
            axes.set_xticks(
                range(count), [_short(c, SHORT) for c in self.classes], rotation=90 * (count > 10)
            )
            axes.set_yticks(range(count), [_short(c, SHORT) for c in self.classes])
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal")
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")


@dataclass(frozen=True)
class Swept:
    """A learning-rate range test: relative change of the loss over the rate.

    Attributes:
      rates, change: of the same length.
      marks: by label, a rate to mark.
    """

    rates: Sequence[float]
    change: Sequence[float]
    marks: Mapping[str, float]

    def __call__(self, axes: Any, colours: Mapping[str, str]) -> None:
        """Draws it."""
        axes.plot(self.rates, self.change, color=colours["s0"], linewidth=1.5)
        axes.set_xscale("log")
        _few_ticks(axes.xaxis)
        for index, (label, rate) in enumerate(self.marks.items(), 1):
            axes.axvline(
                rate, color=colours[f"s{index}"], linestyle=_DASHES[index], label=f"{label} {rate:.2g}"
            )
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("change of the loss")
        if self.marks:
            axes.legend(loc="best", frameon=False, fontsize=8, labelcolor=colours["fg"])


def thinned(series: Series) -> Series:
    """At most `POINTS` of them, evenly, the last one among them; a gap where a value is too large to draw."""
    steps, values = series[0], [value if abs(value) < 1e30 else math.nan for value in series[1]]
    if len(steps) <= POINTS:
        return steps, values
    kept = np.unique(np.linspace(0, len(steps) - 1, POINTS).round().astype(int))
    return [steps[i] for i in kept], [values[i] for i in kept]


def _step_axis(axes: Any, values: bool = True) -> None:
    axes.set_xlabel("step", fontsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: _number(value))
    axes.xaxis.get_major_locator().set_params(nbins=6, integer=True)
    if values:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _joined(phases: Sequence[tuple[int, int, Sequence[str]]], name: str) -> list[tuple[int, int]]:
    """The times in which a group trains, those that touch as one."""
    times: list[tuple[int, int]] = []
    for first, last in ((first, last) for first, last, active in phases if name in active):
        joins = bool(times) and times[-1][1] == first
        times = [*times[:-1], (times[-1][0], last)] if joins else [*times, (first, last)]
    return times


def _number(value: float) -> str:
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * factor or (abs(value) >= factor and value % factor == 0):
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def _cell(row: int, column: int, colour: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, facecolor=colour, alpha=alpha, linewidth=0)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _few_ticks(axis: Any) -> None:
    """Of a logarithmic axis: 1, 2 and 5 of a decade, or decades alone where there are many."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = sorted(map(abs, axis.get_view_interval()))
    few = high < 200 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=8))
    axis.set_minor_locator(NullLocator())
