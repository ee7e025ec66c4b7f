"""Arrays in files: `.npz` with keys `split/feature`, and folders of `.npy` files, mapped into memory."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainer.data.sources.arrays import Arrays, Origin
from trainer.errors import UserError


def open_npz(name: str, file: Path) -> Arrays:
    """The arrays of a `.npz`: key `split/feature`, or `feature` of the split train.

    Raises:
      UserError: it cannot be read, or holds Python objects.
    """
    splits: dict[str, dict[str, np.ndarray]] = {}
    try:
        with np.load(file, allow_pickle=False) as archive:
            for key in archive.files:
                split, _, feature = key.rpartition("/")
                try:
                    splits.setdefault(split or "train", {})[feature] = archive[key]
                except ValueError as error:
                    raise UserError(f"--dataset={name}: {key}: {_reason(error)}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--dataset={name}: {file} cannot be read as .npz: {_reason(error)}") from error
    if not splits:
        raise UserError(f"--dataset={name}: {file} has no array in it.")
    return Arrays.read(name, splits, Origin((file,), file.parent, _types(name, splits)))


def open_npy(name: str, folder: Path) -> Arrays:
    """A folder of `.npy` files, `split/feature.npy` or `feature.npy` of the split train; not read at once.

    Raises:
      UserError: a file that cannot be read, or holds Python objects.
    """
    files = sorted(folder.glob("*.npy")) or sorted(folder.glob("*/*.npy"))
    splits: dict[str, dict[str, np.ndarray]] = {}
    for file in files:
        split = "train" if file.parent == folder else file.parent.name
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"--dataset={name}: {file} cannot be read as .npy: {_reason(error)}") from error
        splits.setdefault(split, {})[file.stem] = array
    return Arrays.read(name, splits, Origin(tuple(files), folder, _types(name, splits)))


def _types(name: str, splits: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[str, ...]:
    first = next(iter(splits.values()))
    shown = ", ".join(f"{n} {a.dtype.name}{list(a.shape[1:])}" for n, a in first.items())
    return (f"{name}: {shown}.",)


def _reason(error: Exception) -> str:
    if "allow_pickle" in str(error) or "Object arrays" in str(error):
        return (
            "it holds Python objects, which are never unpickled. Save numbers or text (np.asarray(x, 'U'))."
        )
    return " ".join(str(error).split())[:300] or type(error).__name__
