"""Who trains what, how and when: for the table, the JSON file, and the question whether a run may resume.

The plan holds all on which the numbers of a run depend. Where it comes to be compared, `total` and what
follows from it may differ as long as the past does not.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import schedules
from trainer.calls import Clock
from trainer.groups import FROZEN, Group, Phase
from trainer.optimizers import GroupOptimizer, state_bytes
from trainer.step import Schedule
from trainer.variables import ModelVariable

# What a longer run may change, and what only describes it.
_OF_THE_END = ("total", "phases", "rows", "totals", "rates_at")


def rates(
    optimizer: GroupOptimizer, schedule: Schedule, variable: ModelVariable, steps: Sequence[int]
) -> list[float | None]:
    """The variable's learning rate at each of `steps`; None where it does not train."""
    group = optimizer.group
    factor = optimizer.multiplier(variable)
    return [
        float(schedule(tf.constant(s - group.start, tf.int64))) * factor
        if group.start <= s < group.stop
        else None
        for s in steps
    ]


def make(
    settings: Mapping[str, Any],
    clock: Clock,
    variables: Sequence[ModelVariable],
    optimizers: Sequence[GroupOptimizer],
    group_schedules: Mapping[str, Schedule],
    phases: Sequence[Phase],
    rule_of: Mapping[str, str],
    start_of: Mapping[str, str],
) -> dict[str, Any]:
    """The plan, as JSON.

    Args:
      settings: what else the numbers depend on: model, data, batch size, seed, precision, ...
      clock: `total` is the run's length in steps.
      variables: of the model.
      optimizers: built.
      group_schedules: by group name.
      phases: of the run.
      rule_of: by variable name, the rule that decided.
      start_of: by variable name, where its start value comes from.
    """
    total = clock.total or 0
    steps = _steps_shown(phases, total)
    sizes = state_bytes(optimizers)
    owner = {v.name: o for o in optimizers for v in o.group.variables}
    rows = []
    for v in variables:
        optimizer = owner.get(v.name)
        rows.append(
            {
                "name": v.name,
                "shape": list(v.shape),
                "dtype": v.dtype.name,
                "parameters": v.size,
                "group": optimizer.group.name if optimizer else FROZEN if v.trainable else "not trained",
                "optimizer": optimizer.group.rule.optimizer.text if optimizer else None,
                "from": optimizer.group.start if optimizer else None,
                "until": optimizer.group.stop if optimizer else None,
                "rates": rates(optimizer, group_schedules[optimizer.group.name], v, steps)
                if optimizer
                else None,
                "weight_decay": optimizer.weight_decay(v) if optimizer else None,
                "state_bytes": sizes.get(v.name, 0),
                "start": start_of.get(v.name, "initializer"),
                "rule": rule_of.get(v.name),
            }
        )
    groups = {g.name: g for phase in phases for g in phase.active}
    return {
        **settings,
        "examples": clock.examples,
        "total": total,
        "groups": {name: _group(group, total) for name, group in groups.items()},
        "phases": [[p.start, p.stop, [g.name for g in p.active]] for p in phases],
        "rates_at": steps,
        "rows": rows,
        "totals": _totals(rows),
    }


def _group(group: Group, total: int) -> dict[str, Any]:
    return {
        "optimizer": group.rule.optimizer.text if group.rule.optimizer else "",
        "schedule": group.rule.schedule,
        "start": group.start,
        "stop": group.stop if group.rule.until else None,
        "variables": [v.name for v in group.variables],
    }


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


def table(plan: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(column titles, one row of cells per variable) for a terminal."""
    shown = plan["rates_at"]
    if len(shown) > 5:
        shown = [shown[0], *shown[1:-1][:: max(1, len(shown) // 4)], shown[-1]]
    at = [plan["rates_at"].index(s) for s in shown]
    columns = ["variable", "shape", "group", "optimizer", *(f"rate@{s}" for s in shown)]
    columns += ["trains", "decay", "state", "start value", "rule"]
    cells = []
    for row in plan["rows"]:
        trains = f"{row['from']}..{row['until']}" if row["optimizer"] else "-"
        listed = [_rate(row["rates"][i]) for i in at] if row["optimizer"] else ["-"] * len(at)
        cells.append(
            [
                row["name"],
                "x".join(map(str, row["shape"])) or "scalar",
                row["group"],
                row["optimizer"] or "-",
                *listed,
                trains,
                f"{row['weight_decay']:g}" if row["weight_decay"] else "-",
                f"{row['state_bytes']:,} B",
                row["start"],
                row["rule"] or "-",
            ]
        )
    return columns, cells


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


def _rate(rate: float | None) -> str:
    return "frozen" if rate is None else f"{rate:.3g}"


def digest(plan: Mapping[str, Any]) -> str:
    """SHA-256 of what two plans must share for one run to go on as the other."""
    return hashlib.sha256(json.dumps(_identity(plan), sort_keys=True).encode()).hexdigest()


def _identity(plan: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {k: v for k, v in plan.items() if k not in _OF_THE_END and k != "groups"}
    for name, group in plan["groups"].items():
        flat |= {f"group {name}: {key}": value for key, value in group.items()}
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
    if not lines:
        lines = [line for name in plan["groups"] for line in _past_rates(name, saved, plan, done)]
    return lines


def _past_rates(name: str, saved: Mapping[str, Any], plan: Mapping[str, Any], done: int) -> list[str]:
    if saved["total"] == plan["total"]:
        return []
    start = plan["groups"][name]["start"]
    before, after = _rates_to(name, saved, done), _rates_to(name, plan, done)
    if len(before) != len(after):
        return [
            f" - group {name}: trained {len(before)} steps up to {done}",
            f" + group {name}: {len(after)}",
        ]
    changed = np.flatnonzero(before != after)
    if not changed.size:
        return []
    at = int(changed[0])
    return [
        f" - group {name}: learning rate at step {start + at}: {before[at]:.9g}",
        f" + group {name}: learning rate at step {start + at}: {after[at]:.9g} (it depends on --train_for)",
    ]


def _rates_to(name: str, plan: Mapping[str, Any], done: int, most: int = 10_000) -> np.ndarray:
    """The group's rates at its steps before `done`; at `most` of them, evenly spread, of a long run."""
    group = plan["groups"][name]
    stop = group["stop"] or plan["total"]
    clock = Clock(plan["examples"], plan["batch_size"], plan["total"])
    flag = f"--group (name={name})"
    schedule = schedules.build(schedules.check(group["schedule"], flag), clock, stop - group["start"], flag)
    count = max(0, min(stop, done) - group["start"])
    steps = np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)) if count else []
    return tf.map_fn(
        schedule, tf.constant(steps, tf.int64), fn_output_signature=schedule(tf.constant(0, tf.int64)).dtype
    ).numpy()
