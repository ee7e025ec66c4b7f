r"""Restoring into a model of one's own, without a run; and a look into a file of weights.

>>> import keras, numpy as np, trainer
>>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")])
>>> np.savez("old.npz", **{"top/kernel": np.ones((2, 1), "f4"), "top/bias": np.zeros(1, "f4")})
>>> receipt = restore_weights(model, "old.npz", rename=[r"head/(.*) -> top/\1"])
>>> receipt.restored
{'head/kernel': 'top/kernel', 'head/bias': 'top/bias'}
>>> inspect_weights("old.npz").names
('top/kernel', 'top/bias')
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.errors import listing
from trainer.model.keras2 import refuse_keras_2
from trainer.model.names import walk
from trainer.readers import WeightsFile, open_source
from trainer.restore import receipt as receipts
from trainer.restore.match import Matched, load, match
from trainer.restore.propose import Proposal, propose
from trainer.restore.rules import Rules, parse

_FLAG = "path"


@dataclass(frozen=True)
class Receipt:
    """What was restored, proven: every value was read back from the model. Prints as a table.

    Attributes:
      source: the path.
      kind: the format in plain words.
      lines: a dictionary per variable: `name`, `restored`, `source`, `rule`, `adapt`, `cast`, `shape`,
        `dtype`, `replicas`, and SHA-256 checksums `source_sha256`, `before`, `after`.
      leftover: weights of a file by position that the model has no place for.
    """

    source: str
    kind: str
    lines: tuple[Mapping[str, Any], ...]
    leftover: tuple[str, ...]
    matched: Matched

    @property
    def restored(self) -> dict[str, str]:
        """`{variable: the weights it was made of}`."""
        return {line["name"]: line["source"] for line in self.lines if line["restored"]}

    @property
    def left_alone(self) -> dict[str, str]:
        """`{variable: why}` of those that kept their values."""
        return {line["name"]: line["rule"] for line in self.lines if not line["restored"]}

    def write(self, folder: str | PathLike[str]) -> Path:
        """Writes `restore.json` into a folder, whole or not at all, and returns its path.

        Raises:
          UserError: it cannot be written.
        """
        return receipts.write(self.lines, self.matched, Path(folder))

    def __str__(self) -> str:
        """A table, folded by layer or block where it is long."""
        columns, rows = receipts.describe([dict(line) for line in self.lines], self.leftover)
        return f"Restored from {self.source} ({self.kind})\n{_table(columns, receipts.folded(rows))}"


@dataclass(frozen=True)
class Inspection:
    """What is in a file of weights. Prints as a table; the values are read when `rows` is first asked for.

    Attributes:
      source: the opened file: `source.specs`, `source.read(name)`.
      proposal: which rules would make it fit a model; None where no model was given.
      fits: whether it fits that model without rules; None where no model was given.
    """

    source: WeightsFile
    proposal: Proposal | None = None
    fits: bool | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weights, in the file's order."""
        return tuple(self.source.specs)

    @property
    def ignored(self) -> tuple[str, ...]:
        """Optimizer state, counters and random state, which are never restored."""
        return self.source.ignored

    @cached_property
    def rows(self) -> tuple[tuple[Any, ...], ...]:
        """(name, shape, dtype, mean, standard deviation, least, greatest value) of each weight."""
        return tuple(
            (name, spec.shape, spec.dtype, *statistics(self.source.read(name)))
            for name, spec in self.source.specs.items()
        )

    def __str__(self) -> str:
        """A table, the state in a line, and the proposal where there is one."""
        shown = [(r[0], "x".join(map(str, r[1])) or "scalar", *r[2:]) for r in self.rows]
        parts = [f"{self.source.path}: {self.source.kind}", _table(COLUMNS, shown)]
        if self.ignored:
            parts.append(f"Never taken (optimizer state, counters, random state): {listing(self.ignored)}.")
        if self.proposal is not None and not self.fits:
            parts += [f"Proposed, {self.proposal.how}:", *self.proposal.lines]
            parts += [f"Ambiguous: {line}" for line in self.proposal.ambiguous]
            parts += [f"Left open: {line}" for line in self.proposal.problems]
        return "\n".join(parts)


COLUMNS = ("name", "shape", "dtype", "mean", "std", "min", "max")


def restore_weights(
    model: Any,
    path: str | PathLike[str],
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    rename: Sequence[str] = (),
    adapt: Sequence[str] = (),
    cast: bool = False,
    layout: str = "",
    weights: str = "raw",
) -> Receipt:
    r"""Restores chosen variables of a model from any file of weights: all that was asked for, or nothing.

    Works under a distribution strategy, on all its replicas, and without one. The arguments are the
    `--init_*` flags of a run, by the same words: patterns are regular expressions on whole names.

    Args:
      model: a built `keras.Model`, or a `tf.Module`.
      path: a file, a directory, or the prefix of a TensorFlow checkpoint.
      only: restore only these variables.
      skip: leave these alone, in the model or in the file.
      rename: `MODEL_REGEX -> SOURCE_NAME`; the first that fits counts.
      adapt: `PATTERN METHOD(...)`: how a stored array is made to fit.
      cast: let a value change its float width.
      layout: `torch` for a file of PyTorch's.
      weights: `raw`, or `ema` for averaged weights where the file has both.

    Raises:
      UserError: everything that does not fit, in one message; nothing was assigned.

    Example:
        >>> import keras, numpy as np, trainer
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="fc")])
        >>> np.savez("state.npz", **{"fc.weight": np.zeros((2, 3), "f4"), "fc.bias": np.ones(2, "f4")})
        >>> trainer.restore_weights(model, "state.npz", layout="torch").restored
        {'fc/kernel': 'fc.weight', 'fc/bias': 'fc.bias'}
    """
    refuse_keras_2(model, "model")
    rules = parse(_texts(only), _texts(skip), _texts(rename), cast, _texts(adapt), layout)
    return _restored(model, open_source(fspath(path), weights, _FLAG), rules)


def _restored(model: Any, source: WeightsFile, rules: Rules) -> Receipt:
    variables = walk(model)
    matched = match(variables, source, rules, model)
    arrays = load(matched)
    # Of the variables: they may be restored outside the scope that they were made in.
    strategy = getattr(variables[0].value, "distribute_strategy", None) or tf.distribute.get_strategy()
    lines = receipts.assign(strategy, matched, arrays)
    return Receipt(source.path, source.kind, tuple(lines), matched.leftover, matched)


def inspect_weights(path: str | PathLike[str], model: Any = None, layout: str = "") -> Inspection:
    """Opens a file of weights to look at; with a model, also proposes the rules that would make it fit.

    Args:
      path: a file, a directory, or the prefix of a TensorFlow checkpoint.
      model: a built `keras.Model`, or a `tf.Module`.
      layout: `torch` for a file of PyTorch's; for proposals alone.

    Raises:
      UserError: nothing there, a format that is not read, or a damaged file.

    Example:
        >>> import numpy as np, trainer
        >>> np.savez("two.npz", a=np.float32([1, 3]), step=np.int64(7))
        >>> print(trainer.inspect_weights("two.npz"))
        two.npz: NumPy .npz
        name  shape  dtype    mean  std  min  max
        a     2      float32  2     1    1    3
        Never taken (optimizer state, counters, random state): step.
    """
    source = open_source(fspath(path), "raw", _FLAG)
    if model is None:
        return Inspection(source)
    refuse_keras_2(model, "model")
    variables = walk(model)
    fits = not match(variables, source, parse(layout=layout), model).problems
    return Inspection(source, propose(variables, source, layout, model), fits)


def statistics(array: np.ndarray) -> tuple[Any, ...]:
    """Mean, standard deviation, least and greatest value, in float64; of the sizes of complex numbers."""
    if not array.size:
        return ("-",) * 4
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    if wide.dtype.kind == "c":
        wide = np.abs(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        return tuple(float(value) for value in (wide.mean(), wide.std(), wide.min(), wide.max()))


def _texts(given: Sequence[str]) -> Sequence[str]:
    """A single text for a list of one: its letters are no patterns."""
    return (given,) if isinstance(given, str) else tuple(given)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [list(columns), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _cell(cell: Any) -> str:
    text = f"{cell:.6g}" if isinstance(cell, float) else str(cell)
    # Names come from a file: no control character of theirs reaches a terminal.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
