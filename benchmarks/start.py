"""From typing to the end of the first step, everything trainable: a process of this and one of Keras `fit`.

`python -m benchmarks.start [--rounds 2] [NETWORK ...]`. Both train the same network of `keras.applications`
on the same file of images and evaluate nothing.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NETWORKS = ("MobileNetV2", "ResNet50V2", "EfficientNetB0")
BATCH, SIZE = 32, 96

KERAS = """
import sys, keras, numpy as np
from models.pretrained import build
model = build(sys.argv[1], size=int(sys.argv[3]))
with np.load(sys.argv[2]) as file:
    x, y = file["image"], file["label"]
model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(True), ["accuracy"])
model.fit(x, y, batch_size=int(sys.argv[4]), verbose=0)
"""


def commands(network: str, data: str) -> dict[str, list[str]]:
    """By name, what is typed."""
    ours = [
        f'--model=pretrained(trunk="{network}", size={SIZE})',
        f"--dataset={data}",
        "--eval_split=none",
        "--train_for=1",
        f"--batch_size={BATCH}",
        "--group=.* adam 1e-3",
    ]
    return {
        "here": [sys.executable, "run.py", *ours],
        "Keras": [sys.executable, "-c", KERAS, network, data, str(SIZE), str(BATCH)],
    }


def seconds(command: list[str]) -> float:
    """How long a process takes, which must succeed."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return time.perf_counter() - began


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        data = str(Path(directory) / "images.npz")
        images = random.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype("uint8")
        np.savez(data, image=images, label=random.integers(0, 10, BATCH))
        for network in args.networks:
            rounds = [
                {name: seconds(command) for name, command in commands(network, data).items()}
                for _ in range(args.rounds)
            ]
            ratios = [found["here"] / found["Keras"] for found in rounds]
            shown = "  ".join(f"{n} {statistics.median(r[n] for r in rounds):.1f} s" for n in rounds[0])
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            print(f"{network}: {shown}  ratio {statistics.median(ratios):.2f} ({spread})", flush=True)


if __name__ == "__main__":
    main()
