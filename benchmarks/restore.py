"""Memory and seconds of a restore: a large file of each kind, and a model of 500 variables.

`python -m benchmarks.restore [--gib 2] [--only npz,torch] [--rounds 3]`. Each restore is a process of its
own. Memory is the peak of the process during the restore less what it held with the model built, over the
largest tensor (256 MiB); PyTorch's matrices are turned on the way. Seconds are those after all imports: of
the restore of a large file; of restoring, printing and writing the receipt of the 500 variables.
"""

import argparse
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

SIDE = 8192
SPAN = 4 * SIDE * SIDE  # bytes of a kernel
SUFFIX = {"npz": ".npz", "safetensors": ".safetensors", "torch": ".pt", "h5": ".weights.h5"}


def kernel(number: int, side: int = SIDE) -> np.ndarray:
    """A square matrix that tells its number, and rows from columns."""
    return np.full((side, side), number, np.float32) + np.arange(side, dtype=np.float32) / side


def write(kind: str, path: Path, names: Sequence[str]) -> None:
    """A file of a kernel for each name, one after another in memory."""
    if kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            for k, name in enumerate(names):
                with archive.open(f"{name}/kernel.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, kernel(k))
    elif kind == "torch":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/data.pkl", state_dict(names))
            for k in range(len(names)):
                with archive.open(f"m/data/{k}", "w", force_zip64=True) as file:
                    file.write(kernel(k).data)
    elif kind == "safetensors":
        places = {f"{name}/kernel": [k * SPAN, (k + 1) * SPAN] for k, name in enumerate(names)}
        spec = {"dtype": "F32", "shape": [SIDE, SIDE]}
        head = json.dumps({name: {**spec, "data_offsets": at} for name, at in places.items()}).encode()
        with path.open("wb") as out:
            out.write(len(head).to_bytes(8, "little") + head)
            for k in range(len(names)):
                out.write(kernel(k).data)
    else:
        with h5py.File(path, "w") as h5:
            for k in range(len(names)):
                h5[f"layers/dense{f'_{k}' * (k > 0)}/vars/0"] = kernel(k)


def state_dict(names: Sequence[str]) -> bytes:
    """The pickle that `torch.save` writes of such matrices, made without PyTorch."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(*values: int) -> bytes:
        return b"".join(b"J" + struct.pack("<i", value) for value in values)

    items = b""
    for k, name in enumerate(names):
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(k)) + text("cpu")
        place = numbers(SIDE * SIDE) + b"tQ" + numbers(0) + b"(" + numbers(SIDE, SIDE) + b"t"
        rest = b"(" + numbers(SIDE, 1) + b"t\x89ccollections\nOrderedDict\n)RtR"
        items += text(f"{name}.weight") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + rest
    return b"\x80\x02}(" + items + b"u."


def large(kind: str, path: Path, names: Sequence[str]) -> dict[str, float]:
    """One restore of a large file, in this process."""
    import keras

    from trainer.restore.weights import restore_weights

    layers = [keras.layers.Dense(SIDE, use_bias=False, kernel_initializer="zeros", name=n) for n in names]
    model = keras.Sequential([keras.Input((SIDE,)), *layers])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    built, began = memory("VmRSS"), time.perf_counter()
    restore_weights(model, path, layout="torch" if kind == "torch" else "")
    seconds, peak = time.perf_counter() - began, memory("VmHWM")
    for k, layer in enumerate(layers):
        wanted = kernel(k).T if kind == "torch" else kernel(k)
        np.testing.assert_array_equal(layer.kernel.value[:2], wanted[:2])
    return {"memory": (peak - built) / SPAN, "seconds": seconds}


def memory(which: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most since the last start (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


def many(folder: Path) -> dict[str, float]:
    """A model of 500 variables, restored by position, printed, written; in this process."""
    import keras

    from trainer.restore.weights import restore_weights

    x = inputs = keras.Input((4,))
    for k in range(250):
        x = keras.layers.Dense(4, name=f"block{k}")(x)
    model = keras.Model(inputs, x)
    model.save_weights(folder / "many.weights.h5")
    began = time.perf_counter()
    receipt = restore_weights(model, folder / "many.weights.h5")
    text = str(receipt)
    receipt.write(folder)
    assert len(receipt.restored) == 500 and text
    return {"seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=int, default=2)
    parser.add_argument("--only", default=",".join([*SUFFIX, "many"]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [f"fc{k}" for k in range(options.gib * (1 << 30) // SPAN)]
    if options.once:
        kind, path = options.once.split(":", 1)
        print(json.dumps(many(Path(path)) if kind == "many" else large(kind, Path(path), names)))
        return
    for kind in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"weights{SUFFIX[kind]}" if kind in SUFFIX else Path(folder)
            if kind in SUFFIX:
                write(kind, path, names)
            command = [
                sys.executable,
                "-m",
                "benchmarks.restore",
                f"--once={kind}:{path}",
                f"--gib={options.gib}",
            ]
            rounds = [
                json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
                for _ in range(options.rounds)
            ]
        for part in rounds[0]:
            values = [r[part] for r in rounds]
            middle = statistics.median(values)
            print(f"{kind:12} {part:8} {middle:6.2f}  ({min(values):.2f} to {max(values):.2f})", flush=True)


if __name__ == "__main__":
    main()
