"""Looks into HDF5 files in a process of its own; run as a script, never imported.

The HDF5 library hangs or crashes on some damaged files, so it must not run in the trainer's process.
Each line of its input is a question in JSON, `[FILE]` for the layout or `[FILE, PATH]` for the bytes of one
dataset. An answer is one byte (0, or 1 where it is the reason for a refusal), its length in 8, and itself.
"""

import json
import math
import resource
import struct
import sys
from collections.abc import Iterator
from typing import Any

import h5py

_MOST, _DEEPEST = 100_000, 64
# Filters that come with HDF5 (deflate, shuffle, fletcher32) and how far each can pack; others are
# plug-ins, which would be loaded as code.
_FILTERS = {1: 1032, 2: 1, 3: 1}
_RATIO, _FREE = 50, 1 << 28  # honest weights do not pack 1 : 50


def walk(h5: h5py.File) -> Iterator[tuple[str, Any]]:
    """(path, group or dataset) of the file itself: hard links only, each group once."""
    stack: list[tuple[str, h5py.Group]] = [("", h5)]
    seen: set[int] = set()
    count = 0
    while stack:
        path, group = stack.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        yield path, group
        for name in group:
            count += 1
            below = f"{path}/{name}" if path else name
            if count > _MOST or below.count("/") > _DEEPEST:
                raise ValueError("more groups than any model has")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{below!r} is a link, possibly out of the file")
            item = group[name]
            if isinstance(item, h5py.Group):
                stack.append((below, item))
            elif isinstance(item, h5py.Dataset):
                yield below, item


def describe(dataset: h5py.Dataset, path: str) -> dict[str, Any]:
    """Shape, dtype and place of a dataset, with the promise that the file holds its bytes."""
    plist = dataset.id.get_create_plist()
    if plist.get_external_count() or dataset.is_virtual:
        raise ValueError(f"{path!r} keeps its data in another file")
    dtype = dataset.dtype
    bfloat16 = dtype.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16"
    if dtype.kind not in "biufc" and not bfloat16:
        raise ValueError(f"{path!r} holds {dtype}, not numbers")
    packing = 1
    for index in range(plist.get_nfilters()):
        code = plist.get_filter(index)[0]
        if code not in _FILTERS:
            raise ValueError(f"{path!r} is compressed with a plug-in (filter {code})")
        packing *= _FILTERS[code]
    size = math.prod(dataset.shape) * dtype.itemsize
    held = dataset.id.get_storage_size()
    if size > packing * held or (size > _FREE and size > _RATIO * held):
        raise ValueError(f"{path!r} announces {dataset.shape} and its data are not all there")
    plain = dataset.chunks is None and not plist.get_nfilters()
    return {
        "path": path,
        "shape": dataset.shape,
        "dtype": "bfloat16" if bfloat16 else dtype.str,
        "bytes": size,
        # Where the bytes lie as they are, so that nobody needs HDF5 to read them.
        "offset": dataset.id.get_offset() if plain else None,
        "address": h5py.h5o.get_info(dataset.id).addr,
    }


def texts(group: h5py.Group, name: str) -> list[str]:
    """A list of texts among a group's attributes, which Keras cuts in pieces where it is long."""
    found: list[str] = []
    pieces = [name] if name in group.attrs else []
    while not pieces or pieces[-1] != name:
        piece = f"{name}{len(pieces)}"
        if piece not in group.attrs:
            break
        pieces.append(piece)
    for piece in pieces:
        for text in group.attrs[piece]:
            found.append(text.decode() if isinstance(text, bytes) else str(text))
            if len(found) > _MOST:
                raise ValueError("more names than any model has")
    return found


def legacy_order(h5: h5py.File) -> list[tuple[str, list[str]]]:
    """(layer, paths of its weights) of a legacy file, as Keras goes through it."""
    inside = "layer_names" not in h5.attrs and isinstance(h5.get("model_weights"), h5py.Group)
    root, prefix = (h5["model_weights"], "model_weights/") if inside else (h5, "")
    order = []
    for layer in [*texts(root, "layer_names"), "top_level_model_weights"]:
        if layer in root and isinstance(root[layer], h5py.Group):
            paths = [f"{prefix}{layer}/{weight}" for weight in texts(root[layer], "weight_names")]
            order.append((layer, paths))
    return order


def layout(h5: h5py.File) -> dict[str, Any]:
    """All datasets in the order of the file, all groups with the name that Keras 3 keeps there."""
    datasets, groups = [], {}
    for path, item in walk(h5):
        if isinstance(item, h5py.Dataset):
            datasets.append(describe(item, path))
        else:
            name = item.attrs.get("name") if path.split("/")[-1] == "vars" else None
            groups[path] = name if isinstance(name, str) else None
    datasets.sort(key=lambda d: d["address"])
    legacy = "model_weights" in h5 or "layer_names" in h5.attrs or "layer_names0" in h5.attrs
    order = legacy_order(h5) if legacy else []
    return {"legacy": legacy, "groups": groups, "datasets": datasets, "order": order}


def answer(file: str, path: str | None = None) -> bytes:
    """The layout of a file as JSON, or the bytes of one of its datasets."""
    with h5py.File(file, "r") as h5:
        if path is None:
            return json.dumps(layout(h5)).encode()
        describe(h5[path], path)
        return bytes(h5[path][()].tobytes())


def main() -> None:
    """Answers until there are no more questions."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        try:
            status, said = 0, answer(*json.loads(line))
        except Exception as error:
            status, said = 1, " ".join(str(error).split())[:300].encode(errors="replace")
        sys.stdout.buffer.write(struct.pack("<BQ", status, len(said)))
        sys.stdout.buffer.write(said)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
