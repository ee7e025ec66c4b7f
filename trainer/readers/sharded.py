"""Weights in several files beside an `index.json` as of Hugging Face: `{"weight_map": {name: file}}`.

The files lie in the index's own folder, whatever it says, and each is opened by its own reader.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import numpy as np

from trainer.readers.source import WeightsFile, damaged, refuse

_MOST = 1 << 28  # bytes of an index
_FILES = 10_000


def looks_like(place: Path, head: bytes) -> bool:
    """Whether a file can be an index of shards."""
    return place.name.endswith(".json") and head.lstrip()[:1] == b"{"


def open_sharded(place: Path, path: str, flag: str, open_one: Callable[[Path], WeightsFile]) -> WeightsFile:
    """Opens all shards of an index as one source.

    Args:
      place: the index.
      path: as the user gave it.
      flag: the flag that gave it.
      open_one: opens one shard.

    Raises:
      UserError: no index of weights, a shard that is not there or lies elsewhere, a weight that is not
        where the index says, or what the shards' reader refuses.
    """
    shards = _shards(place, path, flag)
    sources = {file: open_one(place.with_name(file)) for file in sorted(set(shards.values()))}
    everything: dict[str, WeightsFile] = {}
    ignored: list[str] = []
    for file, source in sources.items():
        if source.keras:
            raise refuse(flag, path, f"its shard {file} is a {source.kind}, which has no names of its own.")
        twice = next((name for name in source.specs if name in everything), None)
        if twice:
            raise refuse(flag, path, f"{twice!r} is in two shards.")
        everything |= dict.fromkeys(source.specs, source)
        ignored += source.ignored
    known = {*everything, *ignored}
    lost = [name for name in shards if name not in known]
    if lost:
        raise refuse(flag, path, f"{lost[0]!r} should be in {shards[lost[0]]} and is not there.")
    kinds = sorted({source.kind for source in sources.values()})

    def fetch(name: str) -> np.ndarray | AbstractContextManager[IO[bytes]]:
        return everything[name].fetch(name)

    specs = {name: source.specs[name] for name, source in everything.items()}
    kind = f"{len(sources)} shards, each a {' or '.join(kinds)}"
    torch = any(source.torch for source in sources.values())
    neutral = all(source.neutral for source in sources.values())
    return WeightsFile(kind, path, specs, tuple(ignored), flag, fetch, torch=torch, neutral=neutral)


def _shards(place: Path, path: str, flag: str) -> dict[str, str]:
    """`{weight: file}` of an index."""
    try:
        if place.stat().st_size > _MOST:
            raise ValueError(f"it has {place.stat().st_size} bytes")
        content = json.loads(place.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged(flag, path, error) from error
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise refuse(flag, path, "is a .json file, but no index of shards (no weight_map in it).")
    if len(set(map(str, shards.values()))) > _FILES:
        raise refuse(flag, path, f"names more than {_FILES} files.")
    for file in sorted(set(map(str, shards.values()))):
        # A name and nothing else: no folder, no way up or out of the index's own.
        if file in ("", ".", "..") or file != Path(file).name or "\\" in file or "\0" in file:
            raise refuse(flag, path, f"its shard {file!r} is not the name of a file beside it.")
        if not place.with_name(file).is_file() or file == place.name:
            raise refuse(flag, path, f"its shard {file} is not beside it. Copy all shards.")
    return {str(name): str(file) for name, file in shards.items()}
