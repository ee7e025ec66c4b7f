"""NumPy's `.npz`: `numpy.lib.format` reads each array, with pickles refused. Names as stored."""

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from trainer.readers import buffers
from trainer.readers.source import Spec, WeightsFile, damaged, looks_like_torch, refuse, split_state

# Deflate cannot pack tighter than about 1 : 1032; honest weights are far from 1 : 50.
_RATIO, _FREE = 50, 1 << 28


def open_npz(place: Path, path: str, flag: str) -> WeightsFile:
    """Opens an `.npz` file.

    Raises:
      UserError: an object array, an array larger than its bytes, or a damaged archive.
    """
    found: dict[str, tuple[str, Spec]] = {}
    with zipfile.ZipFile(place) as archive:
        for member in archive.infolist():
            check_member(member, path, flag)
            try:
                with archive.open(member) as file:
                    spec, _, _, start = _header(file)
            except Exception as error:
                raise damaged(flag, path, error, f"the array {member.filename!r}") from error
            if np.dtype(spec.dtype).kind not in "biufc":
                raise refuse(
                    flag,
                    path,
                    f"{member.filename!r} holds objects, text or raw bytes ({spec.dtype}), not numbers. "
                    "Save plain arrays; NumPy does not store bfloat16, so cast it first.",
                )
            if start + spec.bytes != member.file_size:
                raise refuse(
                    flag,
                    path,
                    f"{member.filename!r} announces {spec.bytes} bytes and holds "
                    f"{member.file_size - start}: the file is damaged.",
                )
            found[member.filename.removesuffix(".npy")] = (member.filename, spec)
    specs, ignored = split_state({name: spec for name, (_, spec) in found.items()})

    def fetch(name: str) -> np.ndarray:
        with zipfile.ZipFile(place) as archive, archive.open(found[name][0]) as file:
            spec, dtype, turned, _ = _header(file)
            data = buffers.fill(file, spec.bytes).view(dtype)
            if file.read(1):  # to the end, where the checksum is compared
                raise ValueError("it has more data than it announces")
        return data.reshape(spec.shape[::-1]).T if turned else data.reshape(spec.shape)

    return WeightsFile(
        "NumPy .npz", path, specs, ignored, flag, fetch, torch=looks_like_torch(found), neutral=True
    )


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
