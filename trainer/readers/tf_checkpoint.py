"""TensorFlow checkpoints: this program's own, TF2 object graphs, SavedModel `variables/`, TF1 names.

The bytes are read by TensorFlow's own reader, which checks each tensor's CRC. A SavedModel is never
loaded, only its `variables/`. The `checkpoint` state file of a directory is never trusted.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from trainer.checkpoints import manifest
from trainer.checkpoints.manifest import Entry
from trainer.errors import UserError, listing
from trainer.readers import object_graph, slots, tf_index
from trainer.readers.source import Edges, Spec, WeightsFile, damaged, is_state, refuse

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SHARD = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class Prefix:
    """A checkpoint found on disk: what kind, `NAME` of `NAME.index`, and the manifest of one of ours."""

    kind: str
    name: Path
    entry: Entry | None = None


def find(place: Path, path: str, flag: str) -> Prefix | None:
    """The TensorFlow checkpoint that a path means, or None when it means none.

    Raises:
      UserError: a directory of several checkpoints, or a checkpoint without its data.
    """
    if place.is_dir():
        return _in_directory(place, path, flag)
    name = place.name
    if name.endswith(".index"):
        name = name[: -len(".index")]
    elif match := _SHARD.fullmatch(name):
        name = match.group(1)
    prefix = place.with_name(name or place.name)
    if _index(prefix).is_file():
        if not list(prefix.parent.glob(_glob(prefix.name) + ".data-*")):
            raise refuse(flag, path, f"there is {_index(prefix).name} and no {prefix.name}.data-*.")
        return Prefix("TensorFlow checkpoint", prefix)
    if prefix != place:
        raise refuse(flag, path, f"is part of a checkpoint whose {_index(prefix).name} is missing.")
    if not place.exists() and list(place.parent.glob(_glob(name) + "-?????-of-?????")):
        raise refuse(
            flag,
            path,
            "is a TF1 checkpoint of format V1 (shards and no .index), which is not read. Load and save "
            "it once with tf.compat.v1.train.Saver(write_version=tf.compat.v1.train.SaverDef.V2).",
        )
    return None


def _in_directory(place: Path, path: str, flag: str) -> Prefix | None:
    if (place / manifest.NAME).is_file():
        return _vouched([_single(place)], path, flag)
    entries = manifest.scan(place) or manifest.scan(place / "checkpoints")
    if entries:
        return _vouched(entries, path, flag)
    if (place / "saved_model.pb").is_file() or (place / "saved_model.pbtxt").is_file():
        if not (place / "variables" / "variables.index").is_file():
            raise refuse(flag, path, "is a SavedModel without variables/variables.index.")
        return Prefix("SavedModel's variables", place / "variables" / "variables")
    found = sorted(index.name[: -len(".index")] for index in place.glob("*.index"))
    if len(found) > 1:
        raise refuse(flag, path, f"holds several checkpoints; name one of them: {listing(found)}.")
    return Prefix("TensorFlow checkpoint", place / found[0]) if found else None


def _is_numeric(dtype: tf.DType) -> bool:
    return bool(dtype.is_floating or dtype.is_integer or dtype.is_complex or dtype.is_bool)


def _single(place: Path) -> Entry:
    """The entry of one step's directory, under whatever name it lies."""
    match = manifest.STEP.fullmatch(place.name)
    if match:
        return manifest.read(place, int(match[1]), int(match[2] or 1))
    try:
        with (place / manifest.NAME).open("rb") as file:
            step = json.loads(file.read(manifest.MOST_BYTES)).get("step")
    except (ValueError, AttributeError, RecursionError):
        step = None
    return manifest.read(place, step if isinstance(step, int) else -1)


def _vouched(entries: Sequence[Entry], path: str, flag: str) -> Prefix:
    """The first checkpoint whose every byte is as it was saved."""
    reasons = []
    for entry in entries:
        entry = manifest.check(entry)
        if not entry.damage:
            kind = f"checkpoint of this program, step {entry.step}"
            return Prefix(kind, entry.path / "data", entry)
        reasons.append(f"{entry.path.name}: {entry.damage}")
        if entry.later:
            break
    raise refuse(flag, path, f"no checkpoint in it is whole ({listing(reasons)}). Use another one.")


def open_checkpoint(prefix: Prefix, path: str, weights: str, flag: str) -> WeightsFile:
    """Opens a checkpoint that `find` found.

    Raises:
      UserError: a damaged file, or `weights="ema"` where the checkpoint has no average.
    """
    try:
        tf_index.check(_index(prefix.name), _shards(prefix.name))
        # Not `tf.train.load_checkpoint`: where the name is a directory, that trusts a file in it.
        reader = tf.compat.v1.train.NewCheckpointReader(str(prefix.name))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        held = {
            key: Spec(tuple(shapes[key]), dtypes[key].name)
            for key in sorted(shapes)
            if _is_numeric(dtypes[key])
        }
        kind, keys, state, averages, graph = _named(prefix, reader, held)
    except UserError:
        raise
    except Exception as error:
        raise damaged(flag, path, error) from error
    if weights == "ema":
        if not averages:
            raise refuse(
                flag,
                path,
                f"--init_weights=ema: this {kind} keeps no average of the weights. Leave "
                "--init_weights out to take the weights themselves.",
            )
        keys = {name: averages.get(name, key) for name, key in keys.items()}

    def fetch(name: str) -> np.ndarray:
        return reader.get_tensor(keys[name])

    specs = {name: held[key] for name, key in keys.items()}
    return WeightsFile(kind, path, specs, tuple(state), flag, fetch, edges=graph)


Named = tuple[str, dict[str, str], list[str], dict[str, str], Edges | None]


def _named(prefix: Prefix, reader: Any, held: Mapping[str, Spec]) -> Named:
    """Kind, `{name: key}` of the weights, names of the state, `{name: key}` of averages, the graph."""
    if prefix.entry is not None:
        return (prefix.kind, *_own(prefix.entry, held), None)
    if not reader.has_tensor(_GRAPH):
        return ("TF1 name-based checkpoint", *_tf1(held), None)
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(_GRAPH))
    keys, state = object_graph.names(graph, held)
    kind = prefix.kind if prefix.kind.startswith("SavedModel") else "TF2 object-graph checkpoint"
    return kind, keys, state, {}, object_graph.edges(graph, keys)


def _own(entry: Entry, held: Mapping[str, Spec]) -> tuple[dict[str, str], list[str], dict[str, str]]:
    """The flat layout of this program: `model/NAME`, `ema/NAME`, and the rest is state."""
    keys: dict[str, str] = {}
    averages: dict[str, str] = {}
    state: list[str] = []
    for flat in entry.variables:
        key = manifest.key(flat)
        if key not in held:
            raise ValueError(f"the manifest names {flat!r}, which the data does not hold")
        kind, _, name = flat.partition("/")
        if kind == "model" and not is_state(name, held[key]):
            keys[name] = key
        elif kind == "ema":
            averages[name] = key
        else:
            state.append(flat)
    return keys, state, averages


def _tf1(held: Mapping[str, Spec]) -> tuple[dict[str, str], list[str], dict[str, str]]:
    """TF1's names as they are, but for `:0`; slots stand below the variable they belong to."""
    keys: dict[str, str] = {}
    averages: dict[str, str] = {}
    state: list[str] = []
    for key, spec in held.items():
        name = slots.bare(key)
        owner = slots.owner(key, held)
        if owner and slots.is_average(key):
            averages[slots.bare(owner)] = key
        if owner or slots.is_counter(key) or is_state(name, spec):
            state.append(name)
        elif name in keys:
            raise ValueError(f"it holds both {name!r} and '{name}:0'")
        else:
            keys[name] = key
    return keys, state, averages


def _shards(prefix: Path) -> dict[int, int]:
    """Bytes of each data file by its number."""
    files = prefix.parent.glob(_glob(prefix.name) + ".data-?????-of-?????")
    return {int(file.name[-14:-9]): file.stat().st_size for file in files if _SHARD.fullmatch(file.name)}


def _index(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def _glob(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)
