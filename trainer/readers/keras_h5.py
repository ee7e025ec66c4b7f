"""Keras's HDF5 files: `.weights.h5`, the one inside `.keras`, and legacy `.h5`.

Names:
- legacy `.h5`: the layer's group, then the variable's stored name without what repeats the layer:
  `conv/conv/kernel:0` is `conv/kernel`, `inner/stem/kernel:0` is `inner/stem/kernel`;
- `.weights.h5`: folders are attributes (`att/query_dense`), except in lists of layers (`layers`), where a
  layer has its own name: from the `.keras` configuration, the name stored with it (Keras 3), or else
  its folder (`conv2d_1`). Its variables are named as `keras_names.py` says.
Where two variables would get one name, both keep their path in the file.
"""

import json
import shutil
import tempfile
import zipfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from trainer.errors import UserError
from trainer.readers import keras_names
from trainer.readers.hdf5 import Layout, open_hdf5
from trainer.readers.keras_names import KerasLayer
from trainer.readers.npz import check_member
from trainer.readers.source import KerasFile, Spec, WeightsFile, damaged, is_state, refuse, unique

WEIGHTS = "model.weights.h5"
_LISTS = ("layers", "_layer_checkpoint_dependencies")
_CONFIG = 1 << 26


def open_keras(place: Path, path: str, flag: str) -> WeightsFile:
    """Opens a `.keras` archive: its weights, and its configuration for the names of the layers.

    Raises:
      UserError: a damaged or hostile archive.
    """
    try:
        with zipfile.ZipFile(place) as archive:
            info = archive.getinfo(WEIGHTS)
            check_member(info, path, flag)
            # In a place and under a name that the archive has no say in; gone with the source.
            file = tempfile.NamedTemporaryFile(suffix=".h5")  # noqa: SIM115
            with archive.open(info) as packed:
                shutil.copyfileobj(packed, file)
            file.flush()
            layers: dict[str, KerasLayer] = {}
            if "config.json" in archive.namelist():
                config = archive.getinfo("config.json")
                if config.file_size > _CONFIG:
                    raise refuse(flag, path, f"its config.json has {config.file_size} bytes.")
                layers = keras_names.layers(json.loads(archive.read(config)))
    except UserError:
        raise
    except Exception as error:
        raise damaged(flag, path, error) from error
    source = open_h5(Path(file.name), path, flag, layers)

    def fetch(name: str, _keep: object = file) -> np.ndarray | AbstractContextManager[IO[bytes]]:
        return source.fetch(name)

    return replace(source, kind="Keras .keras file", fetch=fetch)


def open_h5(file: Path, path: str, flag: str, layers: dict[str, KerasLayer] | None = None) -> WeightsFile:
    """Opens an HDF5 file of Keras weights.

    Args:
      file: where it lies.
      path: as the user gave it.
      flag: the flag that gave it.
      layers: what a configuration says of the layers, by folder.

    Raises:
      UserError: not Keras's layout, links out of the file, data that is not numbers or not all there.
    """
    try:
        h5 = open_hdf5(file)
        if not h5.legacy and not any("vars" in raw.split("/") for raw in h5.datasets):
            raise refuse(flag, path, "is an HDF5 file, but holds no Keras weights.")
        pairs = _legacy(h5) if h5.legacy else _numbered(h5, layers or {})
    except UserError:
        raise
    except Exception as error:
        raise damaged(flag, path, error) from error
    specs = {raw: dataset.spec for raw, dataset in h5.datasets.items()}
    # Told by the path in the file: a layer may well be named `metrics`.
    state = tuple(raw for raw in specs if _is_state(raw, specs[raw], h5.legacy))
    names = unique((name, raw) for name, raw in pairs if raw not in set(state))

    def fetch(name: str) -> np.ndarray | AbstractContextManager[IO[bytes]]:
        return h5.fetch(names[name])

    kept = {name: specs[raw] for name, raw in names.items()}
    kind = "legacy Keras .h5" if h5.legacy else "Keras .weights.h5"
    laid = KerasFile(names, specs, frozenset(h5.groups), h5.layers, h5.legacy or bool(layers))
    return WeightsFile(kind, path, kept, state, flag, fetch, laid)


def _is_state(raw: str, spec: Spec, legacy: bool) -> bool:
    if legacy:
        return raw.startswith("optimizer_weights/") or is_state(raw.rpartition("/")[2], spec)
    head = raw.partition("/")[0]
    return head in ("optimizer", "_optimizer") or is_state(raw, spec)


def _legacy(h5: Layout) -> list[tuple[str, str]]:
    """(name, path) in a legacy file, in the order that it states."""
    pairs = []
    stated = [raw for _, paths in h5.layers for raw in paths if raw in h5.datasets]
    for raw in dict.fromkeys([*stated, *h5.datasets]):
        parts = raw.removeprefix("model_weights/").split("/")
        parts[-1] = parts[-1].removesuffix(":0")
        layer, rest = parts[0], parts[1:]
        if layer == "top_level_model_weights":
            parts = rest
        elif layer in rest[:-1]:
            parts = [layer, *rest[rest.index(layer) + 1 :]]
        elif len(rest) == 2 and rest[0].removeprefix(layer + "_").isdigit():
            # TF1's Keras: the second `dense` of a session stores `dense_1/kernel`.
            parts = [layer, rest[1]]
        pairs.append(("/".join(parts), raw))
    return pairs


def _numbered(h5: Layout, layers: dict[str, KerasLayer]) -> list[tuple[str, str]]:
    """(name, path) in a file that numbers its variables."""
    folders: dict[str, list[str]] = {}
    for raw in h5.datasets:
        folder, _, last = raw.rpartition("/")
        if folder == "vars" or folder.endswith("/vars"):
            folders.setdefault(folder.removesuffix("vars").rstrip("/"), []).append(last)
    pairs: list[tuple[str, str]] = []
    for folder, stored in folders.items():
        base = f"{folder}/vars/" if folder else "vars/"
        numbered = sorted((key for key in stored if key.isdecimal()), key=int)
        layer = layers.get(folder)
        hints = [layer.kind] if layer else []
        hints += [folder.rpartition("/")[2], _stored_name(h5, folder) or ""]
        shapes = [h5.datasets[base + key].spec.shape for key in numbered]
        names = keras_names.variables(shapes, hints, layer.options if layer else {})
        called = {key: key for key in stored} | dict(zip(numbered, names, strict=True))
        path = _layer_path(folder, h5, layers)
        ordered = numbered + [key for key in stored if key not in set(numbered)]
        pairs += [("/".join([*path, called[key]]), base + key) for key in ordered]
    return pairs


def _layer_path(folder: str, h5: Layout, layers: dict[str, KerasLayer]) -> list[str]:
    """The path of a layer as its model knows it."""
    path: list[str] = []
    listed = False
    parts = folder.split("/") if folder else []
    for index, part in enumerate(parts):
        here = "/".join(parts[: index + 1])
        if part in _LISTS:
            listed = True
            continue
        name = part.lstrip("_") or part
        if listed:
            name = layers[here].name if here in layers else _stored_name(h5, here) or part
        path.append(name)
        # A folder without variables of its own is a list or dict of layers.
        listed = f"{here}/vars" not in h5.groups
    return path


def _stored_name(h5: Layout, folder: str) -> str | None:
    """The layer's own name, which Keras 3 keeps beside its variables."""
    name = h5.groups.get(f"{folder}/vars" if folder else "vars")
    return name if keras_names.is_name(name) else None
