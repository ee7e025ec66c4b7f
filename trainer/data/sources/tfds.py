"""Data sets of TFDS, and local builders: whether they can be had, prepared, and read from their files."""

import contextlib
import dataclasses
import fcntl
import functools
import gzip
import io
import random
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import requests
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer.data.fingerprints import fingerprint
from trainer.data.shards import Shards
from trainer.data.sources.tfds_builders import find_builder
from trainer.data.sources.tfds_records import RecordFiles, batch_decoded
from trainer.errors import UserError, blame, listing, message_of

PATIENCE = 15.0  # seconds that a server has to answer before the data count as out of reach


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A data set that can be had: prepared, or to be prepared by `prepare`.

    Attributes:
      name: what a flag calls it.
      builder: its TFDS builder.
      manual_dir: where its original files may lie; "" for nowhere.
      notes: sentences for the log, such as that this set stands in for another.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    manual_dir: str = ""
    notes: tuple[str, ...] = ()
    in_memory: ClassVar[bool] = False

    @property
    def full_name(self) -> str:
        """Name, config and version: `mnist/3.0.1`."""
        return self.builder.info.full_name

    @property
    def features(self) -> tfds.features.FeaturesDict:
        """What an example is made of, as TFDS describes it."""
        return self.builder.info.features

    @property
    def prepared(self) -> bool:
        """Whether the examples are on the disk, ready to be read."""
        return self.builder.data_path.exists() and self.builder.is_prepared()

    @property
    def remedy(self) -> str:
        """What to do where its files are damaged."""
        return f"Delete {self.builder.data_dir} to have it prepared anew."

    def sizes(self) -> Mapping[str, int]:
        """Known once prepared, and before for MNIST and its kin whose files are in --manual_dir."""
        sizes = {name: info.num_examples for name, info in self.builder.info.splits.items()}
        return sizes or _counts(self.manual_dir)

    def spec(self) -> dict[str, Any]:
        """As TFDS has it."""
        return self.features.get_tensor_spec()

    def elements(self, split: str) -> "np.ndarray | Shards":
        """Numbers of records out of array_record files; a way through tfrecord files.

        Raises:
          UserError: they were prepared in another format.
        """
        form = self.builder.info.file_format.value
        files = self.builder.info.splits[split].file_instructions
        if form == "array_record":
            first = self._record_files.firsts
            return np.concatenate(
                [
                    first[str(f.filename)] + np.arange(f.skip, f.skip + _taken(f), dtype=np.int64)
                    for f in files
                ]
            )
        if form != "tfrecord":
            raise UserError(
                f"--dataset={self.name}: prepared as {form} in {self.builder.data_dir}, and only "
                "tfrecord and array_record are read; prepare it anew with another --data_dir."
            )
        info = self.builder.info.splits[split]
        names, skip, take = zip(*((str(f.filename), f.skip, f.take) for f in files), strict=True)
        return Shards(names, skip, take, info.num_examples, info.num_bytes)

    def example(self, element: tf.Tensor) -> dict[str, Any]:
        """One record, decoded as TFDS does."""
        if element.dtype == tf.int64:
            element = self._record_files.read(element[None])[0]
        return self.features.deserialize_example(element)

    def examples(self, elements: tf.Tensor) -> dict[str, Any]:
        """Records, decoded as TFDS does."""
        if elements.dtype == tf.int64:
            elements = self._record_files.read(elements)
        return batch_decoded(self.features, elements, self.spec())

    def arrays(self, split: str) -> None:
        """None: they are files."""

    def fingerprint(self) -> str:
        """Name, version, format, and how many examples each of its files has."""
        shards = {name: list(info.shard_lengths) for name, info in sorted(self.builder.info.splits.items())}
        return fingerprint(self.full_name, self.builder.info.file_format.value, shards)

    @functools.cached_property
    def _record_files(self) -> RecordFiles:
        splits = self.builder.info.splits
        lengths = {
            str(f.filename): f.examples_in_shard for name in splits for f in splits[name].file_instructions
        }
        return RecordFiles(lengths)

    def prepare(self) -> None:
        """Writes the examples into --data_dir unless they are there; one process at a time.

        Raises:
          UserError: an original file is damaged, the download broke off, or the disk refused.
        """
        if self.prepared:
            return
        config = tfds.download.DownloadConfig(manual_dir=self.manual_dir or None)
        # TFDS draws the names of its temporary folders from the `random` that seeds the model.
        state = random.getstate()
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        try:
            with _lock(self.builder), contextlib.redirect_stdout(io.StringIO()):
                if self.prepared:  # by the process that held the lock
                    self.builder.info.read_from_directory(self.builder.data_path)
                else:
                    random.seed()
                    self.builder.download_and_prepare(download_config=config)
        except tfds.core.download.download_manager.NonMatchingChecksumError as error:
            raise UserError(
                f"--dataset={self.name}: a file is not the original one. Fetch it again. {error}"
            ) from error
        except (OSError, tfds.download.DownloadError, tf.errors.OpError, AssertionError) as error:
            raise UserError(
                f"--dataset={self.name}: could not be prepared in {self.builder.data_dir}: "
                f"{message_of(error)}"
            ) from error
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a builder of the user's own may raise anything
            raise UserError(f"--dataset={self.name}: its builder {blame(error)}") from error
        finally:
            random.setstate(state)
        if not self.sizes():
            raise UserError(f"--dataset={self.name}: its builder makes no split, so there are no examples.")


def open_dataset(
    name: str, data_dir: str = "", manual_dir: str = "", fallback: str = "", builder: Any = None
) -> TfdsSource:
    """Finds a data set and makes sure that it can be had; prepares nothing.

    It can be had if it is prepared in `data_dir`, else from the original files in `manual_dir`, else
    from a server that answers. If not, `fallback` stands in, and the notes tell so.

    Args:
      name: value of --dataset.
      data_dir: value of --data_dir; "" for TFDS's default, ~/tensorflow_datasets.
      manual_dir: value of --manual_dir.
      fallback: value of --fallback_dataset; "" for none.
      builder: as of `find_builder`.

    Raises:
      UserError: no such data set, or it cannot be had and there is no fallback.
    """
    builder = find_builder(name, data_dir, "--dataset", builder)
    spare = find_builder(fallback, data_dir, "--fallback_dataset") if fallback else None
    if manual_dir and not Path(manual_dir).expanduser().is_dir():
        raise UserError(f"--manual_dir={manual_dir}: no such directory.")
    dataset = TfdsSource(name, builder, str(Path(manual_dir).expanduser()) if manual_dir else "")
    if dataset.prepared:
        note = f"{name} is prepared in {builder.data_dir}; --manual_dir={manual_dir} is not read."
        return dataclasses.replace(dataset, notes=(note,) if manual_dir else ())
    reason, remedy = _obstacle(dataset)
    if not reason:
        return dataset
    if spare is None or _obstacle(other := TfdsSource(fallback, spare))[0]:
        raise UserError(
            f"--dataset={name}: {reason} {remedy} Or name a set to use instead, such as "
            "--fallback_dataset=digits."
        )
    about = f"{fallback}: {spare.info.description.strip().splitlines()[0]}"
    notes = (
        f"{name} could not be had: {reason}",
        f"This run uses ANOTHER data set in its place, {about}",
        f"Its results say nothing about {name}. To get {name}: {remedy}",
    )
    return dataclasses.replace(other, notes=notes)


def _obstacle(dataset: TfdsSource) -> tuple[str, str]:
    """Why an unprepared data set cannot be had, and what to do: two sentences, or two times ""."""
    builder, manual = dataset.builder, dataset.manual_dir
    if dataset.prepared:
        return "", ""
    by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if by_hand and not (manual and any(Path(manual).iterdir())):
        where = f"--manual_dir={manual} is empty." if manual else "--manual_dir is not given."
        return f"its files must be fetched by hand, and {where}", " ".join(by_hand.split())
    infos = builder.url_infos or {}
    cache = builder.data_dir_root / "downloads"
    missing = {}
    for url, info in infos.items():
        cached = tfds.core.download.resource.get_dl_fname(url, info.checksum)
        places = [cache / builder.name / cached, cache / cached]
        if manual and info.filename:
            places.append(Path(manual) / info.filename)
        if not any(place.exists() for place in places):
            missing[url] = info.filename
    if not missing or not (answer := _unreachable(next(iter(missing)))):
        return "", ""
    files = listing(sorted(info.filename or url for url, info in infos.items()))
    given = f"--manual_dir={manual} lacks {listing(sorted(missing.values()))}, " if manual else ""
    reason = f"it is not prepared in {builder.data_dir_root}, {given}and {answer}."
    return reason, f"Put {files} into a folder and name it with --manual_dir=FOLDER."


def _unreachable(url: str) -> str:
    """Why `url` cannot be fetched, or "": in seconds, where TFDS would try again for minutes."""
    if not url.startswith("http"):
        return ""
    answers: list[str] = []

    def ask() -> None:
        try:  # what TFDS does, proxies included, but once and only for the headers
            with requests.get(url, stream=True, timeout=PATIENCE * 2 / 3) as response:
                answers.append("" if response.ok else f"answers HTTP {response.status_code}")
        except requests.ReadTimeout:
            answers.append("")  # there, only slow
        except requests.RequestException as error:
            cause = getattr(error.args[0] if error.args else None, "reason", error)
            answers.append(f"cannot be reached ({str(cause).rpartition('): ')[2]})")

    # A thread, because no timeout of `requests` covers the resolution of names.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    answer = answers[0] if answers else f"does not answer within {PATIENCE:.0f} s"
    return f"{url} {answer}" if answer else ""


def _counts(manual_dir: str) -> dict[str, int]:
    """Examples per split from the headers of MNIST's files (and its kin's); {} without them."""
    counts = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        file = Path(manual_dir) / f"{prefix}-labels-idx1-ubyte.gz"
        if manual_dir and file.is_file():
            with contextlib.suppress(OSError, EOFError, struct.error), gzip.open(file) as stream:
                counts[split] = struct.unpack(">ii", stream.read(8))[1]
    return counts if len(counts) == 2 else {}


@contextlib.contextmanager
def _lock(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
    """Held by one process at a time for one data set in one --data_dir on a local disk."""
    root = str(builder.data_dir_root)
    if "://" in root:
        yield
        return
    Path(root).mkdir(parents=True, exist_ok=True)
    with open(Path(root) / f".{builder.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, or the process dies
        yield


def _taken(file: Any) -> int:
    """How many records of a file a split has."""
    return file.examples_in_shard - file.skip if file.take < 0 else file.take
