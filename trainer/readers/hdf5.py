"""The layout and the arrays of an HDF5 file, with the HDF5 library kept in a child process.

Keras writes plain contiguous data, which is read straight from the file at the place the library names;
packed data comes through the child, one dataset at a time.
"""

import json
import select
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from trainer.readers import buffers
from trainer.readers.source import Spec, np_dtype, size

_CHILD = Path(__file__).with_name("hdf5_child.py")
_SECONDS = 60
_PIECE = 1 << 20


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
      child: where the library is.
    """

    file: Path
    legacy: bool
    groups: Mapping[str, str | None]
    datasets: Mapping[str, Dataset]
    layers: tuple[tuple[str, tuple[str, ...]], ...]
    child: "Child"

    def fetch(self, path: str) -> np.ndarray | AbstractContextManager[IO[bytes]]:
        """One array, or its bytes where they lie in the file as they are.

        Raises:
          ValueError, OSError: the data is not there.
        """
        dataset = self.datasets[path]
        dtype, shape = np_dtype(dataset.stored), dataset.spec.shape
        if dataset.offset is not None and dtype.isnative:
            return buffers.opened(self.file, dataset.offset)
        if dataset.offset is None:
            data = np.frombuffer(self.child.ask(str(self.file.absolute()), dataset.path), np.uint8)
        else:
            with buffers.opened(self.file, dataset.offset) as file:
                data = buffers.fill(file, size(shape) * dtype.itemsize)
        return data.view(dtype).reshape(shape)


def open_hdf5(file: Path) -> Layout:
    """The layout of an HDF5 file.

    Raises:
      ValueError: damaged, links out of the file, data that is not numbers or not all there.
    """
    child = Child()
    description = json.loads(child.ask(str(file.absolute())))
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
    if all(dataset.offset is not None for dataset in datasets.values()):
        child.close()  # it will not be asked again
    return Layout(file, legacy, groups, datasets, layers, child)


def _slashes(path: str, legacy: bool) -> str:
    r"""Keras 2.12-2.14 on Windows made folders of the name `layers\dense` where it meant `layers/dense`."""
    return path if legacy else path.replace("\\", "/")


class Child:
    """The HDF5 library in a process of its own, which may crash or hang without harm.

    It starts with the first question, and once more after it broke.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *question: str) -> bytes:
        """The answer of `hdf5_child.py`.

        Raises:
          ValueError: the library refuses the file, breaks on it, or comes to no end.
        """
        if self._process is None:
            command = [sys.executable, "-I", str(_CHILD)]
            pipe, devnull = subprocess.PIPE, subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=devnull, bufsize=0)
            weakref.finalize(self, _end, self._process)
        ends = time.monotonic() + _SECONDS
        try:
            assert self._process.stdin
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            refused, length = struct.unpack("<BQ", self._take(9, ends))
            said = self._take(length, ends)
        except TimeoutError:
            self._stop()
            raise ValueError(f"the HDF5 library did not come to an end in {_SECONDS} s") from None
        except (EOFError, BrokenPipeError):
            raise ValueError(f"the HDF5 library broke on it, exit {self._stop(1)}") from None
        if refused:
            raise ValueError(said.decode(errors="replace"))
        return said

    def _take(self, count: int, ends: float) -> bytes:
        """So many bytes of the answer."""
        assert self._process and self._process.stdout
        out, got = self._process.stdout, bytearray()
        while len(got) < count:
            if not select.select([out], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise TimeoutError
            piece = out.read(min(count - len(got), _PIECE))
            if not piece:
                raise EOFError
            got += piece
        return bytes(got)

    def close(self) -> None:
        """Ends the process."""
        self._stop()

    def _stop(self, patience: float = 0) -> int:
        """Ends the process, after so many seconds if it does not end by itself; its exit status."""
        process, self._process = self._process, None
        return _end(process, patience) if process else 0


def _end(process: subprocess.Popen[bytes], patience: float = 0) -> int:
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
    with process:  # closes its pipes, and waits
        return process.wait()
