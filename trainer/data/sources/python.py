"""Objects of Python, and functions by name that return them: to the source that they are."""

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer.data.source import Source
from trainer.data.sources.arrays import Arrays
from trainer.data.sources.dataset import Datasets
from trainer.data.sources.sequence import Sequences
from trainer.errors import UserError, guarded

_OUGHT = (
    "a dictionary of arrays, anything with len() and [i], a tf.data.Dataset with its size (dataset, size), "
    "or "
    "a dictionary of these by split (docs/data.md)"
)


def from_object(
    given: Any, name: str, bad: str = "refuse", names: Sequence[str] = (), shuffle: int = 0
) -> Source:
    """The source that an object of Python is.

    Args:
      given: a source; `{feature: array}`; anything with `len()` and `[i]`; a `tf.data.Dataset` or `(dataset,
        size)`; or a dictionary of these by split.
      name: what messages call it.
      bad: value of --bad_examples.
      names: of the parts of examples that are tuples.
      shuffle: of a `tf.data.Dataset`: examples that are shuffled at a time.

    Raises:
      UserError: it is none of these.
    """
    if all(hasattr(given, part) for part in ("sizes", "spec", "elements")):
        return given.cleaned(bad) if isinstance(given, Arrays) else cast(Source, given)
    splits = _by_split(given)
    kinds = {
        split: _kind(found, f"--dataset={name}: split {split}", names) for split, found in splits.items()
    }
    if len(set(kinds.values())) > 1:
        raise UserError(f"--dataset={name}: its splits are of different kinds: {kinds}. Give all alike.")
    kind = next(iter(kinds.values()))
    if shuffle and kind != "dataset":
        raise UserError(
            f"--dataset={name}: shuffle={shuffle} is for a tf.data.Dataset; all else is shuffled whole."
        )
    if kind == "arrays":
        return Arrays(name, **{split: _named(found, names) for split, found in splits.items()}).cleaned(bad)
    if bad == "skip":
        raise UserError(
            f"--bad_examples=skip: {name} is read as it goes, and what is bad in it is not known beforehand. "
            "Leave such examples out in the data set itself."
        )
    if kind == "dataset":
        sized = {
            split: _sized(found, f"--dataset={name}: split {split}", names) for split, found in splits.items()
        }
        return Datasets(name, sized, shuffle)
    return Sequences(name, splits, names)


def _by_split(given: Any) -> dict[str, Any]:
    """`{split: what it is}`."""
    if not isinstance(given, Mapping):
        return {"train": given}
    if given and all(_is_a_split(value) for value in given.values()):
        return {str(split): value for split, value in given.items()}
    return {"train": given}


def _is_a_split(value: Any) -> bool:
    """Whether a value of a dictionary is a split of its own, not an array."""
    if isinstance(value, Mapping | tf.data.Dataset):
        return True
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], tf.data.Dataset):
        return True
    array_like = isinstance(value, np.ndarray | list | tuple | tf.Tensor | tf.RaggedTensor | str | bytes)
    return not array_like and not hasattr(value, "__array__") and _has_items(value)


def _has_items(value: Any) -> bool:
    return hasattr(type(value), "__len__") and hasattr(type(value), "__getitem__")


def _kind(found: Any, where: str, names: Sequence[str]) -> str:
    if isinstance(found, tf.data.Dataset) or (
        isinstance(found, tuple) and isinstance(found[0], tf.data.Dataset)
    ):
        return "dataset"
    if isinstance(found, Mapping):
        return "arrays"
    if isinstance(found, tuple) and all(hasattr(part, "shape") for part in found):
        if len(names) != len(found):
            raise UserError(
                f"{where}: is {len(found)} arrays without names. Give them: names=('image', 'label')."
            )
        return "arrays"
    if isinstance(found, str | bytes) or not _has_items(found):
        raise UserError(f"{where}: is {type(found).__name__}, not {_OUGHT}.")
    return "sequence"


def _named(found: Any, names: Sequence[str]) -> Mapping[str, Any]:
    return dict(zip(names, found, strict=True)) if isinstance(found, tuple) else found


def _sized(found: Any, where: str, names: Sequence[str]) -> tuple[tf.data.Dataset, int]:
    """A `tf.data.Dataset` and how many examples it has."""
    data, size = found if isinstance(found, tuple) else (found, int(found.cardinality()))
    if type(size) is not int or size < 1:
        raise UserError(
            f"{where}: how many examples its tf.data.Dataset has is not known, or it has no end. Give "
            "(dataset, size), or use dataset.apply(tf.data.experimental.assert_cardinality(size))."
        )
    if isinstance(data.element_spec, tuple):
        if len(names) != len(data.element_spec):
            raise UserError(
                f"{where}: its examples are tuples of {len(data.element_spec)}. Name their parts: "
                "names=('image', 'label')."
            )
        data = data.map(lambda *parts: dict(zip(names, parts, strict=True)))
    return data, size


# Functions by name


def found_by_name(path: str) -> Any:
    """The object that a dotted path, a module or a path ending in `.py` names; of a module its `make`.

    None where there is none in the working directory, on PYTHONPATH or among the installed packages.

    Raises:
      UserError: it is there, and importing it raised.
    """
    if path.endswith(".py") or ".py." in path:
        file, _, attribute = path.partition(".py")
        return _attribute(_from_file(Path(f"{file}.py").expanduser()), attribute.removeprefix("."))
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", path):
        return None
    names = path.split(".")
    with _working_directory():
        for count in range(len(names), 0, -1):
            module = _imported(".".join(names[:count]), f"--dataset={path}")
            if module is not None:
                return _attribute(module, ".".join(names[count:]))
    return None


def is_own_module(word: str) -> bool:
    """Whether a bare word is a module in the working directory or in a folder of PYTHONPATH."""
    folders = [Path.cwd(), *map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
    return any((f / f"{word}.py").is_file() or (f / word / "__init__.py").is_file() for f in folders)


def _attribute(module: Any, path: str) -> Any:
    found = module
    for name in filter(None, path.split(".")):
        found = getattr(found, name, None)
    if inspect.ismodule(found) and hasattr(found, "make"):
        return found.make
    return found


def _imported(path: str, flag: str) -> Any:
    try:
        with tfds.core.registered.skip_registration():  # this imports the parents
            if importlib.util.find_spec(path) is None:
                return None
    except KeyboardInterrupt:
        raise
    except BaseException:  # of a parent; the next to be imported, which says so
        return None
    with tfds.core.registered.skip_registration():  # else a second builder of the same name is refused
        return guarded(lambda: importlib.import_module(path), f"{flag}: importing {path}")


def _from_file(file: Path) -> Any:
    if not file.is_file():
        return None
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    with tfds.core.registered.skip_registration():
        guarded(lambda: loader.exec_module(module), f"--dataset={file}: importing it")
    return module


class _working_directory:
    """The working directory is looked in, too, as for `python run.py`."""

    def __enter__(self) -> None:
        self._added = str(Path.cwd())
        sys.path.append(self._added)

    def __exit__(self, *_: object) -> None:
        sys.path.remove(self._added)
