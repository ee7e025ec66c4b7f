"""1,797 scanned handwritten digits in the shape of MNIST, from a file beside this one."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_CITATION = """\
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}
"""


def read() -> tuple[np.ndarray, np.ndarray]:
    """Scans uint8 [1797, 8, 8] with values 0..16 and labels uint8 [1797], in the file's order."""
    with gzip.open(Path(__file__).with_name("digits.csv.gz"), "rt") as file:
        rows = np.loadtxt(file, delimiter=",").astype(np.uint8)
    return rows[:, :64].reshape(-1, 8, 8), rows[:, 64]


def enlarge(scan: np.ndarray) -> np.ndarray:
    """A scan [8, 8] of 0..16 as MNIST would have it: uint8 [28, 28, 1].

    Bilinear to the 20x20 box of MNIST, then placed with its centre of mass in the middle of 28x28.
    All in integers, so the bytes are the same on every machine.
    """
    # Pixel i of 20 lies at 0.4 i - 0.3 among the 8: weights are whole tenths.
    tenths = np.clip(4 * np.arange(20) - 3, 0, 70)
    weights = np.zeros((20, 8), np.int64)
    np.add.at(weights, (np.arange(20), tenths // 10), 10 - tenths % 10)
    np.add.at(weights, (np.arange(20), np.minimum(tenths // 10 + 1, 7)), tenths % 10)
    box = weights @ scan.astype(np.int64) @ weights.T  # 0..1600
    mass = max(int(box.sum()), 1)
    image = np.zeros((28, 28), np.uint8)
    corner = [
        min(max((28 * mass - 2 * int(box.sum(axis) @ np.arange(20))) // (2 * mass), 0), 8) for axis in (1, 0)
    ]
    image[corner[0] : corner[0] + 20, corner[1] : corner[1] + 20] = (box * 255 + 800) // 1600
    return image[:, :, None]


class Builder(tfds.core.GeneratorBasedBuilder):
    """Optical Recognition of Handwritten Digits (UCI), brought to 28x28; see README.md."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="1,797 scanned handwritten digits, enlarged from 8x8 to MNIST's 28x28.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        scans, labels = read()
        # The scans stand in the order they were collected, writer after writer: a cut near the
        # end tests on writers hardly seen in training, which a random choice would not.
        cut = len(scans) * 4 // 5
        return {
            "train": self._generate_examples(scans[:cut], labels[:cut]),
            "test": self._generate_examples(scans[cut:], labels[cut:]),
        }

    def _generate_examples(
        self, scans: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (scan, label) in enumerate(zip(scans, labels, strict=True)):
            yield index, {"image": enlarge(scan), "label": int(label)}
