"""PyTorch's `.pt`, `.pth`, `.bin`: the zip that `torch.save(model.state_dict(), path)` writes, not unpickled.

The zip holds `NAME/data.pkl`, which says what lies where (`torch_pickle.py`), and each storage as raw bytes
in `NAME/data/KEY`. A dictionary within a dictionary gives names with a dot. Of a training checkpoint, what is
under `optimizer` and the like is state; a key that all weights are under (`state_dict`, `model`) is dropped.
"""

import re
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from trainer.errors import UserError
from trainer.readers import buffers, torch_pickle
from trainer.readers.source import Spec, WeightsFile, damaged, np_dtype, refuse, size, split_state
from trainer.readers.torch_names import Tensor

_PICKLE = re.compile(r"([^/]+/)?data\.pkl")
_STATE = re.compile(
    r"(optimizer|lr_scheduler|scheduler|scaler|grad_scaler|callbacks|loops|hyper_parameters).*"
)
_LEAVES, _DEEPEST = 1_000_000, 32
_LOCAL = 30  # bytes of a zip's local header before its two texts


def open_torch(place: Path, path: str, flag: str) -> WeightsFile:
    """Opens a PyTorch state dict, or a dictionary that holds one.

    Raises:
      UserError: other objects than dictionaries of tensors, compressed or overlapping storages, tensors
        beyond their storage, or a damaged archive.
    """
    try:
        with zipfile.ZipFile(place) as archive:
            members = {info.filename: info for info in archive.infolist()}
            (pickle,) = [name for name in members if _PICKLE.fullmatch(name)]
            front = pickle.removesuffix("data.pkl")
            order = archive.read(front + "byteorder") if front + "byteorder" in members else b"little"
            if order not in (b"little", b"big"):
                raise ValueError(f"its byte order is {order[:20]!r}")
            if members[pickle].compress_type != zipfile.ZIP_STORED:
                raise ValueError("its pickle is compressed, which PyTorch never does")
            contents = torch_pickle.load(archive.read(pickle))
        tensors = _named(contents)
        starts = _starts(
            place, members, {t.storage.key: f"{front}data/{t.storage.key}" for t in tensors.values()}
        )
        for name, tensor in tensors.items():
            _check(name, tensor, members[f"{front}data/{tensor.storage.key}"].file_size)
        names, ignored = _weights({name: Spec(t.shape, t.dtype) for name, t in tensors.items()})
    except UserError:
        raise
    except Exception as error:
        raise damaged(flag, path, error) from error
    if not tensors:
        raise refuse(flag, path, "is a PyTorch file and holds no tensors in a dictionary.")

    def fetch(name: str) -> np.ndarray | AbstractContextManager[IO[bytes]]:
        tensor = tensors[names[name]]
        member = f"{front}data/{tensor.storage.key}"
        return _fetch(place, member, starts[tensor.storage.key], tensor, order.decode())

    kept = {short: Spec(tensors[name].shape, tensors[name].dtype) for short, name in names.items()}
    return WeightsFile("PyTorch state dict", path, kept, ignored, flag, fetch, torch=True, neutral=True)


def _named(contents: Any) -> dict[str, Tensor]:
    """`{name: tensor}` of dictionaries, one within another."""
    found: dict[str, Tensor] = {}
    for name, tensor in _leaves(contents, "", 0, [0]):
        if name in found:
            raise ValueError(f"two tensors of it are called {name!r}")
        found[name] = tensor
    return found


def _leaves(node: Any, path: str, depth: int, seen: list[int]) -> Iterator[tuple[str, Tensor]]:
    seen[0] += 1
    if depth > _DEEPEST or seen[0] > _LEAVES:
        raise ValueError("its dictionaries are deeper or larger than those of any model")
    if isinstance(node, Tensor):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}\0{key}" if path else str(key), depth + 1, seen)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}\0{index}" if path else str(index), depth + 1, seen)


def _weights(specs: Mapping[str, Spec]) -> tuple[dict[str, str], tuple[str, ...]]:
    """`{name: name with its ways}` of the weights, and the names of what is none."""
    state = [name for name in specs if "\0" in name and _STATE.fullmatch(name.partition("\0")[0])]
    short = {name: name for name in specs if name not in set(state)}
    while (
        short
        and len({n.partition("\0")[0] for n in short.values()}) == 1
        and all("\0" in n for n in short.values())
    ):
        short = {name: n.partition("\0")[2] for name, n in short.items()}
    long = {n.replace("\0", "."): name for name, n in short.items()}
    if len(long) != len(short):
        raise ValueError("two tensors of it have one name")
    kept, ignored = split_state({n: specs[name] for n, name in long.items()})
    return {n: long[n] for n in kept}, (*ignored, *(name.replace("\0", ".") for name in state))


def _starts(place: Path, members: Mapping[str, zipfile.ZipInfo], keys: Mapping[str, str]) -> dict[str, int]:
    """Where the bytes of each storage begin in the file; no two of them overlap."""
    starts: dict[str, int] = {}
    ranges: list[tuple[int, int]] = []
    length = place.stat().st_size
    with place.open("rb") as file:
        for key, name in keys.items():
            if name not in members:
                raise ValueError(f"the storage {key!r} is not there")
            info = members[name]
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise ValueError(f"the storage {key!r} is compressed, which PyTorch never does")
            if info.flag_bits & 1:
                raise ValueError(f"the storage {key!r} is encrypted")
            file.seek(info.header_offset)
            head = file.read(_LOCAL)
            if len(head) < _LOCAL or head[:4] != b"PK\x03\x04":
                raise ValueError(f"the storage {key!r} does not begin where the archive says")
            texts = sum(struct.unpack("<HH", head[26:30]))
            starts[key] = info.header_offset + _LOCAL + texts
            ranges.append((info.header_offset, starts[key] + info.file_size))
            if ranges[-1][1] > length:
                raise ValueError(f"the storage {key!r} lies beyond the end of the file")
    ranges.sort()
    if any(after[0] < before[1] for before, after in pairwise(ranges)):
        raise ValueError("its storages overlap")
    return starts


def _check(name: str, tensor: Tensor, held: int) -> None:
    """Refuses a tensor that is more than its storage holds."""
    width = np_dtype(tensor.dtype).itemsize
    numbers = held // width
    count = size(tensor.shape)
    shown = name.replace("\0", ".")
    if count and (tensor.last >= numbers or count > numbers):
        raise ValueError(f"{shown!r} announces {list(tensor.shape)}, and its storage has {numbers} numbers")
    if tensor.storage.dtype is not None and tensor.storage.size * width != held:
        raise ValueError(f"a storage announces {tensor.storage.size} numbers and has {held} bytes")


def _fetch(
    place: Path, member: str, start: int, tensor: Tensor, order: str
) -> np.ndarray | AbstractContextManager[IO[bytes]]:
    """The tensor; through the archive, which checks the bytes, where it is the whole storage."""
    dtype, count = np_dtype(tensor.dtype), size(tensor.shape)
    if not count:
        return np.zeros(tensor.shape, dtype)
    with zipfile.ZipFile(place) as archive:
        held = archive.getinfo(member).file_size
    if held == count * dtype.itemsize:
        stored = buffers.member(place, member)
        if tensor.contiguous and order == sys.byteorder:
            return stored
        with stored as file:
            flat = buffers.fill(file, held).view(dtype)
    else:
        last = tensor.last + 1 - tensor.offset
        begin = start + tensor.offset * dtype.itemsize
        flat = np.memmap(place, np.uint8, "r", begin, (last * dtype.itemsize,)).view(dtype)
    strides = tuple(step * dtype.itemsize for step in tensor.stride)
    array = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
    array = np.ascontiguousarray(array).reshape(tensor.shape)  # which makes [1] of []
    return array if order == sys.byteorder else array.byteswap()
