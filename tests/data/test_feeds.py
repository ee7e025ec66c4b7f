"""What one step is fed: order, epochs, remainders, replicas and workers."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.support.shares import Worker
from tests.support.toys import SIZE, pixels
from trainer.data.choice import evaluation_feed, residency, training_feed
from trainer.data.feed import MASK, order
from trainer.data.records import load
from trainer.data.resident import GATHERED, Resident, pack, unpack
from trainer.data.source import Split
from trainer.data.sources.tfds import TfdsSource
from trainer.devices.memory import room
from trainer.devices.replicas import Share
from trainer.errors import UserError


def strategy_of(replicas):
    if replicas == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def drawer(feed, strategy, parts=1):
    """The compiled loop of a trainer: run(chunk, n) -> {name: [n, batch, ...]} from all replicas."""

    def replica_fn(drawn):
        context = tf.distribute.get_replica_context()
        replica, replicas = context.replica_id_in_sync_group, context.num_replicas_in_sync
        takes = [feed.take(drawn, a * replicas + replica, parts * replicas) for a in range(parts)]
        return tf.nest.map_structure(lambda *values: tf.stack(values), *takes)

    def together(values):  # [replicas][parts, rows, ...] to [batch, ...], the rows in order
        rows = tf.concat(strategy.experimental_local_results(values), axis=1)
        return tf.reshape(rows, [feed.batch, *rows.shape[2:]])

    @tf.function(input_signature=[feed.spec, tf.TensorSpec([], tf.int32)])
    def run(chunk, n):
        arrays = [tf.TensorArray(dtype, size=n) for dtype in dtypes]
        for i in tf.range(n):
            out = strategy.run(replica_fn, args=(feed.draw(chunk, i),))
            arrays = [array.write(i, together(out[name])) for array, name in zip(arrays, names, strict=True)]
        return {name: array.stack() for name, array in zip(names, arrays, strict=True)}

    if isinstance(feed, Resident):
        spec = dict(feed.layout, **({MASK: tf.TensorSpec([], tf.float32)} if feed.steps else {}))
    else:
        spec = feed.element_spec
    names, dtypes = list(spec), [spec[name].dtype for name in spec]
    return run


def draw(feed, strategy, step, sizes, parts=1):
    """All batches of consecutive chunks: {name: [steps, batch, ...]}."""
    run, got = drawer(feed, strategy, parts), []
    for n in sizes:
        got.append(run(feed.chunk(step, n), n))
        step += n
    assert run.experimental_get_tracing_count() == 1
    return {name: np.concatenate([g[name] for g in got]) for name in got[0]}


def check_rows(batches):
    """Every part of every example belongs to its number."""
    for index in np.ndindex(batches["number"].shape):
        number = batches["number"][index]
        np.testing.assert_array_equal(batches["image"][index], pixels(number))
        np.testing.assert_array_equal(batches["pair"][index], [number, -number])
        assert batches["small"][index] == -number
        assert batches["id"][index] == b"n%d" % number


def feed_of(way, toy, batch=8, strategy=None, accumulate=1):
    share = Share(strategy or strategy_of(1), accumulate)
    return training_feed(way, Split(toy, "train"), share, batch, 5)


def test_resident_draws_the_rows_of_order(toy):
    arrays = load(Split(toy, "train"))
    got = draw(feed_of("resident", toy), strategy_of(1), 0, [3, 20, 1])
    check_rows(got)
    expected = arrays["number"][order(5, SIZE, 0, 24 * 8)].reshape(24, 8)
    np.testing.assert_array_equal(got["number"], expected)


@pytest.mark.parametrize("way", ["resident", "streaming"])
def test_every_example_once_per_epoch_and_batches_cross_epochs(way, toy):
    got = draw(feed_of(way, toy), strategy_of(1), 0, [13, 26])
    check_rows(got)
    numbers = got["number"].ravel()
    epochs = [numbers[:SIZE], numbers[SIZE : 2 * SIZE], numbers[2 * SIZE : 3 * SIZE]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(SIZE))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


@pytest.mark.parametrize("way", ["resident", "streaming"])
def test_replicas_draw_the_same_batches(way, toy):
    one = draw(feed_of(way, toy), strategy_of(1), 0, [7, 12])
    for replicas in (2, 4) if way == "resident" else (2,):
        strategy = strategy_of(replicas)
        many = draw(feed_of(way, toy, strategy=strategy), strategy, 0, [12, 7])
        for name in one:
            np.testing.assert_array_equal(one[name], many[name])


@pytest.mark.slow(but=3)
@pytest.mark.parametrize("way", ["resident", "streaming"])
@pytest.mark.parametrize("step", [12, 13, 70])
def test_resume_at_any_step(way, step, toy):
    whole = draw(feed_of(way, toy), strategy_of(1), 0, [75])
    resumed = draw(feed_of(way, toy), strategy_of(1), step, [2, 3])
    np.testing.assert_array_equal(whole["number"][step : step + 5], resumed["number"])


@pytest.mark.parametrize("way", ["resident", "streaming"])
def test_order_ignores_global_seeds(way, toy):
    got = []
    for seed in (1, 2):
        tf.keras.utils.set_random_seed(seed)
        got.append(draw(feed_of(way, toy), strategy_of(1), 0, [20])["number"])
    np.testing.assert_array_equal(*got)


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("way", ["resident", "streaming"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_accumulated_batches_are_slices(way, replicas, toy):
    plain = draw(feed_of(way, toy, batch=4), strategy_of(1), 0, [9])
    strategy = strategy_of(replicas)
    feed = feed_of(way, toy, batch=12, strategy=strategy, accumulate=3)

    def replica_fn(drawn, a):
        context = tf.distribute.get_replica_context()
        count = context.num_replicas_in_sync
        return feed.take(drawn, a * count + context.replica_id_in_sync_group, 3 * count)["number"]

    @tf.function
    def run(chunk):
        got = tf.TensorArray(tf.int64, size=9)
        for i in tf.range(3):
            drawn = feed.draw(chunk, i)
            for a in tf.range(3):
                out = strategy.run(replica_fn, args=(drawn, a))
                values = strategy.experimental_local_results(out)
                got = got.write(i * 3 + a, tf.concat(values, axis=0))
        return got.stack()

    np.testing.assert_array_equal(run(feed.chunk(0, 3)), plain["number"])


def test_part_that_does_not_divide_is_refused(toy):
    feed = feed_of("resident", toy)
    with pytest.raises(ValueError, match="8 rows cannot be cut into 3"):
        feed.take(feed.draw(feed.chunk(0, 1), 0), 0, 3)


def test_streaming_keeps_one_iterator(toy):
    feed = feed_of("streaming", toy)
    first = feed.chunk(0, 2)
    run = drawer(feed, strategy_of(1))
    run(first, 2)
    assert feed.chunk(2, 3) is first
    run(first, 1)  # broken off after one of three steps
    resumed = feed.chunk(3, 1)
    assert resumed is not first
    expected = draw(feed_of("streaming", toy), strategy_of(1), 3, [1])
    np.testing.assert_array_equal(run(resumed, 1)["number"], expected["number"])


def test_the_clock_of_what_steps_wait_for(toy, monkeypatch):
    """A clock that goes on by a second each time it is asked: a batch takes a second to come."""
    seconds = tf.Variable(0.0, dtype=tf.float64)
    monkeypatch.setattr(tf, "timestamp", lambda: tf.identity(seconds.assign_add(1.0)))
    feed = feed_of("streaming", toy)
    run = drawer(feed, strategy_of(1))
    run(feed.chunk(0, 7), 7)
    assert feed.waited() == 7 and feed.waited() == 0
    run(feed.chunk(7, 2), 2)
    assert feed.waited() == 2 and feed_of("resident", toy).waited() is None


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_decode_only_their_rows(workers, toy):
    """Rows of each worker, by hand: 16 rows are 2 batches of 8, worker w has 8 / workers of each."""
    whole = draw(feed_of("streaming", toy, batch=16), strategy_of(1), 400, [10])["number"]
    each = 8 // workers
    for worker in range(workers):
        seen = []

        def decode(example, seen=seen):
            number = tf.numpy_function(lambda n: seen.append(int(n)) or n, [example["number"]], tf.int64)
            return {"number": tf.ensure_shape(number, [])}

        share = Worker(strategy_of(1), 2, worker, workers)
        feed = training_feed("streaming", Split(toy, "train", decode), share, 16, 5)
        iterator = feed.chunk(400, 10)
        for k in range(10):
            drawn = feed.draw(iterator, k)
            for a in (0, 1):
                part = a * workers + worker  # as with one replica per worker
                mine = whole[k, a * 8 + worker * each :][:each]
                np.testing.assert_array_equal(feed.take(drawn, part, 2 * workers)["number"], mine)
                if each == 4:  # two replicas per worker
                    half = feed.take(drawn, tf.constant(2 * part + 1), 4 * workers)["number"]
                    np.testing.assert_array_equal(half, mine[2:])
        # 10 batches and what was prefetched; nothing of the 400 skipped, of the others' rows little.
        assert len(seen) < 10 * 2 * each + 500


def test_decode_is_applied_and_spec_needs_no_reading(toy, monkeypatch):
    def decode(example):
        return {"x": tf.cast(example["image"], tf.float32) / 255, "y": {"n": example["number"]}}

    monkeypatch.setattr(tf.data, "TFRecordDataset", None)
    spec = Split(toy, "train", decode).spec()
    assert spec["x"] == tf.TensorSpec([4, 3, 1], tf.float32)
    assert spec["y"]["n"] == tf.TensorSpec([], tf.int64)
    monkeypatch.undo()
    for way in ("resident", "streaming"):
        feed = training_feed(way, Split(toy, "train[:50%]", decode), Share(strategy_of(1)), 4, 0)
        got = feed.take(feed.draw(feed.chunk(3, 1), 0), 0, 1)
        expected = [pixels(n) / 255 for n in got["y"]["n"].numpy()]
        np.testing.assert_allclose(got["x"], expected, rtol=1e-6)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("split", ["train[10:60]", "train[90%:]", "train[:20]+test"])
def test_parts_of_splits(split, toy):
    expected = {int(n) for n in load(Split(toy, split))["number"]}
    size = Split(toy, split).size()
    for way in ("resident", "streaming"):
        feed = training_feed(way, Split(toy, split, None), Share(strategy_of(1)), 1, 0)
        numbers = draw(feed, strategy_of(1), 0, [size])["number"]
        assert len(numbers) == size and set(numbers.ravel().tolist()) == expected


def test_shuffles_in_blocks_reach_every_example(toy, monkeypatch):
    monkeypatch.setattr("trainer.data.shards.BLOCK_BYTES", 1)
    big = training_feed("streaming", Split(toy, "train", None), Share(strategy_of(1)), SIZE, 0)
    got = draw(big, strategy_of(1), 0, [2])["number"]
    assert sorted(got[0]) == sorted(got[1]) == list(range(SIZE))


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("way", ["resident", "streaming"])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("batch", [4, 32])
def test_evaluation_has_every_example_once(way, replicas, batch, toy):
    strategy = strategy_of(replicas)
    feed = evaluation_feed(way, Split(toy, "test", None), Share(strategy), batch)
    assert feed.steps == -(-22 // batch)
    expected = load(Split(toy, "test"))["number"]
    run = drawer(feed, strategy)
    for _ in range(2):  # an evaluation can be had again
        got = run(feed.chunk(0, feed.steps), feed.steps)
        numbers, mask = got["number"].numpy().ravel(), got[MASK].numpy().ravel()
        np.testing.assert_array_equal(numbers[:22], expected)
        np.testing.assert_array_equal(mask, np.arange(len(mask)) < 22)
        np.testing.assert_array_equal(numbers[22:], expected[0])
        check_rows({name: value.numpy() for name, value in got.items()})


def test_evaluation_over_workers(toy):
    whole = evaluation_feed("streaming", Split(toy, "test", None), Share(strategy_of(1)), 8)
    reference = draw(whole, strategy_of(1), 0, [3])
    for worker in (0, 1):
        feed = evaluation_feed("streaming", Split(toy, "test", None), Worker(strategy_of(1), 1, worker, 2), 8)
        iterator = feed.chunk(0, 3)
        for k in range(3):
            got = feed.take(feed.draw(iterator, k), worker, 2)
            rows = slice(4 * worker, 4 * worker + 4)
            np.testing.assert_array_equal(got["number"], reference["number"][k, rows])
            np.testing.assert_array_equal(got[MASK], reference[MASK][k, rows])


@pytest.mark.parametrize(
    "dtype", "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float64".split()
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 8)])
def test_pack_and_unpack(dtype, shape):
    rng = np.random.default_rng(0)
    array = (rng.random((6, *shape)) * 200 - 100).astype(dtype)
    packed = pack(array)
    back = unpack(tf.gather(packed, [4, 1]), tf.TensorSpec(shape, dtype))
    np.testing.assert_array_equal(back, array[[4, 1]])
    assert tf.as_dtype(packed.dtype) in GATHERED


def test_a_gpu_can_gather_what_is_packed():
    from tensorflow.python.framework import kernels

    registered = kernels.get_registered_kernels_for_op("GatherV2").kernel
    on_gpu = {
        constraint.allowed_values.list.type[0]
        for kernel in registered
        for constraint in kernel.constraint
        if kernel.device_type == "GPU" and constraint.name == "Tparams"
    }
    if not on_gpu:
        pytest.skip("this TensorFlow has no GPU kernels")
    assert {t.as_datatype_enum for t in GATHERED if t != tf.string} <= on_gpu


def test_residency(toy, monkeypatch):
    def choose(asked):
        return residency(asked, Split(toy, "train"), Share(strategy_of(1)))

    # 103 x (8 number, 12 image, 8 pair, 4 small, 64 for a string) bytes
    monkeypatch.setattr("trainer.data.choice.room", lambda devices: 103 * 96)
    assert [choose(a) for a in ("auto", "resident", "streaming")] == [
        "resident",
        "resident",
        "streaming",
    ]
    monkeypatch.setattr("trainer.data.choice.room", lambda devices: 103 * 96 - 1)
    assert choose("auto") == "host"
    monkeypatch.setattr("trainer.data.choice.host_room", lambda: 103 * 96 - 1)
    assert choose("auto") == "streaming"
    with pytest.raises(UserError, match=r"--data_residency=resident: toy train takes .* MiB"):
        choose("resident")
    monkeypatch.setattr(type(toy.builder.info), "file_format", tfds.core.FileFormat.RIEGELI)
    with pytest.raises(UserError, match="prepared as riegeli"):
        choose("auto")


def test_room_is_shared_by_the_replicas_of_a_host():
    one, two = room(("CPU:0",)), room(("CPU:0", "CPU:1"))
    assert 1 << 20 < one < 1 << 50
    assert two == pytest.approx(one / 2, rel=0.2)


def test_shapes_that_vary_are_refused(toy, monkeypatch):
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3))})
    monkeypatch.setattr(TfdsSource, "features", features)
    with pytest.raises(UserError, match=r"cannot be batched.*decode"):
        Split(toy, "train").spec()
    assert Split(toy, "train", lambda e: {"x": tf.image.resize(e["image"], (2, 2))}).spec()
    with pytest.raises(UserError, match="not a dict"):
        Split(toy, "train", lambda e: tf.zeros([2])).spec()


def test_streaming_order_stays_what_it_was(toy):
    # Of tfrecord files, drawn before there were other kinds: a resumed run relies on it, too.
    first = [85, 79, 16, 89, 50, 22, 51, 82, 76, 12, 19, 66, 32, 3, 83, 26, 10, 96, 35, 73, 34, 88, 20, 29]
    got = draw(feed_of("streaming", toy), strategy_of(1), 0, [3])["number"]
    assert got.ravel().tolist() == first
