"""A look at a TensorFlow checkpoint's index before TensorFlow itself sees it.

TensorFlow's reader ends the whole process on an index that is well-formed and absurd (a negative
dimension, a slice beyond its tensor). The index is an immutable sorted table in one small file: blocks of
prefix-compressed keys with protocol buffers as values, each followed by a byte for the compression (none, in
checkpoints) and a CRC that TensorFlow checks.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import tensor_bundle_pb2

MAGIC = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_FOOTER, _TRAILER = 48, 5
_MOST = 1 << 30  # bytes of an index
_RANK = 254


def check(index: Path, shards: Mapping[int, int]) -> None:
    """Refuses an index that TensorFlow could not survive, or that promises data that is not there.

    Args:
      index: the `.index` file.
      shards: bytes of each data file.

    Raises:
      ValueError: says what is wrong.
    """
    if index.stat().st_size > _MOST:
        raise ValueError(f"its index has {index.stat().st_size} bytes")
    table = index.read_bytes()
    if len(table) < _FOOTER or table[-8:] != MAGIC:
        raise ValueError("its index does not end as an index does")
    footer = table[-_FOOTER:]
    _, at = _handle(footer, 0)
    blocks, _ = _handle(footer, at)
    for _, place in _entries(table, blocks):
        handle, _ = _handle(place, 0)
        for key, value in _entries(table, handle):
            if key:
                _check_entry(key, value, shards)
            else:
                header = tensor_bundle_pb2.BundleHeaderProto.FromString(value)
                if header.num_shards != len(shards):
                    raise ValueError(f"it has {len(shards)} data files and should have {header.num_shards}")


def _check_entry(key: bytes, value: bytes, shards: Mapping[int, int]) -> None:
    entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
    dtype = tf.as_dtype(entry.dtype)  # TypeError for no dtype at all
    shape = [dimension.size for dimension in entry.shape.dim]
    wrong = f"its index is wrong about {key.decode(errors='replace')!r}"
    if entry.shape.unknown_rank or len(shape) > _RANK or any(size < 0 for size in shape):
        raise ValueError(f"{wrong}: shape {shape}")
    elements = 1
    for size in shape:
        elements *= size
    held = sum(shards.values())
    if elements * max(dtype.size or 1, 1) > held:
        raise ValueError(f"{wrong}: {elements} values, and the data files have {held} bytes")
    for part in entry.slices:
        inside = len(part.extent) == len(shape) and all(
            _inside(extent, size) for extent, size in zip(part.extent, shape, strict=False)
        )
        if not inside:
            raise ValueError(f"{wrong}: a slice of it lies outside")
    if entry.slices:
        return
    room = shards.get(entry.shard_id, -1)
    if not (0 <= entry.offset <= room and 0 <= entry.size <= room - entry.offset):
        raise ValueError(f"{wrong}: its data lie beyond the end of the file")
    if dtype.is_numpy_compatible and dtype != tf.string and entry.size != elements * dtype.size:
        raise ValueError(f"{wrong}: {entry.size} bytes for {elements} values")


def _inside(extent: Any, size: int) -> bool:
    # No length means the whole dimension.
    whole = not extent.HasField("length")
    return extent.start == 0 if whole else 0 <= extent.start <= extent.start + extent.length <= size


def _entries(table: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of the block at (offset, size)."""
    start, size = handle
    if start < 0 or size < 4 or start + size + _TRAILER > len(table):
        raise ValueError("its index is cut short")
    if table[start + size]:
        raise ValueError("its index is compressed, which a checkpoint's never is")
    block = table[start : start + size]
    restarts = struct.unpack_from("<I", block, size - 4)[0]
    end = size - 4 - 4 * restarts
    if end < 0:
        raise ValueError("its index is damaged")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + fresh + length > end:
            raise ValueError("its index is damaged")
        key = key[:shared] + block[at : at + fresh]
        yield key, block[at + fresh : at + fresh + length]
        at += fresh + length


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("its index is damaged")
