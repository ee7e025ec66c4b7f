"""Who trains what, how and when: for the table, the JSON file, and the question whether a run may resume.

The plan holds all on which the numbers of a run depend. Where it comes to be compared, `total` and what
follows from it may differ as long as the past does not.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.flags.durations import Clock
from trainer.groups import schedules
from trainer.groups.group_optimizer import state_bytes
from trainer.groups.partition import Partition
from trainer.groups.phases import Group, Phase
from trainer.groups.rules import FROZEN
from trainer.model.names import ModelVariable
from trainer.text import aligned

# What a longer run may change, and what only describes it.
_OF_THE_END = ("total", "phases", "rows", "totals", "rates_at", "rules")


@dataclass(frozen=True)
class Plan:
    """A plan as a value: prints as the table of its variables, its rules and its groups.

    Attributes:
      body: the plan as JSON has it.

    Example:
      >>> import numpy as np, trainer
      >>> data = {"image": np.zeros([64, 28, 28, 1], "uint8"), "label": np.zeros([64], "int64")}
      >>> rules = [".*/b frozen", ".* adam constant(1e-3) name=rest"]
      >>> run = trainer.Run(
      ...     model="mnist_mlp(hidden=8)", dataset=data, eval_split="none", group=rules, train_for=10
      ... )
      >>> plan = run.plan()
      >>> [(row["name"], row["group"]) for row in plan.rows][:2]
      [('hidden1/w', 'rest'), ('hidden1/b', 'frozen')]
    """

    body: Mapping[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dictionary per variable: name, shape, group, optimizer, rates, state bytes, start, rule, ..."""
        return [dict(row) for row in self.body["rows"]]

    def to_json(self) -> str:
        """The whole of it, as `plan.json` has it."""
        return json.dumps(self.body, indent=1)

    def __str__(self) -> str:
        """The tables."""
        columns, rows, below = table(self.body)
        groups, totals = totals_table(self.body)
        return "\n".join([*aligned([columns, *rows]), *below, *aligned([groups, *totals])])


def make(
    settings: Mapping[str, Any],
    variables: Sequence[ModelVariable],
    parts: Partition,
    start_of: Mapping[str, str],
) -> dict[str, Any]:
    """The plan, as JSON.

    Args:
      settings: what else the numbers depend on: model, data, batch size, seed, precision, ...
      variables: of the model.
      parts: who trains which of them.
      start_of: by variable name, where its start value comes from.
    """
    steps = _steps_shown(parts.phases, parts.total)
    groups = {group.name: group for group in parts.groups}
    rule_of = {v.name: rule.flag for rule, own in parts.owned for v in own}
    rows = _rows(variables, parts, steps)
    for row in rows:
        row["start"] = start_of.get(row["name"], "initializer")
        row["rule"] = rule_of.get(row["name"])
    return {
        **settings,
        "examples": parts.clock.examples,
        "total": parts.total,
        "groups": {name: _group(group) for name, group in groups.items()},
        "phases": [[p.start, p.stop, [g.name for g in p.active]] for p in parts.phases],
        "rates_at": steps,
        "rules": list(dict.fromkeys(rule_of.values())),
        "rows": rows,
        "totals": _totals(rows),
    }


def _rows(variables: Sequence[ModelVariable], parts: Partition, steps: Sequence[int]) -> list[dict[str, Any]]:
    sizes, owner = state_bytes(parts.optimizers), parts.owner
    shown = {group.name: parts.rates(group, steps) for group in parts.groups}
    rows: list[dict[str, Any]] = []
    for v in variables:
        row = {"name": v.name, "shape": list(v.shape), "dtype": v.dtype.name, "parameters": v.size}
        if optimizer := owner.get(v.name):
            group, times = optimizer.group, optimizer.multiplier(v)
            row |= {
                "group": group.name,
                "optimizer": _optimizer(group),
                "from": group.start,
                "until": group.stop,
                "rates": [rate and rate * times for rate in shown[group.name]],
                "weight_decay": optimizer.weight_decay(v),
            }
        else:
            row["group"] = FROZEN if v.trainable else "not trained"
            row |= dict.fromkeys(("optimizer", "from", "until", "rates", "weight_decay"))
        rows.append({**row, "state_bytes": sizes.get(v.name, 0)})
    return rows


def _group(group: Group) -> dict[str, Any]:
    return {
        "optimizer": _optimizer(group),
        "schedule": group.rule.schedule.text if group.rule.schedule else "",
        "start": group.start,
        "stop": group.stop if group.rule.until else None,
        "from": str(group.rule.start or ""),
        "until": str(group.rule.until or ""),
        "variables": [v.name for v in group.variables],
    }


def _optimizer(group: Group) -> str:
    return group.rule.optimizer.text if group.rule.optimizer else ""


def _steps_shown(phases: Sequence[Phase], total: int) -> list[int]:
    """The first and the last step, those in the quarters, and each phase's first."""
    quarters = [total * k // 4 for k in range(4)]
    return sorted({*quarters, *(p.start for p in phases[:4]), max(total - 1, 0)})


def _totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    whole = sum(row["parameters"] for row in rows) or 1
    totals: dict[str, dict[str, Any]] = {}
    for row in rows:
        group = totals.setdefault(row["group"], {"variables": 0, "parameters": 0, "state_bytes": 0})
        group["variables"] += 1
        group["parameters"] += row["parameters"]
        group["state_bytes"] += row["state_bytes"]
    for group in totals.values():
        group["share"] = group["parameters"] / whole
    return totals


def table(plan: Mapping[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """(column titles, a row of cells per variable, sentences below) for a terminal of 80 to 100 columns.

    `trained by` is number of the rule, group, optimizer; `@N` is the learning rate at step N, `wd` the
    weight decay, `state` bytes of the optimizer. The rules stand below, and so does what all rows share.
    """
    rows, at = plan["rows"], _columns_at(plan)
    number = {rule: str(i) for i, rule in enumerate(plan["rules"], 1)}
    cells = {
        "variable": [row["name"] for row in rows],
        "shape": ["x".join(map(str, row["shape"])) or "scalar" for row in rows],
        "trained by": [_trained_by(row, number) for row in rows],
        **{f"@{plan['rates_at'][i]}": [_rate(row, i) for row in rows] for i in at},
        "trains": [f"{row['from']}..{row['until']}" if row["optimizer"] else "-" for row in rows],
        "wd": [_short(row["weight_decay"]) if row["optimizer"] else "-" for row in rows],
        "state": [_size(row["state_bytes"]) for row in rows],
        "start value": [row["start"] for row in rows],
    }
    below = [f"rule {i}: {rule}" for rule, i in number.items()]
    for column, sentence in (
        ("trains", "Every trained variable trains in steps {}."),
        ("wd", "Every trained variable has weight decay {}."),
        ("start value", "Every start value comes from: {}."),
    ):
        values = set(cells[column]) - ({"-"} if column != "start value" else set())
        if len(values) == 1:
            del cells[column]
            below.append(sentence.format(values.pop()))
    return list(cells), [list(row) for row in zip(*cells.values(), strict=True)], below


def _columns_at(plan: Mapping[str, Any]) -> list[int]:
    """Of `rates_at` those to show: first, last, and in between two phases, else a quarter."""
    steps = plan["rates_at"]
    edges = [steps.index(start) for start, _, _ in plan["phases"][1:] if start in steps]
    return sorted({0, *(edges[:2] or [min(1, len(steps) - 1)]), len(steps) - 1})


def _trained_by(row: Mapping[str, Any], number: Mapping[str, str]) -> str:
    optimizer = (row["optimizer"] or "").partition("(")[0]
    return " ".join(filter(None, (number.get(row["rule"]), row["group"], optimizer)))


def _size(count: float) -> str:
    """Bytes in at most five characters."""
    power = next((n for n in range(3) if count < 999.5 * 1000**n), 3)
    return f"{count / 1000**power:.3g}{' kMG'[power].strip()}"


def totals_table(plan: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(column titles, one row of cells per group)."""
    cells = [
        [
            name,
            str(t["variables"]),
            f"{t['parameters']:,}",
            f"{100 * t['share']:.1f}%",
            f"{t['state_bytes']:,} B",
        ]
        for name, t in plan["totals"].items()
    ]
    return ["group", "variables", "parameters", "of the model", "optimizer state"], cells


def _rate(row: Mapping[str, Any], index: int) -> str:
    if not row["optimizer"]:
        return "-"
    rate = row["rates"][index]
    return "frozen" if rate is None else _short(rate)


def _short(value: float) -> str:
    """Three digits, in the shorter of the two notations."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return min(f"{value:.3g}", f"{float(mantissa):g}e{int(exponent)}", key=len)


def digest(plan: Mapping[str, Any]) -> str:
    """SHA-256 of what two plans must share for one run to go on as the other."""
    return hashlib.sha256(json.dumps(_identity(plan), sort_keys=True).encode()).hexdigest()


def _identity(plan: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {k: v for k, v in plan.items() if k not in _OF_THE_END and k != "groups"}
    for name, group in plan["groups"].items():
        # Steps follow from the durations; of those that lie ahead a longer run may make others.
        flat |= {f"group {name}: {k}": value for k, value in group.items() if k not in ("start", "stop")}
    for row in plan["rows"]:
        flat[f"variable {row['name']}"] = f"{row['shape']} {row['dtype']} in {row['group']}"
    return flat


def differences(saved: Mapping[str, Any], plan: Mapping[str, Any], done: int) -> list[str]:
    """What would change for a run of plan `saved` at step `done` that went on by `plan`, a line each.

    ` - ` is as saved, ` + ` as it would be. Empty where every rate and phase up to `done` stays as it was.
    """
    before, after = _identity(saved), _identity(plan)
    lines = []
    for key in dict.fromkeys([*before, *after]):
        if key not in after or key not in before or before[key] != after[key]:
            lines += [f" - {key}: {before[key]}"] if key in before else []
            lines += [f" + {key}: {after[key]}"] if key in after else []
    if not lines and saved["total"] != plan["total"]:
        lines = [line for name in plan["groups"] for line in _past(name, saved, plan, done)]
    return lines


def _past(name: str, saved: Mapping[str, Any], plan: Mapping[str, Any], done: int) -> list[str]:
    """What another `total` would change in the steps of a group that are done."""
    before, after = _trained(name, saved, done), _trained(name, plan, done)
    if before != after:
        return [
            f" - group {name}: trained from step {before.start} up to step {before.stop}",
            f" + group {name}: trained from step {after.start} up to step {after.stop} "
            "(it depends on --train_for)",
        ]
    rates, others = _rates_in(name, saved, before), _rates_in(name, plan, after)
    changed = np.flatnonzero(rates != others)
    if not changed.size:
        return []
    first = int(changed[0])
    at = before.start + int(_sampled(before)[first])
    return [
        f" - group {name}: learning rate at step {at}: {rates[first]:.9g}",
        f" + group {name}: learning rate at step {at}: {others[first]:.9g} (it depends on --train_for)",
    ]


def _trained(name: str, plan: Mapping[str, Any], done: int) -> range:
    """The steps before `done` at which the group trains; empty ones are all equal."""
    group = plan["groups"][name]
    stop = plan["total"] if group["stop"] is None else group["stop"]
    return range(group["start"], max(group["start"], min(stop, done)))


def _sampled(steps: range, most: int = 10_000) -> np.ndarray:
    """Steps since the group's start: all, or `most` of them evenly spread."""
    return np.unique(np.linspace(0, len(steps) - 1, min(len(steps), most)).astype(np.int64))


def _rates_in(name: str, plan: Mapping[str, Any], steps: range) -> np.ndarray:
    """The group's rates at the sampled ones of `steps`."""
    group = plan["groups"][name]
    stop = plan["total"] if group["stop"] is None else group["stop"]
    clock = Clock(plan["examples"], plan["batch_size"], plan["total"])
    flag = f"--group (name={name})"
    schedule = schedules.build(schedules.check(group["schedule"], flag), clock, stop - group["start"], flag)
    dtype = schedule(tf.constant(0, tf.int64)).dtype
    compute = tf.function(lambda at: tf.map_fn(schedule, at, fn_output_signature=dtype))
    return compute(tf.constant(_sampled(steps))).numpy() if steps else np.array([])
