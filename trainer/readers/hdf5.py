"""The layout and the arrays of an HDF5 file, with the HDF5 library kept in a child process.

Keras writes plain contiguous data, which is read straight from the file at the place the library names;
packed data comes through the child, one dataset at a time.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.readers import buffers
from trainer.readers.source import Spec, np_dtype, size

_CHILD = Path(__file__).with_name("hdf5_child.py")
_SECONDS = 60


@dataclass(frozen=True)
class Dataset:
    """One array: its spec, stored dtype (with byte order), path as stored, place where it lies plainly."""

    spec: Spec
    stored: str
    path: str
    offset: int | None


@dataclass(frozen=True)
class Layout:
    """What an HDF5 file holds.

    Attributes:
      file: where it lies.
      legacy: whether it is one of Keras 2's `.h5`.
      groups: each with the layer's name, where one is stored in `vars`.
      datasets: the arrays in the file's order.
      layers: of a legacy file, (layer, paths of its weights) in the order that the file states.
    """

    file: Path
    legacy: bool
    groups: Mapping[str, str | None]
    datasets: Mapping[str, Dataset]
    layers: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def read(self, path: str) -> np.ndarray:
        """One array.

        Raises:
          ValueError, OSError: the data is not there.
        """
        dataset = self.datasets[path]
        dtype, shape = np_dtype(dataset.stored), dataset.spec.shape
        if dataset.offset is None:
            data = np.frombuffer(_child(self.file, dataset.path), np.uint8)
        else:
            length = size(shape) * dtype.itemsize
            data = buffers.part(self.file, dataset.offset, length)
        return data.view(dtype).reshape(shape)


def open_hdf5(file: Path) -> Layout:
    """The layout of an HDF5 file.

    Raises:
      ValueError: damaged, links out of the file, data that is not numbers or not all there.
    """
    description = json.loads(_child(file))
    length = file.stat().st_size
    legacy = bool(description["legacy"])
    datasets: dict[str, Dataset] = {}
    for entry in description["datasets"]:
        path = _slashes(entry["path"], legacy)
        shape = tuple(int(dimension) for dimension in entry["shape"])
        stored = np_dtype(entry["dtype"])
        offset = entry["offset"]
        needed = size(shape) * stored.itemsize
        if offset is not None and needed and not 0 <= offset <= length - needed:
            raise ValueError(f"the data of {path!r} lie beyond the end of the file")
        if path in datasets:
            raise ValueError(f"{path!r} is there twice")
        datasets[path] = Dataset(Spec(shape, stored.name), entry["dtype"], entry["path"], offset)
    groups = {_slashes(path, legacy): name for path, name in description["groups"].items()}
    layers = tuple((layer, tuple(paths)) for layer, paths in description["order"])
    return Layout(file, legacy, groups, datasets, layers)


def _slashes(path: str, legacy: bool) -> str:
    r"""Keras 2.12-2.14 on Windows made folders of the name `layers\dense` where it meant `layers/dense`."""
    return path if legacy else path.replace("\\", "/")


def _child(file: Path, *more: str) -> bytes:
    """What the child says of a file; it may crash or hang without harm."""
    command = [sys.executable, "-I", str(_CHILD), str(file.absolute()), *more]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"the HDF5 library did not come to an end in {_SECONDS} s") from None
    if done.returncode == 3:
        raise ValueError(done.stderr.decode(errors="replace").strip())
    if done.returncode:
        raise ValueError(f"the HDF5 library broke on it, exit {done.returncode}")
    return done.stdout
