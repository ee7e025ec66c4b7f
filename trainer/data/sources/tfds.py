"""Data sets: where their examples come from, how many there are and what they are made of.

Here is what can be known without reading an example. `trainer/data/streaming.py` reads them.
"""

import contextlib
import dataclasses
import fcntl
import gzip
import io
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer.data.sources.builders import find_builder
from trainer.errors import UserError, listing

Decode = Callable[[dict[str, Any]], dict[str, Any]]

PATIENCE = 15.0  # seconds that a server has to answer before the data count as out of reach


@dataclasses.dataclass(frozen=True)
class Dataset:
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

    def size(self, split: str, flag: str = "--train_split") -> int | None:
        """Examples in `split` (`train`, `train[:90%]`, ...); None where that is not yet known.

        It is known once prepared, and before for MNIST and its kin whose files are in --manual_dir.

        Raises:
          UserError: no such split, or an empty one.
        """
        sizes = {name: info.num_examples for name, info in self.builder.info.splits.items()}
        sizes = sizes or _counts(self.manual_dir)
        if not sizes:
            return None
        infos = {n: tfds.core.SplitInfo(n, [size], 0) for n, size in sizes.items()}
        there = f"There is: {listing(f'{n} ({size})' for n, size in sizes.items())}."
        try:
            parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        except (ValueError, AssertionError, KeyError) as error:
            raise UserError(f"{flag}={split}: not a split of {self.name}. {there}") from error
        examples = sum(
            (sizes[part.splitname] if part.to is None else part.to) - (part.from_ or 0) for part in parts
        )
        if examples <= 0:
            raise UserError(f"{flag}={split}: has no examples in {self.name}. {there}")
        return examples

    def element_spec(self, decode: Decode | None = None) -> dict[str, tf.TensorSpec]:
        """Shape and type of one example, unbatched, after the model's `decode`; reads no data.

        Raises:
          UserError: an example cannot be put into a batch, as its shape varies.
        """
        spec = self.features.get_tensor_spec()
        if decode is not None:
            try:
                spec = tf.function(decode).get_concrete_function(spec).structured_outputs
            except Exception as error:  # the user's own code may raise anything
                reason = " ".join(str(error).split())[-600:]
                raise UserError(f"--dataset={self.name}: the model's decode raised {reason}") from error
        if not isinstance(spec, dict):
            raise UserError(f"--dataset={self.name}: an example is {spec}, not a dict of tensors.")
        for part in tf.nest.flatten(spec):
            if not isinstance(part, tf.TensorSpec | tf.Tensor) or not part.shape.is_fully_defined():
                raise UserError(
                    f"--dataset={self.name}: {part} varies from example to example and cannot be "
                    "batched; give the model module a decode(example) that makes its shape fixed."
                )
        return tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), spec)

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
                f"--dataset={self.name}: could not be prepared in {self.builder.data_dir}: {error}"
            ) from error
        finally:
            random.setstate(state)


def open_dataset(name: str, data_dir: str = "", manual_dir: str = "", fallback: str = "") -> Dataset:
    """Finds a data set and makes sure that it can be had; prepares nothing.

    It can be had if it is prepared in `data_dir`, else from the original files in `manual_dir`, else
    from a server that answers. If not, `fallback` stands in, and the notes tell so.

    Args:
      name: value of --dataset.
      data_dir: value of --data_dir; "" for TFDS's default, ~/tensorflow_datasets.
      manual_dir: value of --manual_dir.
      fallback: value of --fallback_dataset; "" for none.

    Raises:
      UserError: no such data set, or it cannot be had and there is no fallback.
    """
    builder = find_builder(name, data_dir, "--dataset")
    spare = find_builder(fallback, data_dir, "--fallback_dataset") if fallback else None
    if manual_dir and not Path(manual_dir).expanduser().is_dir():
        raise UserError(f"--manual_dir={manual_dir}: no such directory.")
    dataset = Dataset(name, builder, str(Path(manual_dir).expanduser()) if manual_dir else "")
    if dataset.prepared:
        note = f"{name} is prepared in {builder.data_dir}; --manual_dir={manual_dir} is not read."
        return dataclasses.replace(dataset, notes=(note,) if manual_dir else ())
    reason, remedy = _obstacle(dataset)
    if not reason:
        return dataset
    if spare is None or _obstacle(other := Dataset(fallback, spare))[0]:
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


def _obstacle(dataset: Dataset) -> tuple[str, str]:
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
