"""The same 103 + 22 examples as data of every kind: `number` is 0 .. 124, and the rest follows from it."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from trainer.data.opening import Places, open_data, open_object
from trainer.data.source import Source
from trainer.data.sources.tfds import TfdsSource

SIZES = {"train": 103, "test": 22}
FIRST = {"train": 0, "test": 103}


def numbers(split: str) -> np.ndarray:
    """The numbers of a split's examples, in order."""
    return np.arange(FIRST[split], FIRST[split] + SIZES[split])


def arrays(split: str) -> dict[str, np.ndarray]:
    """What most kinds hold."""
    number = numbers(split)
    return {"number": number, "half": (number / 2).astype(np.float32), "label": number % 3}


class Items:
    """Has `len()` and `[i]`."""

    def __init__(self, split: str) -> None:
        self._arrays = arrays(split)

    def __len__(self) -> int:
        return len(self._arrays["number"])

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: array[i] for name, array in self._arrays.items()}


class Numbers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """As a set of TFDS."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"number": tfds.features.Scalar(np.int64), "half": tfds.features.Scalar(np.float32)}
        labelled = {**features, "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(labelled))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Any:
        columns = arrays(split)
        for i in range(SIZES[split]):
            yield i, {name: column[i] for name, column in columns.items()}


def npz(folder: Path) -> Source:
    np.savez(folder / "d.npz", **{f"{s}/{n}": a for s in SIZES for n, a in arrays(s).items()})
    return open_data(str(folder / "d.npz"), Places())


def npy(folder: Path) -> Source:
    for split in SIZES:
        (folder / split).mkdir()
        for name, array in arrays(split).items():
            np.save(folder / split / f"{name}.npy", array)
    return open_data(str(folder), Places())


def csv_files(folder: Path) -> Source:
    for split in SIZES:
        with open(folder / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(arrays(split))
            writer.writerows(zip(*(a.tolist() for a in arrays(split).values()), strict=True))
    return open_data(f"{folder}(label='label')", Places())


def parquet(folder: Path) -> Source:
    for split in SIZES:
        pq.write_table(pa.table(arrays(split)), folder / f"{split}.parquet", row_group_size=20)
    return open_data(str(folder), Places())


def images(folder: Path) -> Source:
    """Grey images of 4x6 whose colour is the number."""
    for split in SIZES:
        for number in numbers(split):
            place = folder / split / f"class{number % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 4), (int(number),) * 3).save(place / f"{number:03}.png")
    return open_data(f"{folder}", Places())


def tfrecords(folder: Path) -> Source:
    """Each split in three files."""
    for split in SIZES:
        columns = arrays(split)
        for shard, rows in enumerate(np.array_split(np.arange(SIZES[split]), 3)):
            file = folder / f"{split}-{shard:05}-of-00003.tfrecord"
            tfrecord(file, {name: column[rows] for name, column in columns.items()})
    return open_data(f"{folder}(features='number: int64, half: float32, label: int64')", Places())


def tfrecord(file: Path, columns: dict[str, Any]) -> None:
    """A file of these examples."""
    with tf.io.TFRecordWriter(str(file)) as writer:
        for i in range(len(columns["number"])):
            writer.write(_example({name: column[i] for name, column in columns.items()}))


def _example(values: dict[str, Any]) -> bytes:
    def feature(value: Any) -> tf.train.Feature:
        if isinstance(value, np.floating):
            return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {name: feature(value) for name, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def items(folder: Path) -> Source:
    return open_object({split: Items(split) for split in SIZES}, "items")


def dataset(folder: Path) -> Source:
    return open_object(
        {s: tf.data.Dataset.from_tensor_slices(arrays(s)) for s in SIZES}, "dataset", shuffle=40
    )


def in_memory(folder: Path) -> Source:
    return open_object({split: arrays(split) for split in SIZES}, "memory")


def _prepared(folder: Path, form: str) -> Source:
    builder = Numbers(data_dir=folder, file_format=form)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return TfdsSource("numbers", builder)


def tfds_array_record(folder: Path) -> Source:
    return _prepared(folder, "array_record")


def tfds_tfrecord(folder: Path) -> Source:
    return _prepared(folder, "tfrecord")


KINDS: dict[str, Callable[[Path], Source]] = {
    made.__name__: made
    for made in (
        in_memory,
        npz,
        npy,
        csv_files,
        parquet,
        images,
        tfrecords,
        items,
        dataset,
        tfds_array_record,
        tfds_tfrecord,
    )
}


def number_of(example: dict[str, Any]) -> np.ndarray:
    """The numbers of a batch, or of one example, of any kind."""
    if "image" in example:
        return np.asarray(example["image"])[..., 0, 0, 0].astype(np.int64)
    return np.asarray(example["number"])
