"""Every kind of data keeps every promise: the batches are a function of (seed, step), whoever draws them."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.kinds import KINDS, SIZES, number_of, numbers
from tests.support.shares import Worker, drawing
from trainer.data.choice import evaluation_feed, order_of, training_feed
from trainer.data.feed import MASK, order
from trainer.data.records import elements_of, load
from trainer.data.source import Split, parts
from trainer.devices.replicas import Share
from trainer.devices.strategy import mirrored

WAYS = ("resident", "host", "streaming")
# What is drawn from memory is drawn by the same code, whatever it was read from: for some kinds only.
FROM_MEMORY = ("images", "items", "tfds_array_record")
IN_A_ROW = ("tfrecords", "dataset", "tfds_tfrecord")


@pytest.fixture(scope="module", params=list(KINDS))
def made(request, tmp_path_factory):
    """(its name, the source)"""
    return request.param, KINDS[request.param](tmp_path_factory.mktemp(request.param))


def needed(kind, way):
    if way != "streaming" and kind not in FROM_MEMORY:
        pytest.skip("drawn from memory as other kinds are")


def share_of(replicas=1, accumulate=1):
    strategy = (
        mirrored([f"CPU:{i}" for i in range(replicas)]) if replicas > 1 else tf.distribute.get_strategy()
    )
    return Share(strategy, accumulate)


def drawn(feed, share, start, steps):
    """Numbers [steps, batch] that all replicas together get, and the masks."""
    strategy, got, masks = share.strategy, [], []

    draw = drawing(feed, strategy)
    chunk = feed.chunk(start, steps)
    for i in range(steps):
        batch = {name: value.numpy() for name, value in draw(chunk, tf.constant(i)).items()}
        check(batch)
        got.append(number_of(batch))
        masks.append(batch.get(MASK))
    return np.array(got), np.array(masks)


def check(batch):
    """All of an example belongs together."""
    number = number_of(batch)
    np.testing.assert_array_equal(batch["label"], number % 3)
    if "half" in batch:
        np.testing.assert_array_equal(batch["half"], number / 2)


def test_what_it_is(made):
    kind, source = made
    assert dict(source.sizes()) == SIZES and source.prepared
    for split in SIZES:
        found = load(Split(source, split))
        whole = sorted(number_of(found).tolist())
        assert whole == numbers(split).tolist(), kind
        check(found)
    if kind not in ("images", "tfds_array_record", "tfds_tfrecord"):  # these have an order of their own
        np.testing.assert_array_equal(number_of(load(Split(source, "test"))), numbers("test"))
    spec = Split(source, "train").spec()
    assert spec["label"] == tf.TensorSpec([], tf.int64)
    assert spec["image"] == tf.TensorSpec([4, 6, 3], tf.uint8) if "image" in spec else "half" in spec
    assert len(source.fingerprint()) == 16 and source.fingerprint() == source.fingerprint()


@pytest.mark.slow(but=3)
@pytest.mark.parametrize("way", WAYS)
def test_once_per_epoch_and_the_same_after_a_resume(made, way):
    needed(made[0], way)
    kind, source = made
    split = Split(source, "train")
    whole, _ = drawn(training_feed(way, split, share_of(), 10, 3), share_of(), 0, 25)
    stream = whole.ravel()
    for epoch in (stream[:103], stream[103:206]):
        assert sorted(epoch.tolist()) == list(range(103))
    if kind != "dataset" or way != "streaming":
        assert not np.array_equal(stream[:103], stream[103:206])
    for step in (7, 13):
        resumed, _ = drawn(training_feed(way, split, share_of(), 10, 3), share_of(), step, 5)
        np.testing.assert_array_equal(resumed, whole[step : step + 5])
    if way == "streaming" and kind in IN_A_ROW:
        assert order_of(way, split) == "streaming"
    else:  # any example anywhere: the order is that of the feed
        assert order_of(way, split) == "resident"
        in_order = number_of(load(split))
        np.testing.assert_array_equal(stream[:250], in_order[order(3, 103, 0, 250)])


@pytest.mark.slow(but=3)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_the_same_batches(made, way, replicas):
    needed(made[0], way)
    split = Split(made[1], "train[:90%]")
    one, _ = drawn(training_feed(way, split, share_of(), 8, 3), share_of(), 11, 4)
    share = share_of(replicas)
    many, _ = drawn(training_feed(way, split, share, 8, 3), share, 11, 4)
    np.testing.assert_array_equal(one, many)


@pytest.mark.slow(but=2)
@pytest.mark.parametrize("way", ["host", "streaming"])
def test_two_workers_share_the_same_batches(made, way):
    needed(made[0], way)
    split = Split(made[1], "train")
    whole, _ = drawn(training_feed(way, split, share_of(), 8, 3), share_of(), 11, 4)
    for worker in (0, 1):
        feed = training_feed(way, split, Worker(tf.distribute.get_strategy(), 2, worker, 2), 8, 3)
        chunk = feed.chunk(11, 4)
        for k in range(4):
            rows = feed.draw(chunk, k)
            for a in (0, 1):  # of each accumulated batch of 4, the worker has 2
                mine = number_of(feed.take(rows, a * 2 + worker, 4))
                np.testing.assert_array_equal(mine, whole[k, 4 * a + 2 * worker :][:2])


@pytest.mark.slow(but=3)
@pytest.mark.parametrize("way", WAYS)
def test_every_example_is_evaluated_once(made, way):
    needed(made[0], way)
    split = Split(made[1], "test")
    expected = number_of(load(split))
    for replicas in (1, 2):
        share = share_of(replicas)
        feed = evaluation_feed(way, split, share, 8)
        assert feed.steps == 3
        for _ in range(2):
            got, mask = drawn(feed, share, 0, 3)
            np.testing.assert_array_equal(got.ravel()[:22], expected)
            np.testing.assert_array_equal(mask.ravel(), np.arange(24) < 22)


@pytest.mark.slow(but=4)
@pytest.mark.parametrize("split", ["train[:90%]", "train[90%:]", "train[10:20]+test[:5]"])
def test_parts_of_splits(made, split):
    kind, source = made
    found = Split(source, split)
    whole = {name: number_of(load(Split(source, name))) for name in SIZES}
    parts = {
        "train[:90%]": whole["train"][:93],
        "train[90%:]": whole["train"][93:],
        "train[10:20]+test[:5]": np.concatenate([whole["train"][10:20], whole["test"][:5]]),
    }
    np.testing.assert_array_equal(number_of(load(found)), parts[split])
    got, _ = drawn(training_feed("streaming", found, share_of(), found.size(), 0), share_of(), 0, 1)
    assert sorted(got.ravel().tolist()) == sorted(parts[split].tolist()), kind


def test_two_parts_meet_and_miss_nothing(made):
    """Whatever percentage a split is cut at: what is before and what is behind are all of it, each once."""
    whole = [np.asarray(e.numpy()).tolist() for e in elements_of(Split(made[1], "train"))]
    for percent in np.random.default_rng(0).integers(1, 100, 4):
        cut = [Split(made[1], f"train[{part}]") for part in (f":{percent}%", f"{percent}%:")]
        pieces = [[np.asarray(e.numpy()).tolist() for e in elements_of(split)] for split in cut]
        assert pieces[0] + pieces[1] == whole and [len(p) for p in pieces] == [s.size() for s in cut]


def test_parts_of_any_size_meet_and_miss_nothing():
    random = np.random.default_rng(1)
    for size in (1, 2, 3, 7, 99, 101, *random.integers(1, 10**8, 30).tolist()):
        for percent in random.integers(1, 100, 4):
            (first,), (rest,) = (
                parts(f"train[{cut}]", {"train": size}) for cut in (f":{percent}%", f"{percent}%:")
            )
            assert first[:2] == ("train", 0) and rest == ("train", first[2], size), (size, percent)


@pytest.mark.slow(but=5)
@pytest.mark.parametrize("way", ["resident", "streaming"])
def test_the_models_decode(made, way):
    def decode(example):
        value = example["image"][0, 0, 0] if "image" in example else example["number"]
        return {"number": tf.cast(value, tf.int64) * 2, "label": example["label"]}

    split = Split(made[1], "train", decode)
    feed = training_feed(way, split, share_of(), 103, 0)
    batch = feed.take(feed.draw(feed.chunk(0, 1), 0), 0, 1)
    assert sorted(batch["number"].numpy().tolist()) == list(range(0, 206, 2))
    np.testing.assert_array_equal(batch["label"], batch["number"].numpy() // 2 % 3)
