"""Restores of random models by Keras and by the program, compared; also for the soak test."""

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np

from tests.support.random_models import RELATIVES, make
from trainer.errors import UserError
from trainer.model.names import walk
from trainer.readers import WeightsFile, open_source
from trainer.restore import match
from trainer.restore.rules import parse


def positions(writer: ModuleType, seed: int, folder: Path) -> list[str]:
    """Saves the model of a seed as `.weights.h5` and loads it into relatives: "equal" or "refused" for each.

    Raises:
      AssertionError: Keras and the program differ.
    """
    path = folder / f"{writer.__name__}-{seed}.weights.h5"
    make(writer, seed).save_weights(path)
    source = open_source(str(path))
    outcomes = []
    for relative in some(seed):
        model = make(keras, seed, relative)
        before, ours, by_us, theirs, by_keras = both(model, source, lambda: model.load_weights(path))  # noqa: B023
        where = f"{path.name}, {relative}: Keras {by_keras!r}, here {by_us!r}"
        if by_keras is not None:
            assert by_us is not None, where
            assert same(ours, before), where
        elif by_us is not None:
            # Keras also passes over layers that the file does not have, with a warning or none.
            kept = [name for name, value in theirs.items() if np.array_equal(value, before[name])]
            assert kept, where
        else:
            assert same(ours, theirs), where
        outcomes.append("refused" if by_us is not None else "equal")
    path.unlink()
    return outcomes


def names(writer: ModuleType, seed: int, folder: Path) -> list[str]:
    """As `positions`, of a legacy `.h5` and Keras's `by_name=True`, which passes over what is missing."""
    path = folder / f"{writer.__name__}-{seed}.h5"
    made = make(writer, seed)
    if writer is keras:
        if not hasattr(made, "_operations_by_depth"):
            return []  # Keras 3 writes legacy files of functional models only
        made.save(path)
    else:
        made.save_weights(path)
    source = open_source(str(path))
    outcomes = []
    for relative in some(seed):
        model = make(keras, seed, relative)
        load = lambda: model.load_weights(path, by_name=True)  # noqa: E731, B023
        before, ours, by_us, theirs, by_keras = both(model, source, load)
        where = f"{path.name}, {relative}: Keras {by_keras!r}, here {by_us!r}"
        if by_us is None:
            assert by_keras is None and same(ours, theirs), where
        else:
            assert same(ours, before), where
            left = by_keras or any(np.array_equal(v, before[n]) for n, v in theirs.items())
            assert left or "in the source, and nothing takes it" in str(by_us), where
        outcomes.append("refused" if by_us is not None else "equal")
    path.unlink()
    return outcomes


def archives(writer: ModuleType, seed: int, folder: Path) -> list[str]:
    """A `.keras` file into the same layers made in another order: by name, whatever the positions are."""
    made = make(writer, seed)
    if not hasattr(made, "_operations_by_depth") and not hasattr(made, "_nodes_by_depth"):
        return []
    path = folder / f"{writer.__name__}-{seed}.keras"
    made.save(path)
    source = open_source(str(path))
    outcomes = []
    for relative in some(seed):
        model = make(keras, seed, relative)
        before = values(model)
        refused = attempt(lambda: restore(model, source))  # noqa: B023
        ours = values(model)
        if refused is None:
            wanted = {name: source.read(name) for name in source.specs}
            for name, value in ours.items():
                stem = name.rpartition("/")[0]
                stored = [v for n, v in wanted.items() if n == name or n.rpartition("/")[0] == stem]
                assert any(np.array_equal(value, v) for v in stored), f"{path.name}, {relative}: {name}"
        else:
            assert same(ours, before)
        outcomes.append("refused" if refused is not None else "equal")
    path.unlink()
    return outcomes


Values = dict[str, np.ndarray]


def some(seed: int) -> list[str]:
    """The model itself and two relatives of it, in turn."""
    others = RELATIVES[1:]
    return ["same", *(others[(2 * seed + i) % len(others)] for i in range(2))]


def both(
    model: Any, source: WeightsFile, load: Any
) -> tuple[Values, Values, Exception | None, Values, Exception | None]:
    """Values before, after the program's restore with its refusal, and after Keras's with its own."""
    weights = model.get_weights()
    before = values(model)
    by_us = attempt(lambda: restore(model, source))
    ours = values(model)
    model.set_weights(weights)
    by_keras = attempt(load)
    return before, ours, by_us, values(model), by_keras


def restore(model: Any, source: WeightsFile) -> None:
    """Restores without rules."""
    matched = match.match(walk(model), source, parse(), model)
    arrays = match.load(matched)
    for entry in matched.entries:
        if entry.sources:
            entry.variable.value.assign(arrays[entry.variable.name])


def attempt(function: Any) -> Exception | None:
    """The refusal, None for success."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function()
    except UserError as error:
        return error
    except Exception as error:
        assert type(error) in (ValueError, KeyError), error
        return error
    return None


def values(model: Any) -> dict[str, np.ndarray]:
    """All variables but random state."""
    return {v.name: v.value.numpy() for v in walk(model) if not v.random}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Equal to the bit."""
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)
