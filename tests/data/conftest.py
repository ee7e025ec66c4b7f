"""Fixtures of the tests in this folder."""

import pytest
import tensorflow_datasets as tfds

from tests.support.toys import Toy
from trainer.data.source import Split
from trainer.data.sources.tfds import TfdsSource, open_dataset


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    builder = Toy(data_dir=tmp_path_factory.mktemp("toy"))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=5))
    return TfdsSource("toy", builder)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    dataset = open_dataset("digits", str(tmp_path_factory.mktemp("digits")))
    assert not dataset.prepared and Split(dataset, "train").size() is None
    dataset.prepare()
    return dataset
