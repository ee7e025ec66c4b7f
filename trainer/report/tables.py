"""Arrays of an evaluation as tables: of each class, and which class was taken for which."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

MOST = 25  # classes that a table on a screen shows; all of them are in the record

Table = tuple[str, Sequence[str], list[Sequence[Any]]]


def tables(arrays: Mapping[str, np.ndarray]) -> Iterator[Table]:
    """(title, columns, rows) of what a person reads: the table of the classes, and the confusion matrix.

    Args:
      arrays: of an evaluation, see `trainer.model.outputs`; others than these two are for the report.
    """
    classes = arrays.get("per_class")
    if classes is not None and classes.ndim == 2 and classes.shape[1] == 4 and len(classes) <= MOST:
        rows: list[Sequence[Any]] = [
            (k, *map(float, row[:3]), f"{int(row[3]):,}") for k, row in enumerate(classes)
        ]
        yield "Classes", ("class", "precision", "recall", "F1", "examples"), rows
    matrix = arrays.get("confusion_matrix")
    if matrix is not None and matrix.ndim == 2 and len(matrix) <= MOST:
        names = [str(k) for k in range(matrix.shape[1])]
        cells = [(k, *(int(n) for n in row)) for k, row in enumerate(matrix)]
        yield "Confusion matrix: a row is a class, a column what it was taken for", ("", *names), list(cells)
