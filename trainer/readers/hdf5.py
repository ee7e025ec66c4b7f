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

from trainer.readers.source import Spec, np_dtype, size

_CHILD = Path(__file__).with_name("hdf5_child.py")
_SECONDS = 60


@dataclass(frozen=True)
class Dataset:
    """One array: its spec, stored dtype (with byte order) and, if it lies there plainly, its place."""

    spec: Spec
    stored: str
    offset: int | None


@dataclass(frozen=True)
class Layout:
    """What an HDF5 file holds: arrays in the file's order; groups, with a name stored in `vars`."""

    file: Path
    legacy: bool
    groups: Mapping[str, str | None]
    datasets: Mapping[str, Dataset]

    def read(self, path: str) -> np.ndarray:
        """One array.

        Raises:
          ValueError, OSError: the data is not there.
        """
        dataset = self.datasets[path]
        dtype, shape = np_dtype(dataset.stored), dataset.spec.shape
        if dataset.offset is None:
            data = np.frombuffer(_child(self.file, path), np.uint8)
        else:
            length = size(shape) * dtype.itemsize
            data = np.fromfile(self.file, np.uint8, count=length, offset=dataset.offset)
        return data.view(dtype).reshape(shape)


def open_hdf5(file: Path) -> Layout:
    """The layout of an HDF5 file.

    Raises:
      ValueError: damaged, links out of the file, data that is not numbers or not all there.
    """
    told = json.loads(_child(file))
    length = file.stat().st_size
    datasets: dict[str, Dataset] = {}
    for entry in told["datasets"]:
        shape = tuple(int(dimension) for dimension in entry["shape"])
        stored = np_dtype(entry["dtype"])
        offset = entry["offset"]
        needed = size(shape) * stored.itemsize
        if offset is not None and needed and not 0 <= offset <= length - needed:
            raise ValueError(f"the data of {entry['path']!r} lie beyond the end of the file")
        datasets[entry["path"]] = Dataset(Spec(shape, stored.name), entry["dtype"], offset)
    return Layout(file, bool(told["legacy"]), told["groups"], datasets)


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
