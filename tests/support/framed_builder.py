"""Images of different sizes as a TFDS builder; for the tests of exports."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
    """Twenty images of 8 to 27 pixels a side."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        random = np.random.default_rng(0)
        for k in range(20):
            image = random.integers(0, 256, (8 + k, 9 + k, 3)).astype(np.uint8)
            yield k, {"image": image, "label": k % 2}
