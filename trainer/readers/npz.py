"""NumPy's `.npz`: `numpy.lib.format` reads each array, with pickles refused. Names as stored."""

import zipfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from trainer.readers import buffers
from trainer.readers.source import Spec, WeightsFile, damaged, looks_like_torch, refuse, split_state

# Deflate cannot pack tighter than about 1 : 1032; honest weights are far from 1 : 50.
_RATIO, _FREE = 50, 1 << 28


@dataclass(frozen=True)
class _Member:
    """An array of the archive: its member, spec, stored dtype, whether in Fortran's order, its first byte."""

    name: str
    spec: Spec
    dtype: np.dtype
    turned: bool
    start: int


def open_npz(place: Path, path: str, flag: str) -> WeightsFile:
    """Opens an `.npz` file.

    Raises:
      UserError: an object array, an array larger than its bytes, or a damaged archive.
    """
    with zipfile.ZipFile(place) as archive:
        members = [_member(archive, info, path, flag) for info in archive.infolist()]
    found = {member.name.removesuffix(".npy"): member for member in members}
    specs, ignored = split_state({name: member.spec for name, member in found.items()})

    def fetch(name: str) -> np.ndarray | AbstractContextManager[IO[bytes]]:
        member = found[name]
        stored = buffers.member(place, member.name, member.start)
        if not member.turned and member.dtype.isnative:
            return stored
        with stored as file:
            data = buffers.fill(file, member.spec.bytes).view(member.dtype)
        shape = member.spec.shape
        return data.reshape(shape[::-1]).T if member.turned else data.reshape(shape)

    return WeightsFile(
        "NumPy .npz", path, specs, ignored, flag, fetch, torch=looks_like_torch(found), neutral=True
    )


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str, flag: str) -> _Member:
    """One array, its header read."""
    check_member(info, path, flag)
    try:
        with archive.open(info) as file:
            spec, dtype, turned, start = _header(file)
    except Exception as error:
        raise damaged(flag, path, error, f"the array {info.filename!r}") from error
    if np.dtype(spec.dtype).kind not in "biufc":
        raise refuse(
            flag,
            path,
            f"{info.filename!r} holds objects, text or raw bytes ({spec.dtype}), not numbers. "
            "Save plain arrays; NumPy does not store bfloat16, so cast it first.",
        )
    if start + spec.bytes != info.file_size:
        raise refuse(
            flag,
            path,
            f"{info.filename!r} announces {spec.bytes} bytes and holds "
            f"{info.file_size - start}: the file is damaged.",
        )
    return _Member(info.filename, spec, dtype, turned, start)


def check_member(member: zipfile.ZipInfo, path: str, flag: str) -> None:
    """Refuses an archive member that unpacks to far more than the file can honestly hold."""
    if member.flag_bits & 1:
        raise refuse(flag, path, f"{member.filename!r} is encrypted.")
    if member.file_size > _FREE and member.file_size > _RATIO * member.compress_size:
        raise refuse(
            flag,
            path,
            f"{member.filename!r} would unpack {member.compress_size} bytes to {member.file_size}; "
            "no file of weights does.",
        )


def _header(file: IO[bytes]) -> tuple[Spec, np.dtype, bool, int]:
    """Spec, stored dtype, whether in Fortran's order, and the number of bytes before the data of a `.npy`."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, turned, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, turned, dtype = np.lib.format.read_array_header_2_0(file)
    if any(dimension < 0 for dimension in shape):
        raise ValueError(f"negative shape {shape}")
    return Spec(tuple(shape), dtype.name), dtype, turned, file.tell()
