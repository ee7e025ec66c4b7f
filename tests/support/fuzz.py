"""Damage of every kind to a file of weights: a `UserError`, or arrays as announced, and nothing else."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainer.errors import UserError
from trainer.readers import hdf5, open_source


class Kept(hdf5.Child):
    """One process of the HDF5 library for many files; a new one only where it broke or came to no end."""

    def close(self) -> None:
        """Stays for the next file."""


def fuzz(
    files: Mapping[str, bytes], main: str, folder: Path, times: int, seconds: float = 15, seed: int = 7
) -> int:
    """Opens and reads `main` after damage to one of the files, `times` over; how often it was refused.

    Args:
      files: `{name: bytes}` of a source that is whole.
      main: which of them is opened; "" for the folder.
      folder: where they are written; nothing else may appear beside them.
      times: how often at most.
      seconds: no more trials after so long.
      seed: of the damage.
    """
    rng = np.random.default_rng(seed)
    ends = time.monotonic() + seconds
    refused = 0
    for trial in range(times):
        at = folder / str(trial)
        at.mkdir()
        victim = sorted(files)[rng.integers(len(files))]
        for name, content in files.items():
            (at / name).write_bytes(spoilt(content, rng) if name == victim else content)
        try:
            source = open_source(str(at / main))
            for weight, spec in source.specs.items():
                assert source.read(weight).shape == spec.shape
        except UserError:
            refused += 1
        assert {file.name for file in at.iterdir()} == set(files), "a stray file"
        shutil.rmtree(at)
        if time.monotonic() > ends:
            break
    assert refused
    return refused


def spoilt(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, flipped bits, or an overwritten run, often in the first 4 KiB."""
    data = bytearray(content)
    kind = rng.integers(4)
    place = int(rng.integers(len(data) if kind != 3 else min(len(data), 4096)))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for bit in rng.integers(8 * len(data), size=rng.integers(1, 8)):
            data[bit // 8] ^= 1 << int(bit % 8)
    else:
        length = int(rng.integers(1, 16))
        data[place : place + length] = rng.bytes(len(data[place : place + length]))
    return bytes(data)
