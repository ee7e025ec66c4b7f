"""Writes the bundled digits as data of every kind: `python examples/own_data.py runs/data`; for docs/data.md.

It is also a module whose functions `--dataset` may name: `--dataset=examples.own_data.arrays`.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

ROOT = Path(__file__).resolve().parents[1]


def arrays(every: int = 4) -> dict[str, dict[str, np.ndarray]]:
    """Every 4th digit as `{split: {feature: array}}`: images uint8 [n, 28, 28, 1] and labels int64 [n]."""
    file = ROOT / "datasets/digits/digits_dataset_builder.py"
    spec = importlib.util.spec_from_file_location("digits_dataset_builder", file)
    assert spec is not None and spec.loader is not None
    digits = importlib.util.module_from_spec(spec)
    with tfds.core.registered.skip_registration():  # it defines a builder, which is not wanted here
        spec.loader.exec_module(digits)
    scans, labels = digits.read()
    scans, labels = scans[::every], labels[::every].astype(np.int64)
    images, cut = np.stack([digits.enlarge(scan) for scan in scans]), len(scans) * 4 // 5
    return {
        "train": {"image": images[:cut], "label": labels[:cut]},
        "test": {"image": images[cut:], "label": labels[cut:]},
    }


class Digits:
    """What a PyTorch-style data set looks like: `len()`, and `[i]` with one example."""

    def __init__(self, split: str) -> None:
        """The split `train` or `test`."""
        self.data = arrays()[split]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.data["label"])

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Digit `i`."""
        return {"image": self.data["image"][i], "label": self.data["label"][i]}


def make() -> dict[str, Digits]:
    """Both splits, an example at a time."""
    return {split: Digits(split) for split in ("train", "test")}


def write(folder: Path) -> None:
    """`digits.npz`, `npy/`, `photos/`, `records/` in `folder`."""
    import tensorflow as tf
    from PIL import Image

    data = arrays()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "digits.npz", **{f"{s}/{n}": a for s, parts in data.items() for n, a in parts.items()})
    (folder / "records").mkdir(exist_ok=True)
    for split, parts in data.items():
        (folder / "npy" / split).mkdir(parents=True, exist_ok=True)
        for name, array in parts.items():
            np.save(folder / "npy" / split / f"{name}.npy", array)
        with tf.io.TFRecordWriter(str(folder / "records" / f"{split}.tfrecord")) as records:
            for i, (image, label) in enumerate(zip(parts["image"], parts["label"], strict=True)):
                place = folder / "photos" / split / str(label)
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[:, :, 0]).save(place / f"{i:04}.png")
                stored = {
                    "image": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[(place / f"{i:04}.png").read_bytes()])
                    ),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=stored))
                records.write(example.SerializeToString())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
