"""Tables: `.csv` and `.parquet`, a scalar feature a column; read once, into arrays."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from trainer.data.sources.arrays import Arrays, Origin
from trainer.data.sources.classes import check_spelling
from trainer.data.stored import Flat
from trainer.errors import UserError, listing, near

AT_ONCE = 1 << 16  # rows of text that are brought to one width together
SUFFIXES = (".csv", ".tsv", ".parquet")


def open_table(name: str, files: Mapping[str, Path], features: Sequence[str] = (), label: str = "") -> Arrays:
    """A table of each split, as arrays: numbers, text, or lists of numbers (of different lengths).

    Args:
      name: value of --dataset.
      files: by split.
      features: columns to read, in this order; all where none is named. The label is read in any case.
      label: the column to be learnt; text becomes class numbers, int64, in the sorted order of the names.

    Raises:
      UserError: a file that cannot be read, a column that is not there or cannot be a feature.
    """
    flag = f"--dataset={name}"
    splits: dict[str, dict[str, Any]] = {split: {} for split in files}
    missing: dict[str, dict[str, np.ndarray]] = {split: {} for split in files}
    types: dict[str, str] = {}
    for split, file in files.items():
        for column, values in _columns(flag, file, features, label):
            if not len(values):
                raise UserError(f"{flag}: {file} (split {split}) has no examples: it has no row.")
            types.setdefault(column, _shown(values.type))
            if values.null_count:
                missing[split][column] = np.flatnonzero(values.is_null().to_numpy())
            splits[split][column] = _array(flag, split, column, values)
            if column == label and _is_text(splits[split][column]):  # a text of nothing names no class
                unnamed = np.flatnonzero(splits[split][column].astype(object) == b"")
                missing[split][column] = np.union1d(missing[split].get(column, unnamed), unnamed)
    classes: dict[str, tuple[str, ...]] = {}
    if label and all(_is_text(arrays[label]) for arrays in splits.values()):
        classes[label], numbers = _numbered(flag, label, splits, missing)
        splits = {split: {**arrays, label: numbers[split]} for split, arrays in splits.items()}
    notes = [f"{name}: {listing((f'{c} {kind}' for c, kind in types.items()), 40)}."]
    if classes:
        numbered = (f"{number} {name}" for number, name in enumerate(classes[label]))
        notes.append(f"{label} is one of {len(classes[label])} classes: {listing(numbered, 40)}.")
    root = next(iter(files.values())).parent
    origin = Origin(tuple(files.values()), root, tuple(notes), classes, label or "label", missing)
    return Arrays.read(name, splits, origin)


def _columns(
    flag: str, file: Path, features: Sequence[str], label: str
) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """The columns asked for, types inferred; of parquet one is in memory at a time."""
    try:
        if file.suffix == ".parquet":
            opened = pa.parquet.ParquetFile(file)
            names = opened.schema_arrow.names
        else:
            table = pa.csv.read_csv(
                file, parse_options=pa.csv.ParseOptions(delimiter="\t" if file.suffix == ".tsv" else ",")
            )
            names = table.column_names
        for name in _wanted(flag, file, names, features, label):
            yield name, opened.read([name])[name] if file.suffix == ".parquet" else table[name]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{flag}: {file} cannot be read: {' '.join(str(error).split())[:300]}") from error


def _wanted(flag: str, file: Path, names: Sequence[str], features: Sequence[str], label: str) -> list[str]:
    """Of the columns that there are, those to be read."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{flag}: {file} has two columns of one name: {listing(twice)}. Rename one.")
    wanted = list(dict.fromkeys([*(features or names), *([label] if label else [])]))
    for name in wanted:
        if name not in names:
            which = "label" if name == label else "features"
            raise UserError(f"{flag}: {which}={name!r}: {file} has no such column. {near(name, names)}")
    return wanted


def _array(flag: str, split: str, name: str, column: pa.ChunkedArray) -> Any:
    """One column as an array; where a value is missing there is NaN, 0 or empty text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if pa.types.is_floating(kind):
        floats = column.to_numpy()
        return floats.astype(keras.config.floatx()) if kind == pa.float64() else floats
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        filled = column.fill_null(False if pa.types.is_boolean(kind) else 0) if column.null_count else column
        return filled.to_numpy()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        items = kind.value_type
        if pa.types.is_integer(items) or pa.types.is_floating(items):
            values = pc.list_flatten(column)
            lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
            return Flat(values.to_numpy(), lengths)
    if pa.types.is_null(kind):
        raise UserError(
            f"{flag}: split {split}: the column {name} has no value in any row. Leave it out by "
            "features=[...]."
        )
    raise UserError(
        f"{flag}: split {split}: the column {name} is {kind}, which is no number and no text. Leave it out "
        "by "
        "features=[...], or write it as numbers."
    )


def _text(column: pa.ChunkedArray) -> np.ndarray:
    """Text as bytes of one width: no Python object for each row, but where that would waste memory."""
    column = column.cast(pa.large_binary())
    width = max(pc.max(pc.binary_length(column)).as_py() or 0, 1)
    if len(column) * width > 2 * column.nbytes + (64 << 20):
        filled = column.fill_null(b"")
        return np.array(filled.to_pylist(), object)
    found = np.zeros((len(column), width), np.uint8)
    row = 0
    for chunk in column.chunks:
        chunk = chunk.fill_null(b"") if chunk.null_count else chunk
        for start in range(0, len(chunk), AT_ONCE):
            part = chunk.slice(start, AT_ONCE)
            offsets = np.frombuffer(part.buffers()[1], np.int64)[part.offset : part.offset + len(part) + 1]
            data = np.frombuffer(part.buffers()[2] or b"", np.uint8)
            place = np.arange(width) < np.diff(offsets)[:, None]
            found[row : row + len(part)][place] = data[offsets[0] : offsets[-1]]
            row += len(part)
    return found.reshape(-1).view(f"S{width}")


def _is_text(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind in "SO"


def _numbered(
    flag: str,
    label: str,
    splits: Mapping[str, Mapping[str, Any]],
    missing: Mapping[str, Mapping[str, np.ndarray]],
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """(names of the classes, sorted; by split the numbers int64)."""
    labelled = {
        s: np.setdiff1d(np.arange(len(a[label])), missing[s].get(label, ())) for s, a in splits.items()
    }
    every = [np.unique(arrays[label][labelled[split]]) for split, arrays in splits.items()]
    names = np.unique(np.concatenate([each.astype(object) for each in every]))
    texts = tuple(_decoded(name) for name in names)
    check_spelling(flag, label, texts)
    numbers = {}
    for split, arrays in splits.items():
        values = arrays[label].astype(object)
        numbers[split] = np.full(len(values), -1, np.int64)
        rows = labelled[split]
        numbers[split][rows] = np.searchsorted(names, values[rows])
    return texts, numbers


def _decoded(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _shown(kind: pa.DataType) -> str:
    return {"string": "text", "large_string": "text", "double": "float64", "float": "float32"}.get(
        str(kind), str(kind)
    )
