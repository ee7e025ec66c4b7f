"""A plan as tables for a terminal, folded by layer or block to one screen."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.model.blocks import MOST_ROWS, fold, together

UNTRAINED = "not trained"
LEAST = 1e-3  # of a group's rate: with less a variable hardly trains
_SHARED = {  # columns that become a sentence where all rows have the same
    "trains": "Every trained variable trains in steps {}.",
    "wd": "Every trained variable has weight decay {}.",
    "moves": "State of layers that moves in the forward pass: {}.",
    "start value": "Every start value comes from: {}.",
}


def table(
    plan: Mapping[str, Any], most: int | None = MOST_ROWS
) -> tuple[list[str], list[list[str]], list[str]]:
    """(column titles, rows of cells, sentences below) for a terminal of 80 to 100 columns.

    `trained by` is number of the rule, group, optimizer; `@N` is the learning rate at step N, `wd` the
    weight decay, `state` bytes of the optimizer; with `--layer_decay`, depth and factor. The rules stand
    below, and so does what all rows share. Variables fold by layer or block to at most `most` rows; None
    gives each its own.
    """
    rows = plan["rows"]
    number = {rule: str(i) for i, rule in enumerate(plan["rules"], 1)}
    folds, cells = _folded(rows, _columns(plan, number), most)
    below = [f"rule {i}: {rule}" for rule, i in number.items()]
    for column, sentence in _SHARED.items():
        values = set(cells[column]) - ({"-"} if column != "start value" else set())
        if len(values) == 1:
            del cells[column]
            below.append(sentence.format(values.pop()))
    if len(folds) < len(rows):
        below.append(
            f"{len(rows)} variables in {len(folds)} rows; plan.json and --mode=plan --full have one for each."
        )
    return list(cells), [list(row) for row in zip(*cells.values(), strict=True)], below


def _columns(plan: Mapping[str, Any], number: Mapping[str, str]) -> dict[str, list[str]]:
    """The cells of each column, one a variable."""
    rows = plan["rows"]
    deep = any("depth" in row for row in rows)
    return {
        "variable": [row["name"] for row in rows],
        "shape": ["x".join(map(str, row["shape"])) or "scalar" for row in rows],
        "trained by": [_trained_by(row, number) for row in rows],
        **({"depth": [str(row.get("depth", "-")) for row in rows]} if deep else {}),
        **({"factor": [_short(row["factor"]) if "depth" in row else "-" for row in rows]} if deep else {}),
        **{f"@{plan['rates_at'][i]}": [_rate(row, i) for row in rows] for i in _columns_at(plan)},
        **_where_used(rows, "loss"),
        **_where_used(rows, "every"),
        "trains": [f"{row['from']}..{row['until']}" if row["optimizer"] else "-" for row in rows],
        "moves": [row.get("moves") or "-" for row in rows],
        "wd": [_short(row["weight_decay"]) if row["optimizer"] else "-" for row in rows],
        "state": [_size(row["state_bytes"]) for row in rows],
        "start value": [row["start"] for row in rows],
    }


def _where_used(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[str]]:
    """A column of what only some groups say; {} where none does."""
    cells = [str(row.get(key, "-")) for row in rows]
    return {key: cells} if set(cells) != {"-"} else {}


def _folded(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, list[str]], most: int | None
) -> tuple[list[tuple[str, list[int]]], dict[str, list[str]]]:
    """The folds of a table, and its cells; what a model never trains goes with what it does."""
    alike = zip(columns["trained by"], columns["trains"], columns["wd"], strict=True)
    kinds = [None if row["group"] == UNTRAINED else kind for row, kind in zip(rows, alike, strict=True)]
    folds = fold(columns["variable"], kinds, most)
    cells: dict[str, list[str]] = {name: [] for name in columns}
    for label, own in folds:
        main = [i for i in own if kinds[i] is not None] or own
        for name, column in columns.items():
            of_state = [i for i in own if column[i] != "-"] or own
            chosen = {"start value": own, "moves": of_state}.get(name, main)
            cells[name].append(together([column[i] for i in chosen]))
        if len(own) > 1:
            never = f", {len(own) - len(main)} of state" if len(main) < len(own) else ""
            cells["variable"][-1], cells["shape"][-1] = label, f"{len(own)} variables{never}"
            cells["state"][-1] = _size(sum(rows[i]["state_bytes"] for i in own))
    return folds, cells


def warnings(plan: Mapping[str, Any]) -> list[str]:
    """Sentences on rates that `--layer_decay` leaves next to nothing of."""
    rows = [row for row in plan["rows"] if row.get("factor", 1.0) < LEAST]
    if not rows:
        return []
    deepest = max(rows, key=lambda row: row["depth"])
    return [
        f"--layer_decay={plan['layer_decay']:g}: {len(rows)} variables get less than {LEAST:g} of their "
        f"group's rate, {deepest['name']} at depth {deepest['depth']} only {deepest['factor']:.2g}. Give a "
        "factor nearer to 1, or count fewer levels with by=REGEX."
    ]


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
