"""tfrecord files of one's own, with a stated spec: `image: jpeg[96,96,3], label: int64`."""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.data.fingerprints import of_files
from trainer.data.padding import signature, varies
from trainer.data.shards import Shards
from trainer.data.source import parts
from trainer.errors import UserError, near

_IMAGES = ("jpeg", "png", "image")
_STORED = {"int64": tf.int64, "float32": tf.float32, "string": tf.string}
_CAST = {"int32": tf.int64, "uint8": tf.int64, "bool": tf.int64, "float64": tf.float32}
_PART = re.compile(r"\s*([^:,\[\]]+?)\s*:\s*([a-z0-9]+)\s*(?:\[([^\]]*)\])?\s*(?:,|$)")


@dataclass(frozen=True)
class Part:
    """One feature of a `tf.train.Example`.

    Attributes:
      kind: how it is stored: `int64`, `float32`, `string`, `jpeg`, ...; other types of number are cast.
      shape: of one example; a first None differs from one to another.
    """

    kind: str
    shape: tuple[int | None, ...]

    @property
    def spec(self) -> tf.TensorSpec:
        """As it comes out."""
        dtype = "uint8" if self.kind in _IMAGES else self.kind
        return tf.TensorSpec(self.shape, dtype)

    @property
    def stored(self) -> Any:
        """As `tf.io.parse_example` reads it."""
        if self.kind in _IMAGES:
            return tf.io.FixedLenFeature([], tf.string)
        dtype = _STORED.get(self.kind) or _CAST[self.kind]
        if self.shape and self.shape[0] is None:
            return tf.io.RaggedFeature(dtype)
        return tf.io.FixedLenFeature(self.shape, dtype)

    def decoded(self, values: Any) -> Any:
        """A group of stored values, decoded."""
        if self.kind in _IMAGES:

            def image(data: tf.Tensor) -> tf.Tensor:
                found = tf.io.decode_image(data, channels=self.shape[-1] or 0, expand_animations=False)
                return tf.ensure_shape(found, self.shape)

            return tf.map_fn(image, values, fn_output_signature=signature(self.spec), parallel_iterations=1)
        if varies(self.spec) and len(self.shape) > 1:
            size = self.spec.shape[1:].num_elements()
            flat = tf.reshape(values.flat_values, [-1, *self.shape[1:]])
            values = tf.RaggedTensor.from_row_lengths(flat, values.row_lengths() // size)
        return tf.cast(values, self.spec.dtype) if self.kind in _CAST else values


@dataclass(frozen=True)
class RecordFolder:
    """tfrecord files of `tf.train.Example`s, counted; read in a row and shuffled block after block.

    Attributes:
      name: value of --dataset.
      folder: where they lie.
      files: `{path: records}` by split.
      parts: what an example is made of.
    """

    name: str
    folder: Path
    files: Mapping[str, Mapping[Path, int]]
    parts: Mapping[str, Part]
    prepared: bool = field(default=True, init=False)
    in_memory: bool = field(default=False, init=False)
    remedy: str = field(default="Write the file anew, or state the features as it has them.", init=False)

    @property
    def full_name(self) -> str:
        """Its name."""
        return self.name

    @property
    def notes(self) -> tuple[str, ...]:
        """How many files there are."""
        return (f"{self.name}: {sum(map(len, self.files.values()))} files of records.",)

    @property
    def features(self) -> dict[str, Any]:
        """As `spec`."""
        return self.spec()

    def prepare(self) -> None:
        """Nothing: the files are there."""

    def fingerprint(self) -> str:
        """Of names, sizes and ends of the files."""
        return of_files([file for files in self.files.values() for file in files], self.folder)

    def sizes(self) -> dict[str, int]:
        """`{split: records}`."""
        return {split: sum(files.values()) for split, files in self.files.items()}

    def spec(self) -> dict[str, tf.TensorSpec]:
        """As stated."""
        return {name: part.spec for name, part in self.parts.items()}

    def elements(self, split: str) -> Shards:
        """The records of a split, in the order of the names of the files."""
        rows: list[tuple[str, int, int, int]] = []
        for name, first, stop in parts(split, self.sizes()):
            start = 0
            for file, count in self.files[name].items():
                skip, end = max(first - start, 0), min(stop - start, count)
                if end > skip:
                    rows.append((str(file), skip, end - skip, file.stat().st_size * (end - skip) // count))
                start += count
        names, skips, takes, sizes = zip(*rows, strict=True)
        return Shards(names, skips, takes, sum(takes), sum(sizes))

    def example(self, element: tf.Tensor) -> dict[str, Any]:
        """One record, decoded."""
        return {name: group[0] for name, group in self.examples(element[None]).items()}

    def examples(self, elements: tf.Tensor) -> dict[str, Any]:
        """Records, parsed together and decoded."""
        parsed = tf.io.parse_example(elements, {name: part.stored for name, part in self.parts.items()})
        return {name: part.decoded(parsed[name]) for name, part in self.parts.items()}

    def arrays(self, split: str) -> None:
        """None: they are files."""


def open_records(name: str, folder: Path, files: Sequence[Path], features: str = "") -> RecordFolder:
    """tfrecord files, their records counted.

    A file `train-00000-of-00002.tfrecord`, or one in a folder `train`, belongs to the split train.

    Args:
      name: value of --dataset.
      folder: where they lie.
      files: in it, or the one file.
      features: `NAME: TYPE[SHAPE], ...`; TYPE is a number's, `string`, or `jpeg` or `png`; a first `None` in
        a shape differs from example to example.

    Raises:
      UserError: features that cannot be read or are not given, a file that is no tfrecord.
    """
    flag = f"--dataset={name}"
    if not features:
        raise UserError(
            f"{flag}: tfrecord files do not tell what is in them. Say it: "
            f"'{name}(features=\"image: jpeg[96,96,3], label: int64\")'.{_keys(files[0])}"
        )
    stated = parse_features(features, flag)
    splits: dict[str, dict[Path, int]] = {}
    for file in sorted(files):
        split = _split(file) if file.parent == folder else file.parent.name
        splits.setdefault(split, {})[file] = count_records(file, flag)
    splits = {split: {f: n for f, n in counts.items() if n} for split, counts in splits.items()}
    if len(splits) == 1 and not {"train", "test", "validation"} & set(splits):
        splits = {"train": next(iter(splits.values()))}
    return RecordFolder(name, folder, splits, stated)


def parse_features(text: str, flag: str) -> dict[str, Part]:
    """`image: jpeg[96,96,3], label: int64` as parts by name.

    Raises:
      UserError: it cannot be read; names the part that cannot.
    """
    stated: dict[str, Part] = {}
    place = 0
    while place < len(text.rstrip()):
        match = _PART.match(text, place)
        kinds = (*_STORED, *_CAST, *_IMAGES)
        if match is None:
            raise UserError(f"{flag}: features: {text[place:].strip()!r} is not NAME: TYPE[SHAPE].")
        name, kind, sizes = match.groups()
        if kind not in kinds:
            raise UserError(f"{flag}: features: {name}: {kind}: no such type. {near(kind, kinds)}")
        shape = [size.strip() for size in (sizes or "").split(",") if size.strip()]
        if not all(re.fullmatch(r"None|[1-9][0-9]{0,8}", size, re.ASCII) for size in shape):
            raise UserError(
                f"{flag}: features: {name}: [{sizes}] is not a shape, such as [96,96,3] or [None]."
            )
        known = tuple(None if size == "None" else int(size) for size in shape)
        if None in known[1:] or (kind in _IMAGES and (len(known) != 3 or None in known)):
            least = (
                "an image has [height,width,channels]" if kind in _IMAGES else "only the first may be None"
            )
            raise UserError(f"{flag}: features: {name}: {kind}[{sizes or ''}]: {least}.")
        stated[name] = Part(kind, known)
        place = match.end()
    return stated


def count_records(file: Path, flag: str) -> int:
    """How many records a file has: lengths are read, their contents are not.

    Raises:
      UserError: it ends within a record, or is no tfrecord.
    """
    size, place, count = file.stat().st_size, 0, 0
    with open(file, "rb") as stream:
        while place < size:
            head = stream.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            place += 16 + length
            if place > size:
                raise UserError(
                    f"{flag}: {file}: ends within record {count + 1}, or is no tfrecord. Write it anew."
                )
            stream.seek(length + 4, 1)
            count += 1
    return count


def _split(file: Path) -> str:
    """The split that a file's name tells: what stands before `.tfrecord` and the number of the shard."""
    stem = re.sub(r"\.tfrecords?.*$|-\d+-of-\d+.*$", "", file.name)
    return stem.rpartition("-")[2] or stem


def _keys(file: Path) -> str:
    """What the first record has, as a hint."""
    try:
        record = next(iter(tf.data.TFRecordDataset(str(file)).take(1))).numpy()
        example = tf.train.Example.FromString(record)
        kinds = {"int64_list": "int64", "float_list": "float32", "bytes_list": "string (or jpeg, png)"}
        found = [f"{k}: {kinds[v.WhichOneof('kind')]}" for k, v in sorted(example.features.feature.items())]
    except (StopIteration, tf.errors.OpError, ValueError, KeyError):
        return ""
    except Exception:  # what protobuf raises at a record that is no Example
        return ""
    return f" The first record of {file.name} has {', '.join(found)}."
