"""Feeds from data sets: the choice between resident and streaming, and the reading for both."""

import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.feed import MASK, Feed, Resident, Streaming, pack, permutation
from trainer.data.sources.tfds import Dataset, Decode
from trainer.errors import UserError

BLOCK_BYTES = 128 << 20  # undecoded records that streaming shuffles at a time
READ_AT_ONCE = 16  # files that streaming reads side by side in training
GROUP = 64  # records that are decoded by one call: half the time of one call each


def residency(
    asked: str,
    dataset: Dataset,
    split: str,
    decode: Decode | None,
    strategy: tf.distribute.Strategy,
) -> str:
    """Which way to draw from a prepared split, `resident` or `streaming`; reads no examples.

    A split may be resident if its decoded bytes are at most a quarter of a device's memory: of the
    smallest GPU's, or of what is free on the host, divided by the replicas that live there.

    Args:
      asked: value of --data_residency.
      dataset: prepared.
      split: such as `train[:90%]`.
      decode: of the model module.
      strategy: the one whose replicas will hold the copies.

    Raises:
      UserError: what was asked for cannot be had.
    """
    form = dataset.builder.info.file_format.value
    if form != "tfrecord":
        raise UserError(
            f"--dataset={dataset.name}: prepared as {form} in {dataset.builder.data_dir}, and only "
            "tfrecord is read; prepare it anew with another --data_dir."
        )
    specs = tf.nest.flatten(dataset.element_spec(decode))
    # The length of a string is not known; 64 bytes stand for it.
    example = sum(spec.shape.num_elements() * (spec.dtype.size or 64) for spec in specs)
    need, room = example * (dataset.size(split) or 0), _room(_devices(strategy))
    if asked == "resident" and need > room:
        raise UserError(
            f"--data_residency=resident: {dataset.name} {split} takes {need / 2**20:,.0f} MiB and "
            f"{room / 2**20:,.0f} MiB are to spare for it; use --data_residency=streaming."
        )
    return "resident" if asked != "streaming" and need <= room else "streaming"


def train_feed(
    way: str,
    dataset: Dataset,
    split: str,
    decode: Decode | None,
    strategy: tf.distribute.Strategy,
    batch: int,
    seed: int,
    workers: tuple[int, int] = (0, 1),
    accumulate: int = 1,
) -> Feed:
    """Endless batches in the order that `seed` gives.

    Args:
      way: `resident` or `streaming`, from `residency`.
      dataset: prepared.
      split: such as `train[:90%]`.
      decode: of the model module; None for examples as TFDS has them.
      strategy: the one whose replicas take the batches.
      batch: rows of one `draw`, over all workers and replicas and accumulated batches.
      seed: the order's.
      workers: index of this process, and how many there are.
      accumulate: how many batches, each shared by all workers, stand in a row in one `draw`.
    """
    if way == "resident":
        return _resident(dataset, split, decode, strategy, batch, seed)
    examples = dataset.size(split) or 0
    records = functools.partial(_shuffled, dataset, split, seed)
    return _streaming(records, dataset, decode, examples, batch, None, workers, accumulate)


def eval_feed(
    way: str,
    dataset: Dataset,
    split: str,
    decode: Decode | None,
    strategy: tf.distribute.Strategy,
    batch: int,
    workers: tuple[int, int] = (0, 1),
) -> Feed:
    """Every example once, in order, with `MASK`; arguments as for `train_feed`."""
    if way == "resident":
        return _resident(dataset, split, decode, strategy, batch, None)
    examples = dataset.size(split) or 0
    steps = -(-examples // batch)

    def records(start: int) -> tf.data.Dataset:
        once = _records(_files(dataset, split), at_once=1)
        filled = once.concatenate(once.take(1).repeat(steps * batch - examples))
        real = tf.data.Dataset.range(steps * batch).map(lambda p: tf.cast(p < examples, tf.float32))
        return tf.data.Dataset.zip((filled, real)).skip(start)

    return _streaming(records, dataset, decode, examples, batch, steps, workers, 1)


def _resident(
    dataset: Dataset,
    split: str,
    decode: Decode | None,
    strategy: tf.distribute.Strategy,
    batch: int,
    seed: int | None,
) -> Resident:
    """Reads and decodes the split once and gives each replica its copy."""
    layout = dataset.element_spec(decode)
    arrays = load(dataset, split, decode)
    remember = functools.lru_cache(maxsize=2)(permutation)
    placed = [_place(pack(array), strategy) for array in tf.nest.flatten(arrays)]
    return Resident(placed, layout, dataset.size(split) or 0, batch, seed, remember)


def load(dataset: Dataset, split: str, decode: Decode | None) -> dict[str, Any]:
    """The decoded split as NumPy arrays [examples, ...], in the order of the files."""
    size, spec = dataset.size(split) or 0, dataset.element_spec(decode)
    arrays = tf.nest.map_structure(lambda s: np.empty([size, *s.shape], s.dtype.as_numpy_dtype), spec)
    records = _records(_files(dataset, split), at_once=1).batch(GROUP)
    decoded = records.map(_decoder(dataset, decode), tf.data.AUTOTUNE, deterministic=True)
    filled = 0
    for part in decoded.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        rows = len(tf.nest.flatten(part)[0])
        for array, values in zip(tf.nest.flatten(arrays), tf.nest.flatten(part), strict=True):
            array[filled : filled + rows] = values
        filled += rows
    if filled != size:
        raise UserError(
            f"{dataset.builder.data_dir}: {split} has {filled} examples and should have {size}; "
            "the files are damaged. Delete that directory to have it prepared anew."
        )
    return arrays


def _place(array: np.ndarray, strategy: tf.distribute.Strategy) -> Any:
    """A copy of `array` on the device of each local replica; strings stay on the host."""
    local = _devices(strategy)

    def copy(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        device = local[context.replica_id_in_sync_group % len(local)]
        with tf.device("CPU:0" if array.dtype == object else device):
            return tf.constant(array)

    return strategy.experimental_distribute_values_from_function(copy)


def _devices(strategy: tf.distribute.Strategy) -> tuple[str, ...]:
    """The devices of this process's replicas."""
    try:
        return tuple(strategy.extended.worker_devices)
    except RuntimeError:  # TensorFlow's default strategy does not tell
        return ("GPU:0",) if tf.config.list_logical_devices("GPU") else ("CPU:0",)


def _room(devices: tuple[str, ...]) -> int:
    """Bytes that a resident split may take on each of `devices`."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = [pages // 2]  # what is free is told by Linux only
    if (meminfo := Path("/proc/meminfo")).exists():
        lines = meminfo.read_text().splitlines()
        free = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
    group = Path("/sys/fs/cgroup/memory.max")  # of a container
    if group.exists() and (limit := group.read_text().strip()).isdigit():
        free.append(int(limit) - int(group.with_name("memory.current").read_text()))
    host = min(free, default=pages // 2) // 4
    if not any("GPU" in device for device in devices):
        return host // len(devices)
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return min(host, *(int(mib) << 18 for mib in answer.stdout.split()))  # quarters
    except (OSError, ValueError, subprocess.SubprocessError):
        return min(host, 2 << 30)  # no telling: what any GPU in use can spare


def _files(dataset: Dataset, split: str) -> dict[str, tf.Tensor]:
    """The files of a split, or of a part of one, and which records of each: skip, then take."""
    files = dataset.builder.info.splits[split].file_instructions
    return {
        "name": tf.constant([str(file.filename) for file in files]),
        "skip": tf.constant([file.skip for file in files], tf.int64),
        "take": tf.constant([file.take for file in files], tf.int64),
    }


def _records(files: dict[str, tf.Tensor], at_once: int) -> tf.data.Dataset:
    """Undecoded records, `at_once` files side by side."""

    def read(file: dict[str, tf.Tensor]) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(file["name"]).skip(file["skip"]).take(file["take"])

    return tf.data.Dataset.from_tensor_slices(files).interleave(
        read, at_once, block_length=16, num_parallel_calls=at_once, deterministic=True
    )


def _shuffled(dataset: Dataset, split: str, seed: int, start: int) -> tf.data.Dataset:
    """Undecoded records from position `start` on, epoch after epoch, each shuffled anew.

    An epoch shuffles the files, reads some side by side, and shuffles block after block of their
    records. Only stateless random numbers keyed by (seed, epoch, block): `Dataset.shuffle` would
    depend on TensorFlow's global seed too.
    """
    info = dataset.builder.info.splits[split]
    files, size = _files(dataset, split), info.num_examples
    at_once = min(READ_AT_ONCE, len(files["name"]))
    block = min(size, max(1024, BLOCK_BYTES * size // max(info.num_bytes, 1)))

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        key = tf.stack([tf.constant(seed, tf.int64), number])
        shuffle = functools.partial(tf.random.experimental.stateless_shuffle, alg="philox")
        chosen = shuffle(tf.range(len(files["name"])), key)
        some = _records({name: tf.gather(v, chosen) for name, v in files.items()}, at_once)
        blocks = some.batch(block).enumerate(start=1)
        fold = tf.random.experimental.stateless_fold_in
        return blocks.map(lambda i, b: shuffle(b, fold(key, i))).prefetch(1).unbatch()

    first, offset = divmod(start, size)
    epochs = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
    return epochs.flat_map(epoch).skip(offset)


def _decoder(dataset: Dataset, decode: Decode | None) -> Callable[..., dict[str, Any]]:
    """Of a group of records (and its mask) makes examples, [group, ...]."""
    spec, parse = dataset.element_spec(decode), dataset.features.deserialize_example

    def one(record: tf.Tensor) -> dict[str, Any]:
        return parse(record) if decode is None else decode(parse(record))

    def group(records: tf.Tensor, *real: tf.Tensor) -> dict[str, Any]:
        examples = tf.map_fn(one, records, fn_output_signature=spec, parallel_iterations=1)
        return {**examples, MASK: real[0]} if real else examples

    return group


def _streaming(
    records: Callable[[int], tf.data.Dataset],
    dataset: Dataset,
    decode: Decode | None,
    examples: int,
    batch: int,
    steps: int | None,
    workers: tuple[int, int],
    accumulate: int,
) -> Streaming:
    """Batches of `records(start)`: undecoded, or with the mask as a second part."""
    index, count = workers
    # This worker's rows of a batch: of each accumulated batch in it, one share.
    own = np.arange(batch).reshape(accumulate, count, -1)[:, index].ravel()
    decode_group = _decoder(dataset, decode)

    def share(*parts: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(tf.gather(part, own) for part in parts)

    def batches(step: int) -> tf.data.Dataset:
        source = records(step * batch)
        if count > 1:  # before decoding, which is the work
            source = source.batch(batch, drop_remainder=True).map(share).unbatch()
        groups = source.batch(GROUP).map(decode_group, tf.data.AUTOTUNE, deterministic=True)
        return groups.rebatch(len(own), drop_remainder=True).prefetch(2)

    spec = batches(0).element_spec
    return Streaming(batches, spec, examples, batch, steps, workers, accumulate)
