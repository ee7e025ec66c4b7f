"""Assigning restored values on every replica, and the proof: `restore.json` and its table."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.errors import UserError
from trainer.model.names import ModelVariable
from trainer.restore.match import Entry, Matched


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
    for entry in matched.entries:
        if entry.source is not None:
            for copy in strategy.experimental_local_results(entry.variable.value):
                copy.assign(arrays[entry.variable.name])
    return [_receipt(strategy, matched, entry, before, arrays) for entry in matched.entries]


def describe(receipt: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the receipt, for a terminal."""
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
    return columns, rows


def _receipt(
    strategy: tf.distribute.Strategy,
    matched: Matched,
    entry: Entry,
    before: Mapping[str, list[str]],
    arrays: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    name, variable = entry.variable.name, entry.variable
    old, new = before[name], _copies(strategy, variable)
    wanted, stored, cast, adapted = old, None, None, None
    if entry.source is not None:
        raw = matched.source.read(entry.source)
        stored, wanted = checksum(raw), [checksum(arrays[name])] * len(new)
        cast = f"{raw.dtype.name} -> {variable.dtype.name}" if raw.dtype.name != variable.dtype.name else None
        adapted = entry.adapt.method if entry.adapt else None
    if new != wanted or (stored and not cast and not adapted and new[0] != stored):
        raise RuntimeError(
            f"{name}: read back, its value is not {'what was assigned' if stored else 'what it was'} "
            f"(SHA-256 {new}, should be {wanted})."
        )
    return {
        "name": name,
        "restored": entry.source is not None,
        "source": entry.source,
        "rule": entry.rule,
        "adapt": adapted,
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
        "variables": list(receipt),
    }
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        aside.rename(path)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {path.name} cannot be written: {error.strerror}.") from error
    return path


def checksum(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _copies(strategy: tf.distribute.Strategy, variable: ModelVariable) -> list[str]:
    """The checksum of the variable's value on each replica of this process."""
    return [checksum(copy.numpy()) for copy in strategy.experimental_local_results(variable.value)]
