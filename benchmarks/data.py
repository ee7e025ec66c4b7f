"""Examples per second out of data of each kind, against Keras and plain `tf.data`, side by side in one run.

Every contender of a row trains the same network on the same examples with the same optimizer and the same
augmentation, in turns, round after round; a ratio compares two contenders within one round.
`python -m benchmarks.data [--only images|photos|table|rows] [--rounds N]`. Run it on a machine that does
nothing else. `rows` tells the memory and the start of a table of 10 million rows.
"""

import argparse
import gc
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainer.noise import quiet_start

with quiet_start():
    import keras
    import tensorflow as tf
    import tensorflow_datasets as tfds

    import trainer
    from benchmarks.throughput import steps_of
    from examples.own_data import arrays
    from trainer.data.sources.tfds_records import batch_decoded

Trainer = Callable[[int], None]
RATE = 1e-3
IMAGES, PHOTOS, ROWS, COLUMNS = 12_800, 5_000, 1_000_000, 50


def cnn() -> keras.Model:
    layers = keras.layers
    hidden = [
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"),
    ]
    head = [layers.MaxPooling2D(), layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), layers.Rescaling(1 / 255), *hidden, *head])


def mlp() -> keras.Model:
    layers = keras.layers
    hidden = [layers.Dense(64, activation="relu") for _ in range(2)]
    return keras.Sequential(
        [keras.Input((28, 28, 1)), layers.Rescaling(1 / 255), layers.Flatten(), *hidden, layers.Dense(10)]
    )


def photo_net() -> keras.Model:
    layers = keras.layers
    first = [layers.RandomFlip("horizontal"), layers.Rescaling(1 / 255)]
    hidden = [
        layers.Conv2D(16, 3, strides=4, activation="relu"),
        layers.Conv2D(32, 3, strides=2, activation="relu"),
    ]
    return keras.Sequential(
        [keras.Input((128, 128, 3)), *first, *hidden, layers.GlobalAveragePooling2D(), layers.Dense(5)]
    )


def table_net() -> keras.Model:
    layers = keras.layers
    hidden = [layers.Dense(64, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((COLUMNS,)), *hidden, layers.Dense(2)])


def loss(model: Any, batch: Any, training: bool) -> Any:
    """Softmax cross entropy of images or of all columns."""
    names = sorted(name for name in batch if name != "label")
    inputs = batch["image"] if "image" in batch else tf.stack([batch[name] for name in names], 1)
    logits = model(tf.cast(inputs, tf.float32), training=training)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits), {}


def ours(build: Any, dataset: Any, batch: int, way: str, **flags: Any) -> Trainer:
    keras.backend.clear_session()
    return steps_of(
        model=trainer.ModelModule(build=build, loss=loss), dataset=dataset, batch_size=batch,
        group=[f".* adam {RATE}"], data_residency=way, on_nonfinite="off", **flags,
    )  # fmt: skip


def by_fit(build: Any, data: Any, batch: int, epoch: int) -> Trainer:
    """Keras `fit`, ten steps a call, on arrays (x, y) or on a `tf.data.Dataset` of batches."""
    model = build()
    model.compile(
        keras.optimizers.Adam(RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=10,
    )

    def run(steps: int) -> None:
        epochs = -(-steps // epoch)
        if isinstance(data, tuple):
            model.fit(*data, batch_size=batch, epochs=epochs, verbose=0)
        else:
            model.fit(data, epochs=epochs, verbose=0)

    return run


def only_drawn(data: tf.data.Dataset) -> Trainer:
    """Batches that nothing is done with."""
    batches = iter(data)

    @tf.function
    def draw(steps: tf.Tensor) -> None:
        for _ in tf.range(steps):
            next(batches)

    return lambda steps: draw(tf.constant(steps))


def prepared(x: np.ndarray, y: np.ndarray, form: str, folder: Path) -> Path:
    """The images as a set of TFDS in a folder of its own."""
    tfds.disable_progress_bar()

    class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The images as PNG."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=x.shape[1:]),
                "label": tfds.features.Scalar(np.int64),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {
                "train": ((i, {"image": a, "label": b}) for i, (a, b) in enumerate(zip(x, y, strict=True)))
            }

        def _generate_examples(self) -> Any:
            raise NotImplementedError

    builder = Images(data_dir=folder / form, file_format=form)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=4))
    return Path(builder.data_dir)


def images(folder: Path, build: Any, batch: int) -> tuple[dict[str, Trainer], int]:
    """Images of 28x28, of which there are as PNG in tfrecord and array_record files."""
    scans = arrays(every=1)["train"]
    rows = np.resize(np.arange(len(scans["label"])), IMAGES)
    x, y = scans["image"][rows], scans["label"][rows]
    record, array = (prepared(x, y, form, folder) for form in ("tfrecord", "array_record"))
    source = tfds.builder_from_directory(record)

    def guide() -> tf.data.Dataset:
        """As TensorFlow's guide to `tf.data` performance has it, all of it in memory after one epoch."""
        data = source.as_dataset(split="train").map(lambda e: (e["image"], e["label"]), tf.data.AUTOTUNE)
        return data.cache().shuffle(IMAGES).batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

    def uncached() -> tf.data.Dataset:
        data = source.as_dataset(split="train", shuffle_files=True).map(
            lambda e: (e["image"], e["label"]), tf.data.AUTOTUNE
        )
        return data.shuffle(1024).batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

    def decoding() -> tf.data.Dataset:
        """No shuffle and no training: records parsed together, images decoded, on all cores."""
        files, features = sorted(map(str, record.glob("*.tfrecord*"))), source.info.features
        spec = features.get_tensor_spec()
        groups = tf.data.TFRecordDataset(files).repeat().batch(64, drop_remainder=True)
        decoded = groups.map(lambda r: batch_decoded(features, r, spec), tf.data.AUTOTUNE)
        return decoded.rebatch(batch, drop_remainder=True).prefetch(2)

    epoch = IMAGES // batch
    return {
        "resident": ours(build, {"image": x, "label": y}, batch, "resident"),
        "host, tfrecord": ours(build, f"{record}/", batch, "host"),
        "streaming, tfrecord": ours(build, f"{record}/", batch, "streaming"),
        "streaming, array_record": ours(build, f"{array}/", batch, "streaming"),
        "tfrecord, parsed and decoded only": only_drawn(decoding()),
        "fit, arrays": by_fit(build, (x, y), batch, epoch),
        "fit, tf.data cached": by_fit(build, guide(), batch, epoch),
        "fit, tf.data not cached": by_fit(build, uncached(), batch, epoch),
    }, epoch


def photos(folder: Path) -> tuple[dict[str, Trainer], int]:
    """A folder of JPEGs of 128x128: smooth noise, which compresses as photographs do."""
    random, batch = np.random.default_rng(0), 64
    for i in range(PHOTOS):
        place = folder / "photos" / f"class{i % 5}"
        place.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        image = tf.cast(tf.image.resize(small, (128, 128), "bicubic"), tf.uint8)
        (place / f"{i:05}.jpg").write_bytes(tf.io.encode_jpeg(tf.clip_by_value(image, 0, 255)).numpy())
    where, epoch = f"{folder / 'photos'}", PHOTOS // batch

    def theirs() -> tf.data.Dataset:
        return keras.utils.image_dataset_from_directory(
            folder / "photos", image_size=(128, 128), batch_size=batch, verbose=False
        )

    return {
        "resident": ours(photo_net, where, batch, "resident"),
        "host": ours(photo_net, where, batch, "host"),
        "streaming": ours(photo_net, where, batch, "streaming"),
        "fit, image_dataset_from_directory, cached": by_fit(
            photo_net, theirs().cache().prefetch(-1), batch, epoch
        ),
        "fit, image_dataset_from_directory": by_fit(photo_net, theirs().prefetch(-1), batch, epoch),
    }, epoch


def write_table(file: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A parquet file of float32 columns and a label, written a million rows at a time; the last million."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    names, writer = [f"c{i:02}" for i in range(COLUMNS)], None
    for _ in range(-(-rows // ROWS)):
        x, y = random.random((ROWS, COLUMNS), np.float32), random.integers(0, 2, ROWS)
        table = pa.table({**{n: x[:, i] for i, n in enumerate(names)}, "label": y})
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return x, y


def table(folder: Path) -> tuple[dict[str, Trainer], int]:
    """A million rows of 50 columns."""
    batch, file = 256, folder / "table.parquet"
    x, y = write_table(file, ROWS)
    epoch = ROWS // batch
    guide = (
        tf.data.Dataset.from_tensor_slices((x, y))
        .shuffle(100_000)
        .batch(batch, drop_remainder=True)
        .prefetch(-1)
    )
    return {
        "resident": ours(table_net, str(file), batch, "resident"),
        "streaming": ours(table_net, str(file), batch, "streaming"),
        "fit, arrays": by_fit(table_net, (x, y), batch, epoch),
        "fit, tf.data": by_fit(table_net, guide, batch, epoch),
    }, epoch


def rows_of(folder: Path, count: int) -> None:
    """Start-up time and memory of a long table; of its own process, as memory is never given back."""
    file = folder / "long.parquet"
    write_table(file, count)
    gc.collect()
    before, began = _resident(), time.perf_counter()
    run = ours(table_net, str(file), 256, "streaming")
    started = time.perf_counter() - began
    run(1)
    print(
        f"{count:,} rows x {COLUMNS}: {file.stat().st_size / 2**20:,.0f} MiB on disk, assembled in "
        f"{started:.1f} s, "
    
          f"first step after {time.perf_counter() - began:.1f} s, {(_resident() - before) / 2**20:,.0f} "
          "MiB more memory, "
          f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB")  # fmt: skip


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(made: dict[str, Trainer], steps: int, rounds: int) -> None:
    """Prints steps per second, how they compare with the first contender's by round, and how many cores work.

    Where all cores work no other order of the same work is faster: the time of a step is its CPU time.
    """
    speeds: dict[str, list[float]] = {name: [] for name in made}
    busy: dict[str, list[float]] = {name: [] for name in made}
    for run in made.values():
        run(steps)  # compiles, fills caches
    for _ in range(rounds):
        for name, run in made.items():
            began, cpu = time.perf_counter(), time.process_time()
            run(steps)
            seconds = time.perf_counter() - began
            speeds[name].append(steps / seconds)
            busy[name].append((time.process_time() - cpu) / seconds)
    first = speeds[next(iter(speeds))]
    for name, values in speeds.items():
        ratios = [a / b for a, b in zip(values, first, strict=True)]
        spread = f"{statistics.median(ratios):5.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        cores = statistics.median(busy[name])
        print(f"  {name:44} {statistics.median(values):9.1f}   {spread}   {cores:.2f} cores", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("mlp", "cnn", "photos", "table", "rows"))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="a quarter of the examples")
    arguments = parser.parse_args()
    if arguments.quick:
        global IMAGES, PHOTOS, ROWS
        IMAGES, PHOTOS, ROWS = IMAGES // 4, PHOTOS // 4, ROWS // 4
    work: dict[str, Callable[[Path], tuple[dict[str, Trainer], int]]] = {
        "mlp": lambda folder: images(folder, mlp, 32),
        "cnn": lambda folder: images(folder, cnn, 128),
        "photos": photos,
        "table": table,
    }
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {arguments.rounds} rounds")
    for name in [arguments.only] if arguments.only else [*work, "rows"]:
        with tempfile.TemporaryDirectory() as folder:
            if name == "rows":
                rows_of(Path(folder), arguments.rows)
                continue
            made, steps = work[name](Path(folder))
            print(f"\n{name}: median steps/s; this row / the first by round: median (min-max)")
            measure(made, steps, arguments.rounds)


if __name__ == "__main__":
    main()
