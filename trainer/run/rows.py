"""Rows of predictions as a file, one an example: `.csv`, `.parquet`, `.npz`, `.jsonl`, `-` for stdout.

In `.csv` and `.parquet` an output [N, ...] is so many columns, `name_0`, `name_1`, ... in row-major order.
Floats of `.csv` and `.jsonl` are the shortest decimals that read back to the same bits.
"""

import csv
import importlib.util
import json
import os
import secrets
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from trainer.checkpoints import files
from trainer.errors import UserError

Arrays = Mapping[str, np.ndarray]


class Writer(Protocol):
    """Takes rows, some at a time."""

    def write(self, arrays: Arrays) -> None:
        """The next rows: `{name: [n, ...]}`."""

    def close(self) -> None:
        """No more come."""


def check_target(text: str) -> None:
    """Refuses a `--predict_to` that cannot be written, before anything is read.

    Raises:
      UserError: not given, of another ending, there already, or pyarrow is not there for it.
    """
    if not text:
        raise UserError(
            "--mode=predict: where to? Give --predict_to=FILE.csv (.parquet, .npz, .jsonl), or - ."
        )
    if text == "-":
        return
    path = Path(text).expanduser()
    if path.suffix not in _KINDS:
        raise UserError(f"--predict_to={text}: ends in none of {', '.join(_KINDS)}, and is not - .")
    if os.path.lexists(path):
        raise UserError(f"--predict_to={text}: is there already, and nothing is overwritten. Name another.")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"--predict_to={text}: .parquet needs pyarrow: pip install pyarrow. Or name a .csv.")


@contextmanager
def writing(text: str) -> Iterator[Writer]:
    """A writer for the value of `--predict_to`; the file is there when all is written, whole, or not at all.

    Raises:
      UserError: it cannot be written.
    """
    if text == "-":
        yield _Csv(sys.stdout)
        sys.stdout.flush()
        return
    path = Path(text).expanduser()
    aside = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = _KINDS[path.suffix](aside)
        yield writer
        writer.close()
        files.sync(aside)
        aside.rename(path)
    except OSError as error:
        raise UserError(f"--predict_to={text}: cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)


def _columns(arrays: Arrays) -> dict[str, np.ndarray]:
    """Each array [n] as it is, others as a column for each of their elements."""
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        flat = array.reshape(len(array), -1)
        names = [name] if array.ndim == 1 else [f"{name}_{k}" for k in range(flat.shape[1])]
        columns.update(zip(names, flat.T, strict=True))
    return columns


class _Csv:
    """A header, then a line a row; text of quotes and commas is quoted as the csv module does."""

    def __init__(self, to: TextIO | Path) -> None:
        self._file = to if not isinstance(to, Path) else to.open("x", newline="", encoding="utf-8")
        self._csv, self._header = csv.writer(self._file, lineterminator="\n"), False

    def write(self, arrays: Arrays) -> None:
        columns = _columns(arrays)
        if not self._header:
            self._csv.writerow(columns)
            self._header = True
        # str of a NumPy float is the shortest decimal that reads back to the same bits.
        self._csv.writerows(zip(*(map(_text, column) for column in columns.values()), strict=True))

    def close(self) -> None:
        self._file.close()


class _JsonLines:
    """An object a line; NaN and infinities are the strings "NaN", "Infinity" and "-Infinity"."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("x", encoding="utf-8")

    def write(self, arrays: Arrays) -> None:
        for row in range(len(next(iter(arrays.values())))):
            values = {name: _plain(array[row]) for name, array in arrays.items()}
            self._file.write(json.dumps(values, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Npz:
    """Arrays [N, ...] under their names, collected until the end."""

    def __init__(self, path: Path) -> None:
        self._path, self._parts = path, list[Arrays]()

    def write(self, arrays: Arrays) -> None:
        self._parts.append({n: a.astype(np.str_) if a.dtype == object else a for n, a in _decoded(arrays)})

    def close(self) -> None:
        whole = {name: np.concatenate([p[name] for p in self._parts]) for name in self._parts[0]}
        with zipfile.ZipFile(self._path, "x") as archive:  # np.savez takes no array called file
            for name, array in whole.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)


class _Parquet:
    """A column each, a row group for each call."""

    def __init__(self, path: Path) -> None:
        self._path, self._writer = path, None

    def write(self, arrays: Arrays) -> None:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table(_columns(dict(_decoded(arrays))))
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)  # type: ignore[attr-defined]

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


_KINDS: dict[str, Any] = {".csv": _Csv, ".parquet": _Parquet, ".npz": _Npz, ".jsonl": _JsonLines}


def _decoded(arrays: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """Text as Python's own."""
    for name, array in arrays.items():
        yield name, np.vectorize(_text, otypes=[object])(array) if array.dtype == object else array


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """A row's value as JSON has it."""
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value]
    if isinstance(value, bytes | str):
        return _text(value)
    if isinstance(value, np.floating) and not np.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    # The shortest decimal of its own width, not that of the float64 it widens to.
    return float(str(value)) if isinstance(value, np.floating) else value.item()
