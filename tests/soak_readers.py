"""Restores by the thousand: mutated files of every format, and random models against Keras's loading.

    python -m tests.soak_readers                      all of it, about two hours
    python -m tests.soak_readers --times=200 --seeds=50 --only=torch,order

Prints a line for each part and exits 1 at the first fault; a seed that fails is named, and
`tests/support/keras_order.py` runs it alone.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tests.conftest  # noqa: F401 (quiet, on the CPU)
from tests.support import keras_order
from tests.support.fuzz import Kept, fuzz, spoilt
from tests.support.random_models import make
from trainer.checkpoints import checkpoint
from trainer.model.names import named_variables
from trainer.readers import hdf5, torch_pickle

GOLDEN = Path(__file__).parent / "restore" / "torch_golden"


def sources(folder: Path) -> dict[str, tuple[str, dict[str, bytes]]]:
    """`{format: (file to open, {name: bytes})}` of one small whole source each."""
    import keras
    import tensorflow as tf
    from safetensors.numpy import save_file

    folder.mkdir()
    model = make(keras, 3)
    model.save_weights(folder / "weights.weights.h5")
    model.save(folder / "archive.keras")
    model.save(folder / "legacy.h5")
    tf.train.Checkpoint(model=model, step=tf.Variable(3)).write(str(folder / "checkpoint"))
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable("net/fc/weights", initializer=np.ones((4, 3), np.float32))
        v1.train.get_or_create_global_step()
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "tf1"), write_meta_graph=False, write_state=False)
    own = {f"model/{name}": variable for name, variable in named_variables(model).items()}
    step = checkpoint.save(folder / "own", 3, own, {})
    arrays = {f"layer{k}/kernel": np.ones((3, k + 1), np.float32) for k in range(5)}
    np.savez(folder / "arrays.npz", **arrays)
    save_file(arrays, folder / "tensors.safetensors")
    for file in GOLDEN.iterdir():
        if file.suffix in (".pt", ".pth", ".safetensors", ".json"):
            shutil.copy(file, folder / file.name)
    mains = {
        "npz": "arrays.npz",
        "safetensors": "tensors.safetensors",
        "torch": "kinds.pt",
        "torch_odd": "odd.pt",
        "torch_checkpoint": "checkpoint.pt",
        "shards": "bert.safetensors.index.json",
        "checkpoint": "checkpoint",
        "tf1": "tf1",
        "keras": "archive.keras",
        "weights_h5": "weights.weights.h5",
        "legacy_h5": "legacy.h5",
    }
    ends = (".index", ".data-00000-of-00001")
    alone = {kind: tuple(kind + end for end in ends) for kind in ("checkpoint", "tf1")}
    found = {}
    for kind, main in mains.items():
        names = alone.get(kind, (main,))
        names = tuple(f.name for f in folder.glob("bert*")) if kind == "shards" else names
        found[kind] = (main, {name: (folder / name).read_bytes() for name in names})
    found["own"] = ("", {file.name: file.read_bytes() for file in step.iterdir()})
    return found


def pickles(times: int) -> str:
    """Mutated pickles of PyTorch's, read by the parser alone: every outcome but a crash is one."""
    import zipfile

    counts: Counter[str] = Counter()
    rng = np.random.default_rng(11)
    for name in ("odd.pt", "checkpoint.pt", "whole_model.pt"):
        with zipfile.ZipFile(GOLDEN / name) as golden:
            data = golden.read(next(n for n in golden.namelist() if n.endswith("data.pkl")))
        for _ in range(times):
            try:
                torch_pickle.load(spoilt(data, rng))
                counts["read"] += 1
            except (ValueError, TypeError):
                counts["refused"] += 1
    return str(dict(counts))


def order(seeds: int, folder: Path) -> str:
    """Random models, saved by both Keras and restored here and by Keras."""
    import keras
    import tf_keras

    counts: Counter[str] = Counter()
    for compare in (keras_order.positions, keras_order.names, keras_order.archives):
        for writer in (keras, tf_keras):
            for seed in range(10_000, 10_000 + seeds):
                outcomes = compare(writer, seed, folder)
                counts.update(f"{compare.__name__} {writer.__name__} {outcome}" for outcome in outcomes)
    return str(dict(counts))


def main() -> int:
    """0, or an AssertionError that names what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5000, help="mutated inputs for each format")
    parser.add_argument("--seeds", type=int, default=200, help="random models for each writer and format")
    parser.add_argument("--only", default="", help="parts to run, with commas between them")
    parser.add_argument("--seed", type=int, default=7, help="of the damage")
    given = parser.parse_args()
    library = Kept()
    hdf5.Child = lambda: library  # type: ignore[assignment, misc]
    hdf5._SECONDS = 3
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        parts: dict[str, Callable[[], object]] = {
            "pickle": lambda: pickles(given.times),
            "order": lambda: order(given.seeds, folder),
        }
        for kind, (opened, files) in sources(folder / "whole").items():
            (folder / kind).mkdir()
            parts[kind] = lambda opened=opened, files=files, kind=kind: (
                f"of {given.times} "
                f"{fuzz(files, opened, folder / kind, given.times, float('inf'), given.seed)} refused"
            )
        for part, run in parts.items():
            if not given.only or part in given.only.split(","):
                began = time.monotonic()
                print(f"{part}: {run()} ({time.monotonic() - began:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
