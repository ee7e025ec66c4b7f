"""3,837 sentences of documentation and the library that each is from, in a file beside this one."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

LIBRARIES = ("python", "numpy", "tensorflow", "keras")


class Builder(tfds.core.GeneratorBasedBuilder):
    """First paragraphs of docstrings; see README.md."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="First paragraphs of docstrings, and the library that they document.",
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=LIBRARIES),
                }
            ),
            supervised_keys=("text", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        with gzip.open(Path(__file__).with_name("docstrings.jsonl.gz"), "rt") as file:
            for index, example in enumerate(map(json.loads, file)):
                if example["split"] == split:
                    yield index, {"text": example["text"], "label": example["library"]}
