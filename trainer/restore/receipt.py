"""Assigning restored values on every replica, and the proof: `restore.json` and its table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.checkpoints import files
from trainer.errors import UserError
from trainer.model.blocks import fold, together
from trainer.model.finalize import finalize
from trainer.model.names import ModelVariable
from trainer.restore import pieces
from trainer.restore.decide import Decision
from trainer.restore.match import Matched
from trainer.restore.values import Values


def assign(
    strategy: tf.distribute.Strategy, matched: Matched, arrays: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Assigns on every replica and reads back; the receipt, a dictionary per variable of the model.

    Keys: `name`, `restored`, `source`, `rule`, `adapt`, `cast`, `shape`, `dtype`, `replicas`, and SHA-256
    checksums of the bytes: `source_sha256` (as stored), `before`, `after` (of every replica). Where
    nothing is adapted or cast, `after` is `source_sha256`. What is left alone has `before` = `after`.

    Raises:
      RuntimeError: a live value is not what was assigned, or changed without being asked to.
    """
    before = {e.variable.name: _copies(strategy, e.variable) for e in matched.entries}
    wanted: dict[str, str] = {}
    for entry in matched.entries:
        if entry.sources:
            name = entry.variable.name
            array = _again(arrays, name, matched)
            wanted[name] = pieces.checksum(array)
            pieces.assign(strategy.experimental_local_results(entry.variable.value), array)
            del array  # before the next one is read
    finalize(e.variable for e in matched.entries if e.sources)
    return [_receipt(strategy, matched, e, before, wanted, arrays) for e in matched.entries]


def _again(arrays: Mapping[str, np.ndarray], name: str, matched: Matched) -> np.ndarray:
    """The array, read once more: it was whole a moment ago."""
    try:
        return arrays[name]
    except UserError as error:
        raise RuntimeError(
            f"{matched.source.path} changed while it was read: {error} Some variables have been restored and "
            "others not; restore them again from a file that stays."
        ) from error


def describe(
    receipt: Sequence[dict[str, Any]], leftover: Sequence[str] = ()
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the receipt, for a terminal; `leftover` is what the source holds besides."""
    columns = ["variable", "shape", "from", "rule", "before", "after"]
    rows = []
    for line in receipt:
        how = [line["rule"], line["adapt"] or "", line["cast"] or ""]
        rows.append(
            [
                line["name"],
                "x".join(map(str, line["shape"])) or "scalar",
                line["source"] or "left alone",
                ", ".join(part for part in how if part),
                line["before"][:8],
                line["after"][:8] if line["restored"] else "unchanged",
            ]
        )
    rows += [["-", "", name, "left over in the file, as Keras leaves it", "", ""] for name in leftover]
    return columns, rows


def folded(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Rows of `describe` on one screen: those of a layer or block that one rule restored are one row."""
    shown = []
    for label, own in fold([row[0] for row in rows], [(row[3], row[2] == "left alone") for row in rows]):
        cells = [together([rows[i][column] for i in own]) for column in range(len(rows[0]))]
        if len(own) > 1:
            cells[0], cells[1] = label, f"{len(own)} variables"
            cells[4:] = ["" if "unchanged" not in cell else cell for cell in cells[4:]]
        shown.append(cells)
    return shown


def _receipt(
    strategy: tf.distribute.Strategy,
    matched: Matched,
    entry: Decision,
    before: Mapping[str, list[str]],
    wanted: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    name, variable = entry.variable.name, entry.variable
    old, new = before[name], _copies(strategy, variable)
    stored, cast = None, None
    if entry.sources:
        spec = matched.source.specs[entry.sources[0]]
        stored = arrays.stored(name) if isinstance(arrays, Values) else wanted[name]
        cast = f"{spec.dtype} -> {variable.dtype.name}" if spec.dtype != variable.dtype.name else None
    expected = [wanted[name]] * len(new) if entry.sources else old
    if new != expected or (stored and not cast and not entry.how and new[0] != stored):
        raise RuntimeError(
            f"{name}: read back, its value is not {'what was assigned' if stored else 'what it was'} "
            f"(SHA-256 {new}, should be {expected})."
        )
    return {
        "name": name,
        "restored": bool(entry.sources),
        "source": entry.source,
        "rule": entry.rule,
        "adapt": entry.how,
        "cast": cast,
        "shape": list(variable.shape),
        "dtype": variable.dtype.name,
        "replicas": len(new),
        "source_sha256": stored,
        "before": old[0],
        "after": new[0],
    }


def write(receipt: Sequence[Mapping[str, Any]], matched: Matched, workdir: Path) -> Path:
    """Writes `workdir/restore.json`, whole or not at all, and returns its path.

    Raises:
      UserError: it cannot be written.
    """
    path = workdir / "restore.json"
    body = {
        "source": matched.source.path,
        "kind": matched.source.kind,
        "restored": sum(line["restored"] for line in receipt),
        "left_alone": sum(not line["restored"] for line in receipt),
        "ignored_in_source": list(matched.source.ignored),
        "left_over_in_source": list(matched.leftover),
        "variables": list(receipt),
    }
    try:
        files.replace(path, json.dumps(body, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {path.name} cannot be written: {error.strerror}.") from error
    return path


def _copies(strategy: tf.distribute.Strategy, variable: ModelVariable) -> list[str]:
    """The checksum of the variable's value on each replica of this process."""
    return [pieces.checksum_of(copy) for copy in strategy.experimental_local_results(variable.value)]
