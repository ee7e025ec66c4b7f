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
from trainer.groups import plan_table, schedules
from trainer.groups.group_optimizer import state_bytes
from trainer.groups.partition import Partition
from trainer.groups.phases import Group, Phase
from trainer.groups.rules import FROZEN
from trainer.model.blocks import MOST_ROWS, folded
from trainer.model.names import ModelVariable
from trainer.text import aligned

_VARIABLE = "variable "  # begins the keys that tell of one
# What plans of earlier versions, and of data that are not prepared, do not have.
_MAY_LACK = ("fingerprint", "classes")
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
        columns, rows, below = plan_table.table(self.body)
        below += plan_table.warnings(self.body)
        groups, totals = plan_table.totals_table(self.body)
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
                **_of_steps(group),
            }
            if deep := parts.per_variable.depths:
                row |= {"depth": deep[v.name], "factor": times}
        else:
            row["group"] = FROZEN if v.trainable else plan_table.UNTRAINED
            row |= dict.fromkeys(("optimizer", "from", "until", "rates", "weight_decay"))
        row["moves"] = _moving(v, parts.phases)
        rows.append({**row, "state_bytes": sizes.get(v.name, 0)})
    return rows


def _moving(v: ModelVariable, phases: Sequence[Phase]) -> str | None:
    """In which steps the forward pass moves a state variable: `yes`, `no`, or `3..8 12..20`."""
    if v.trainable:
        return None
    moving: list[list[int]] = []
    for phase in phases if v.assigned else ():
        if v.name in phase.still:
            continue
        if moving and moving[-1][1] == phase.start:
            moving[-1][1] = phase.stop
        else:
            moving.append([phase.start, phase.stop])
    if moving == [[0, phases[-1].stop]]:
        return "yes"
    return " ".join(f"{start}..{stop}" for start, stop in moving) or "no"


def trained_at(plan: Any, step: int) -> frozenset[str] | None:
    """Names of the weights that train in the last of `step` steps done; None where `plan` does not tell."""
    try:
        groups = next((names for _, stop, names in plan["phases"] if step <= stop), plan["phases"][-1][2])
        return frozenset(str(name) for group in groups for name in plan["groups"][group]["variables"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _group(group: Group) -> dict[str, Any]:
    return {
        "optimizer": _optimizer(group),
        "schedule": group.rule.schedule.text if group.rule.schedule else "",
        "start": group.start,
        "stop": group.stop if group.rule.until else None,
        "from": str(group.rule.start or ""),
        "until": str(group.rule.until or ""),
        **_of_steps(group),
        "variables": [v.name for v in group.variables],
    }


def _of_steps(group: Group) -> dict[str, Any]:
    """Which loss moves a group, and how often, where its rule says so."""
    own = {"loss": group.rule.loss} if group.rule.loss else {}
    return own | ({"every": group.rule.every} if group.rule.every > 1 else {})


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


def digest(plan: Mapping[str, Any]) -> str:
    """SHA-256 of what two plans must share for one run to go on as the other."""
    return hashlib.sha256(json.dumps(_identity(plan), sort_keys=True).encode()).hexdigest()


def _identity(plan: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {k: v for k, v in plan.items() if k not in _OF_THE_END and k != "groups"}
    for name, group in plan["groups"].items():
        # Steps follow from the durations; of those that lie ahead a longer run may make others.
        flat |= {f"group {name}: {k}": value for k, value in group.items() if k not in ("start", "stop")}
    for row in plan["rows"]:
        factor = row.get("factor", 1.0)
        decayed = f" at {factor:.9g} of its rate" if factor != 1 else ""
        flat[f"{_VARIABLE}{row['name']}"] = f"{row['shape']} {row['dtype']} in {row['group']}{decayed}"
    return flat


def differences(saved: Mapping[str, Any], plan: Mapping[str, Any], done: int) -> list[str]:
    """What would change for a run of plan `saved` at step `done` that went on by `plan`, a line each.

    ` - ` is as saved, ` + ` as it would be. Empty where every rate and phase up to `done` stays as it was.
    """
    before, after = _identity(saved), _identity(plan)
    keys = dict.fromkeys([*before, *after])
    lacking = {k for k in keys if k not in after or k not in before}
    other = [k for k in keys if (k not in _MAY_LACK if k in lacking else before[k] != after[k])]
    of_variables = [key for key in other if key.startswith(_VARIABLE)]
    lines = []
    for key in other if len(of_variables) <= MOST_ROWS else [k for k in other if k not in of_variables]:
        lines += [f" - {key}: {_shown(before[key])}"] if key in before else []
        lines += [f" + {key}: {_shown(after[key])}"] if key in after else []
    if len(of_variables) > MOST_ROWS:
        lines += _by_cause(of_variables, before, after)
    if not lines and saved["total"] != plan["total"]:
        lines = [line for name in plan["groups"] for line in _past(name, saved, plan, done)]
    return lines


def _shown(value: Any) -> Any:
    """A part of a plan in a line: long lists of variables folded by layer or block."""
    long = isinstance(value, list) and len(value) > MOST_ROWS
    return f"{len(value)} variables, {folded(value)}" if long else value


def _by_cause(keys: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Many variables that differ: a line for those that went, those that came, and those that changed."""
    gone = [key.removeprefix(_VARIABLE) for key in keys if key not in after]
    come = [key.removeprefix(_VARIABLE) for key in keys if key not in before]
    lines = [f" - {len(gone)} variables: {folded(gone)}"] if gone else []
    lines += [f" + {len(come)} variables: {folded(come)}"] if come else []
    if both := [key for key in keys if key in before and key in after]:
        names = folded([key.removeprefix(_VARIABLE) for key in both])
        lines.append(f" - {len(both)} variables: {names}; the first, {both[0]}: {before[both[0]]}")
        lines.append(f" + the first of them: {after[both[0]]}")
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
