"""Which charts a report has: those for which the run left numbers."""

from collections.abc import Iterator, Mapping

from trainer.report.charts import Chart
from trainer.report.compare import Comparison
from trainer.report.drawings import SHORT, Confusion, Curves, Timeline
from trainer.report.history import History, Series

METRICS = 12  # charts of metrics, at most

_BY_GROUP = {
    "learning_rate": "Learning rate by group",
    "update_ratio": "Norm of an update over that of the weights",
    "gradient_norm": "Norm of the gradient by group",
    "weight_norm": "Norm of the weights by group",
}
_OF_THE_RUN = {
    "examples_per_second": "Examples per second",
    "input_wait": "Share of the time spent waiting for input",
    "loss_scale": "Loss scale",
    "skipped_steps": "Non-finite steps passed over so far",
}


def of_run(history: History) -> list[Chart]:
    """The charts of one run."""
    return list(_of_run(history))


def _of_run(history: History) -> Iterator[Chart]:
    phases = [(first, last) for first, last, _ in history.phases]
    for index, name in enumerate(history.metrics[:METRICS]):
        series = {
            "training": history.curve(name),
            "evaluation": history.curve(name, "raw"),
            "evaluation, averaged weights": history.curve(name, "ema"),
        }
        dotted = frozenset(label for label in series if label != "training")
        yield Chart(f"metric{index}", name, Curves(_filled(series), phases, dotted))
    for name, title in _BY_GROUP.items():
        series = history.by_group(name)
        if any(steps for steps, _ in series.values()):
            # Rates that fall to nothing are read on an axis from 0, unless some group's are far smaller.
            zero = name == "learning_rate" and _alike(series)
            yield Chart(name, title, Curves(series, phases, zero=zero))
    for name, title in _OF_THE_RUN.items():
        steps, values = history.curve(name)
        if any(values) if name in ("skipped_steps", "input_wait") else values:
            yield Chart(name, title, Curves({title: (steps, values)}, phases, zero=name != "loss_scale"))
    yield from _timeline(history)
    if kept := history.evaluated:
        confusion = Confusion(kept.confusion, kept.classes)
        room = 0.5 + 0.065 * min(max(map(len, kept.classes)), SHORT)  # for the names, inches
        yield Chart("confusion", "Confusion matrix", confusion, (4.4, 4.4), (room, room, 0.1, 0.1))


def _timeline(history: History) -> Iterator[Chart]:
    groups = history.plan.get("groups")
    if history.phases and isinstance(groups, dict):
        size = 4.4, 0.6 + 0.28 * min(len(groups), 40)
        bars = Timeline(history.phases, [str(name) for name in groups][:40])
        yield Chart("timeline", "Steps in which each group trains", bars, size, (1.5, 0.45, 0.12, 0.08))


def of_runs(comparison: Comparison) -> list[Chart]:
    """A chart for each metric with a curve of each run: of its evaluations, else of its training."""
    pictures = []
    for index, name in enumerate(comparison.metrics[:METRICS]):
        series: dict[str, Series] = {}
        for run_name, run in zip(comparison.names, comparison.runs, strict=True):
            ema, raw = run.curve(name, "ema"), run.curve(name, "raw")
            series[run_name] = ema if ema[0] else raw if raw[0] else run.curve(name)
        curves = Curves(_kept(series), points=frozenset(series))
        pictures.append(Chart(f"metric{index}", name, curves))
    return pictures


def _alike(series: Mapping[str, Series]) -> bool:
    """Whether the greatest values of the curves are of one order of magnitude."""
    peaks = [max(values) for _, values in series.values() if values]
    return min(peaks) > 0 and max(peaks) < 15 * min(peaks)


def _filled(series: Mapping[str, Series]) -> dict[str, Series]:
    return {label: curve for label, curve in series.items() if curve[0]}


def _kept(series: Mapping[str, Series]) -> dict[str, Series]:
    """With empty curves, so that a run keeps its colour."""
    return dict(series)
