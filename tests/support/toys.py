"""What the tests of data share."""

import numpy as np
import tensorflow_datasets as tfds

SIZE = 103  # in five files: ragged everywhere


def pixels(number):
    return (np.arange(12) * 7 + number).astype(np.uint8).reshape(4, 3, 1)


class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Examples that can be told apart, with every kind of type: image = pixels(number)."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "number": tfds.features.Scalar(np.int64),
            "image": tfds.features.Image(shape=(4, 3, 1)),
            "pair": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "small": tfds.features.Scalar(np.int32),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(SIZE), "test": self._generate_examples(22)}

    def _generate_examples(self, count):
        for i in range(count):
            pair = np.array([i, -i], np.float32)
            image = pixels(i)
            yield i, {"number": i, "image": image, "pair": pair, "small": -i, "id": f"n{i}"}
