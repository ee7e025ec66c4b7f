"""Any file of weights as `{name: array}`: arrays only, no code from the file is ever run.

The format is recognised by what the file holds. Each format is a file of this package:

| format | names |
|---|---|
| checkpoints of this program (run directory, `checkpoints`, or one step) | the model's own |
| TF2 object graph, SavedModel `variables/` | attributes from the root, see `object_graph.py` |
| TF1 name-based, V2 format | as stored, see `tf_checkpoint.py` |
| Keras `.weights.h5`, `.keras`, legacy `.h5` | layer and variable names, see `keras_h5.py` |
| `.safetensors`, `.npz` | as stored |
| PyTorch `.pt`, `.pth`, `.bin` (zip) | as stored, see `torch_file.py` |
| an `index.json` of shards of these | as stored, see `sharded.py` |

Imports checkpoints.
"""

import zipfile
from pathlib import Path

from trainer.errors import UserError, near
from trainer.readers import keras_h5, npz, safetensors_file, sharded, tf_checkpoint, tf_index, torch_file
from trainer.readers.source import Spec, WeightsFile, damaged, refuse

__all__ = ["Spec", "WeightsFile", "open_source"]

_HDF5 = b"\x89HDF\r\n\x1a\n"


def open_source(path: str, weights: str = "raw", flag: str = "--init_from") -> WeightsFile:
    """Opens a file or directory of weights; arrays are read when asked for.

    Args:
      path: a file, a directory, or the prefix of a TensorFlow checkpoint.
      weights: `raw`, or `ema` for the averaged weights where the source keeps both.
      flag: the flag that gave the path, for messages.

    Raises:
      UserError: nothing there, a format that is not read, a damaged or hostile file, no weights in
        it, or `ema` asked of a source that keeps no average.
    """
    try:
        source = _open(Path(path).expanduser(), path, weights, flag)
    except UserError:
        raise
    except Exception as error:  # zipfile, h5py and TensorFlow raise what they like on damaged bytes
        raise damaged(flag, path, error) from error
    if not source.specs:
        raise refuse(flag, path, f"is a {source.kind} and holds no weights of a model.")
    return source


def _open(place: Path, path: str, weights: str, flag: str) -> WeightsFile:
    prefix = tf_checkpoint.find(place, path, flag)
    if prefix is not None:
        return tf_checkpoint.open_checkpoint(prefix, path, weights, flag)
    if not place.is_file():
        raise refuse(flag, path, _missing(place))
    if weights == "ema":
        raise refuse(
            flag,
            path,
            "--init_weights=ema: only checkpoints of this program and TF1 checkpoints keep an average "
            "beside the weights. Leave --init_weights out.",
        )
    with place.open("rb") as file:
        head = file.read(16)
        file.seek(max(0, place.stat().st_size - 8))
        tail = file.read(8)
    if head.startswith(_HDF5):
        return keras_h5.open_h5(place, path, flag)
    if head.startswith(b"PK"):
        return _open_zip(place, path, flag)
    if safetensors_file.looks_like(head):
        return safetensors_file.open_safetensors(place, path, flag)
    if sharded.looks_like(place, head):
        return sharded.open_sharded(place, path, flag, lambda shard: _open(shard, str(shard), weights, flag))
    raise refuse(flag, path, _why_not(place, head, tail))


def _open_zip(place: Path, path: str, flag: str) -> WeightsFile:
    with zipfile.ZipFile(place) as archive:
        names = archive.namelist()
    if keras_h5.WEIGHTS in names:
        return keras_h5.open_keras(place, path, flag)
    if names and all(name.endswith(".npy") for name in names):
        return npz.open_npz(place, path, flag)
    if any(name.endswith(".pkl") for name in names):
        return torch_file.open_torch(place, path, flag)
    raise refuse(
        flag,
        path,
        "is a zip archive, but neither a .keras file (no model.weights.h5 in it) nor an .npz file nor one of "
        "PyTorch's (no data.pkl in it).",
    )


_PICKLE = (
    "is a bare pickle (as PyTorch before 1.6 wrote them), and reading one runs whatever code it holds. "
    "Load it once where it comes from and save it with torch.save(model.state_dict(), path) of a later "
    "PyTorch, or as .safetensors."
)


def _why_not(place: Path, head: bytes, tail: bytes) -> str:
    if tail == tf_index.MAGIC:
        return (
            "is a TF1 checkpoint of format V1 (one file, no .index), which is not read. Load and save "
            "it once with tf.compat.v1.train.Saver(write_version=tf.compat.v1.train.SaverDef.V2)."
        )
    if place.name in ("saved_model.pb", "keras_metadata.pb", "fingerprint.pb"):
        return f"is one file of a SavedModel. Give its directory: {place.parent}."
    if place.name in ("checkpoint", "manifest.json"):
        return f"tells about checkpoints and holds none. Give the directory: {place.parent}."
    if head.startswith(b"\x93NUMPY"):
        return "is a single .npy array without a name. Save it with numpy.savez(file, NAME=array)."
    if head[:1] == b"\x80" and len(head) > 1 and head[1] in range(2, 6):
        return _PICKLE
    return (
        "is not a file of weights that is known here, or its beginning is damaged. Known are: "
        "checkpoints of this program and of TensorFlow, SavedModel directories, Keras .weights.h5, "
        ".keras and .h5, .safetensors, .npz, PyTorch's .pt, .pth and .bin, and the index.json of shards."
    )


def _missing(place: Path) -> str:
    if place.is_dir():
        return (
            "is a directory without a whole checkpoint of this program (checkpoints/step-*/manifest.json), "
            "a TensorFlow checkpoint (*.index) or a SavedModel."
        )
    if place.exists():
        return "is a pipe, a socket or a device. Give a file."
    if place.parent.is_dir():
        names = [entry.name for entry in list(place.parent.iterdir())[:10000]]
        return f"there is no such file. {near(place.name, names)}"
    return f"there is no such file; {place.parent} is no directory either."
