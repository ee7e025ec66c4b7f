"""A run as its working directory tells of it, read for a report; nothing else is opened.

Whatever is missing or damaged is left out: a report shows what there is.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.report.evaluated import FILE, Evaluated
from trainer.report.images import is_source

Series = tuple[list[int], list[float]]

_PER_GROUP = ("learning_rate", "gradient_norm", "weight_norm", "update_ratio")
_NOT_METRICS = {
    *_PER_GROUP,
    *("kind", "step", "epoch", "weights", "examples", "skipped_steps", "loss_scale"),
    *("examples_per_second", "steps_per_second", "input_wait"),
}


@dataclass(frozen=True)
class History:
    """What a run left behind.

    Attributes:
      path: its working directory.
      train, evaluations: records of `metrics.jsonl`, in the order written.
      plan: of `plan.json`; {} where there is none, as for the two below.
      receipt: of `restore.json`.
      environment: of `environment.json`, what ran on what.
      flags: the lines of `flags.txt`.
      evaluated: what the last evaluation kept of the data, if anything.
    """

    path: Path
    train: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    plan: Mapping[str, Any] = field(default_factory=dict)
    receipt: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    flags: Sequence[str] = ()
    evaluated: Evaluated | None = None

    @classmethod
    def read(cls, workdir: Path) -> "History":
        """The run of `workdir`; empty where nothing in it can be read."""
        records = list(_records(workdir / "metrics.jsonl"))
        return cls(
            workdir,
            [r for r in records if r.get("kind") == "train"],
            [r for r in records if r.get("kind") == "eval"],
            _json(workdir / "plan.json"),
            _json(workdir / "restore.json"),
            _json(workdir / "environment.json"),
            _text(workdir / "flags.txt").splitlines(),
            Evaluated.read(workdir / FILE),
        )

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.train or self.evaluations or self.plan)

    @property
    def step(self) -> int:
        """The last step that is known."""
        return max((r["step"] for r in (*self.train, *self.evaluations)), default=0)

    @property
    def total(self) -> int:
        """Steps of the whole run, as planned; 0 where no plan tells."""
        total = self.plan.get("total")
        return total if isinstance(total, int) else 0

    @property
    def phases(self) -> list[tuple[int, int, list[str]]]:
        """(first step, last + 1, names of the groups that train), in order."""
        found = self.plan.get("phases")
        try:
            return [(int(a), int(b), [str(n) for n in names]) for a, b, names in found or []]
        except (TypeError, ValueError):
            return []

    @property
    def metrics(self) -> list[str]:
        """Names of the loss and the metrics, in the order met."""
        return list(
            dict.fromkeys(
                name
                for record in (*self.train, *self.evaluations)
                for name, value in record.items()
                if name not in _NOT_METRICS and isinstance(value, float | int)
            )
        )

    @property
    def final(self) -> dict[str, float]:
        """The metrics of the last evaluation, of averaged weights where those were last; else of training."""
        record = (self.evaluations or self.train or [{}])[-1]
        return {name: float(record[name]) for name in self.metrics if name in record}

    @property
    def images(self) -> dict[str, str]:
        """By name, images that the last evaluation returned, as `images.source` makes them."""
        arrays = self.evaluations[-1].get("arrays") if self.evaluations else None
        pairs = arrays.items() if isinstance(arrays, dict) else ()
        return {str(name): value for name, value in pairs if is_source(value)}

    def curve(self, name: str, weights: str | None = None) -> Series:
        """Steps and values of a number: of training, or of the evaluations of `weights` (raw or ema)."""
        records = self.train
        if weights:
            records = [r for r in self.evaluations if r.get("weights", "raw") == weights]
        found = [(r["step"], r[name]) for r in records if isinstance(r.get(name), float | int)]
        return [step for step, _ in found], [float(value) for _, value in found]

    def by_group(self, name: str) -> dict[str, Series]:
        """The same of each group, in the plan's order, for a number that is logged by group."""
        groups = self.plan.get("groups")
        curves: dict[str, Series] = {name: ([], []) for name in groups} if isinstance(groups, dict) else {}
        for record in self.train:
            values = record.get(name)
            for group, value in values.items() if isinstance(values, dict) else ():
                if isinstance(value, float | int):
                    steps, numbers = curves.setdefault(str(group), ([], []))
                    steps.append(record["step"])
                    numbers.append(float(value))
        return curves


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in _text(path).splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            yield {key: _number(value) for key, value in record.items()}


def _number(value: Any) -> Any:
    """A value with the numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, bool) or value not in ("NaN", "Infinity", "-Infinity"):
        return value
    return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[value]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
