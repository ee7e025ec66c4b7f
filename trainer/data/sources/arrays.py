"""Arrays in memory: `{split: {feature: array}}`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.bad import bad_rows
from trainer.data.fingerprints import fingerprint, of_array, of_files
from trainer.data.source import parts
from trainer.data.stored import Flat, as_array, as_stored, joined, kept, parts_of, spec_of, stored
from trainer.errors import UserError, listing


@dataclass(frozen=True)
class ClassNames:
    """A feature that is a class number, as a model's `check` sees it.

    Attributes:
      names: of the classes, in the order of their numbers; () where they have none.
      count: how many there are, where they have no names.
    """

    names: tuple[str, ...] = ()
    count: int = 0
    shape: tuple[int, ...] = ()
    dtype: tf.DType = tf.int64

    @property
    def num_classes(self) -> int:
        """How many there are."""
        return self.count or len(self.names)


@dataclass(frozen=True)
class Origin:
    """Where arrays came from, for those that did not come from Python.

    Attributes:
      files: they were read from.
      root: the folder that the names of these files are told from.
      notes: sentences on what was inferred.
      classes: by feature, the names of its classes.
      label: the feature that is a label, besides one that is called so.
      missing: by split and feature, numbers of the examples in which there is no value.
    """

    files: tuple[Path, ...] = ()
    root: Path = Path()
    notes: tuple[str, ...] = ()
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str = "label"
    missing: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


class Arrays:
    """A data set out of NumPy arrays, a keyword a split.

    float64 becomes `keras.config.floatx()`, as in Keras's `fit`; arrays of objects must hold strings, or
    arrays of different lengths, which `--pad` brings to one.

    Args:
      name: what messages and the plan call it.
      splits: `{feature: array [examples, ...]}` for each split, such as `train` and `test`.

    Raises:
      UserError: a split that is no dictionary, is empty, or whose features differ in length.

    Example:
      >>> import numpy as np, trainer
      >>> x, y = np.zeros([100, 28, 28, 1], "uint8"), np.zeros([100], "int64")
      >>> train, test = {"image": x[:80], "label": y[:80]}, {"image": x[80:], "label": y[80:]}
      >>> data = trainer.Arrays(train=train, test=test)
      >>> data.sizes()
      {'train': 80, 'test': 20}
    """

    remedy = "Give whole arrays."
    prepared = True
    in_memory = True

    def __init__(self, name: str = "arrays", /, **splits: Mapping[str, Any]) -> None:
        self.name = name
        if not splits:
            raise UserError(f"--dataset={name}: no split. Write trainer.Arrays(train={{'x': array}}).")
        self._splits = {split: self._checked(split, features) for split, features in splits.items()}
        self._origin = Origin()

    @classmethod
    def read(cls, name: str, splits: Mapping[str, Mapping[str, Any]], origin: Origin) -> "Arrays":
        """Arrays that were read from files."""
        arrays = cls(name, **splits)
        arrays._origin = origin
        return arrays

    def cleaned(self, policy: str) -> "Arrays":
        """These arrays, their examples looked at, as `--bad_examples` has it; mapped files are not.

        Raises:
          UserError: an example cannot be used, and `way` is `refuse`.
        """
        splits, notes, origin = {}, [], self._origin
        mapped = any(isinstance(a, np.memmap) for arrays in self._splits.values() for a in arrays.values())
        if mapped and policy == "skip":
            raise UserError(
                f"--bad_examples=skip: {self.name} is mapped into memory and not looked through beforehand. "
                "Give refuse, or keep, or write it as .npz."
            )
        for split, arrays in self._splits.items():
            rows = {name: self._bad(split, name, policy) for name in arrays}
            bad = np.unique(np.concatenate(list(rows.values()))).astype(np.int64)
            if len(bad) and policy != "skip":
                name = next(name for name, found in rows.items() if len(found))
                raise self._refusal(split, name, rows[name], policy)
            if len(bad):
                size = len(next(iter(arrays.values())))
                arrays = {
                    name: kept(array, np.delete(np.arange(size), bad)) for name, array in arrays.items()
                }
                notes.append(f"{len(bad)} of {size} examples of {split} are left out (--bad_examples=skip).")
                if len(bad) == size:
                    raise UserError(f"--dataset={self.name}: split {split} has no example that can be used.")
            splits[split] = arrays
        if not notes:
            return self
        return Arrays.read(self.name, splits, replace(origin, notes=(*origin.notes, *notes), missing={}))

    def _bad(self, split: str, name: str, policy: str) -> np.ndarray:
        """Examples of a split whose feature `name` cannot be used: of floats `keep` keeps them."""
        array, missing = self._splits[split][name], self._origin.missing.get(split, {}).get(name)
        found = np.empty(0, np.int64) if missing is None else missing
        values = array.values if isinstance(array, Flat) else array
        if policy == "keep":
            return found if values.dtype.kind != "f" else np.empty(0, np.int64)
        if isinstance(array, np.memmap):
            return found
        return np.union1d(found, bad_rows("label" if name == self._origin.label else name, array))

    def _refusal(self, split: str, name: str, rows: np.ndarray, policy: str) -> UserError:
        array, missing = self._splits[split][name], self._origin.missing.get(split, {}).get(name, ())
        value = f"{array[rows[0]]}" if isinstance(array, np.ndarray) and array.ndim == 1 else "not finite"
        if rows[0] in missing:
            value = "no value"
        elif array.dtype.kind in "iu" if isinstance(array, np.ndarray) else False:
            value += " (the label is missing)"
        keeps = ", or --bad_examples=keep to train on NaN and -1 as they are" if policy != "keep" else ""
        return UserError(
            f"--dataset={self.name}: split {split}, example {listing(map(str, rows.tolist()), 5)} of "
            f"{len(array)} (counted from 0), feature {name}: {value}. Mend the data, or give "
            f"--bad_examples=skip to leave such examples out{keeps}."
        )

    def _checked(self, split: str, features: Any) -> dict[str, Any]:
        where = f"--dataset={self.name}: the split {split}"
        if not isinstance(features, Mapping) or not features:
            raise UserError(f"{where} is {type(features).__name__}, not a dictionary {{feature: array}}.")
        arrays = {str(name): as_array(value, f"{where}: {name}") for name, value in features.items()}
        sizes = {len(array) for array in arrays.values()}
        if len(sizes) > 1:
            shown = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
            raise UserError(f"{where} has features of different lengths ({shown}).")
        return arrays

    @property
    def full_name(self) -> str:
        """Its name."""
        return self.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What was inferred where they were read."""
        return self._origin.notes

    @property
    def features(self) -> dict[str, Any]:
        """As `spec`; of a label that counts classes, how many there are, and their names if they have any."""
        named = {name: ClassNames(names) for name, names in self._origin.classes.items()}
        label = self._origin.label
        found = [arrays[label] for arrays in self._splits.values() if label in arrays and label not in named]
        if found and all(isinstance(a, np.ndarray) and a.ndim == 1 and a.dtype.kind in "iu" for a in found):
            least, most = (
                min(int(a.min()) for a in found if len(a)),
                max(int(a.max()) for a in found if len(a)),
            )
            if least >= 0:
                named[label] = ClassNames(count=most + 1, dtype=tf.as_dtype(found[0].dtype))
        return self.spec() | named

    def prepare(self) -> None:
        """Nothing: arrays are there."""

    def fingerprint(self) -> str:
        """Of all bytes; of those that came from files, of the files."""
        if self._origin.files:
            return of_files(self._origin.files, self._origin.root)
        digests = {
            split: {name: [of_array(part) for part in parts_of(array)] for name, array in arrays.items()}
            for split, arrays in self._splits.items()
        }
        return fingerprint(digests)

    def sizes(self) -> dict[str, int]:
        """`{split: examples}`."""
        return {split: len(next(iter(arrays.values()))) for split, arrays in self._splits.items()}

    def spec(self) -> dict[str, Any]:
        """Of the first split, which the others must equal.

        Raises:
          UserError: a split with other features, shapes or types.
        """
        specs = {split: {n: spec_of(a) for n, a in arrays.items()} for split, arrays in self._splits.items()}
        first, *others = specs
        for split in others:
            if specs[split] != specs[first]:
                raise UserError(
                    f"--dataset={self.name}: the splits differ: {first} has {_shown(specs[first])}, "
                    f"{split} has {_shown(specs[split])}. Give them the same features."
                )
        return specs[first]

    def elements(self, split: str) -> np.ndarray:
        """Row numbers, all splits in a row."""
        sizes = self.sizes()
        firsts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
        return np.concatenate([firsts[name] + np.arange(a, b) for name, a, b in parts(split, sizes)])

    def example(self, element: tf.Tensor) -> dict[str, Any]:
        """The row of this number."""
        return {name: group[0] for name, group in self.examples(element[None]).items()}

    def examples(self, elements: tf.Tensor) -> dict[str, Any]:
        """The rows of these numbers; no copy of the arrays is made."""
        spec = self.spec()
        kinds = [part.dtype for part in spec.values()]
        ragged = [name for name in spec if isinstance(next(iter(self._splits.values()))[name], Flat)]
        found = tf.numpy_function(self._rows, [elements], [*kinds, *[tf.int64] * len(ragged)], stateful=False)
        lengths = dict(zip(ragged, found[len(kinds) :], strict=True))
        group, count = {}, elements.shape[0]
        for (name, part), values in zip(spec.items(), found, strict=False):
            if name in lengths:
                values = tf.ensure_shape(values, [None, *part.shape[1:]])
                length = tf.ensure_shape(lengths[name], [count])
                group[name] = tf.RaggedTensor.from_row_lengths(values, length, validate=False)
            else:
                group[name] = tf.ensure_shape(values, [count, *part.shape])
        return group

    def _rows(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Each feature's rows of these numbers, and then the lengths of those that differ in length."""
        ends = np.cumsum(list(self.sizes().values()))
        place = np.searchsorted(ends, numbers, "right")
        values, lengths = [], []
        for name in next(iter(self._splits.values())):
            pieces: list[Any] = []
            for i in np.unique(place):
                array = list(self._splits.values())[i][name]
                first = ends[i] - len(array)
                pieces.append((np.flatnonzero(place == i), kept(array, numbers[place == i] - first)))
            group = joined([piece for _, piece in pieces])
            if len(pieces) > 1:
                group = kept(group, np.argsort(np.concatenate([at for at, _ in pieces])))
            if isinstance(group, Flat):
                lengths.append(group.lengths)
                group = group.values
            values.append(stored(group))
        return [*values, *lengths]

    def arrays(self, split: str) -> dict[str, Any]:
        """The arrays, or copies of their parts."""
        found = [
            {n: as_stored(a[first:stop]) for n, a in self._splits[s].items()}
            for s, first, stop in parts(split, self.sizes())
        ]
        return {n: joined([f[n] for f in found]) for n in found[0]}


def _shown(spec: Mapping[str, tf.TensorSpec]) -> str:
    return ", ".join(f"{name} {s.dtype.name}{list(s.shape)}" for name, s in spec.items())
