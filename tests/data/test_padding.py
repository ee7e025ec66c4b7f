"""Examples of different lengths: padded to the longest of the global batch, masked, and sorted by length."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.support.harness import mirrored
from tests.support.shares import drawing
from trainer.data.choice import evaluation_feed, training_feed
from trainer.data.feed import MASK, order, permutation
from trainer.data.opening import open_object
from trainer.data.padding import bucketed, parse_pads
from trainer.data.source import Split
from trainer.devices.replicas import Share
from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.run.assemble import assemble

SIZE = 57
LENGTHS = np.random.default_rng(0).integers(0, 30, SIZE)
TOKENS = [np.arange(n) * 3 + i for i, n in enumerate(LENGTHS)]
POINTS = [np.stack([row, -row], 1).astype(np.float32) for row in TOKENS]


class Items:
    def __len__(self):
        return SIZE

    def __getitem__(self, i):
        return {"tokens": TOKENS[i], "points": POINTS[i], "label": i}


ARRAYS = {"tokens": TOKENS, "points": POINTS, "label": np.arange(SIZE)}
PADS = ("tokens multiple=4 max=24 value=-7", "points")


def source_of(kind):
    if kind == "dataset":
        spec = {"tokens": tf.TensorSpec([None], tf.int64), "points": tf.TensorSpec([None, 2])}
        spec["label"] = tf.TensorSpec([], tf.int64)
        data = tf.data.Dataset.from_generator(
            lambda: iter([Items()[i] for i in range(SIZE)]), output_signature=spec
        )
        return open_object((data, SIZE), kind, shuffle=20)
    return open_object(ARRAYS if kind == "arrays" else Items(), kind)


def check(batch, numbers):
    """A batch has these examples, padded as the rules say."""
    longest = max(min(len(TOKENS[i]), 24) for i in numbers)
    length = min(-(-max(longest, 1) // 4) * 4, 24)
    assert batch["tokens"].shape == (len(numbers), length)
    for row, mask, i in zip(batch["tokens"], batch["tokens_mask"], numbers, strict=True):
        kept = TOKENS[i][:24]
        np.testing.assert_array_equal(row, np.pad(kept, (0, length - len(kept)), constant_values=-7))
        np.testing.assert_array_equal(mask, np.arange(length) < len(kept))
    length = max(max(len(TOKENS[i]) for i in numbers), 1)
    for row, mask, i in zip(batch["points"], batch["points_mask"], numbers, strict=True):
        np.testing.assert_array_equal(row, np.pad(POINTS[i], ((0, length - len(POINTS[i])), (0, 0))))
        np.testing.assert_array_equal(mask, np.arange(length) < len(POINTS[i]))


def batches(feed, share, start, steps):
    """The whole batches, put together again from what the replicas took."""
    strategy, chunk = share.strategy, feed.chunk(start, steps)

    draw = drawing(feed, strategy)
    return [{k: v.numpy() for k, v in draw(chunk, tf.constant(i)).items()} for i in range(steps)]


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("kind", ["arrays", "items", "dataset"])
@pytest.mark.parametrize("way", ["resident", "host", "streaming"])
def test_padded_to_the_longest_of_the_global_batch(kind, way):
    split = Split(source_of(kind), "train", pads=parse_pads(PADS))
    assert split.spec()["tokens_mask"] == tf.TensorSpec([None], tf.bool)
    for replicas in (1, 2):
        share = Share(mirrored(replicas) if replicas > 1 else tf.distribute.get_strategy())
        got = batches(training_feed(way, split, share, 8, 3), share, 0, 16)
        if not (kind == "dataset" and way == "streaming"):
            expected = order(3, SIZE, 0, 16 * 8).reshape(16, 8)
            np.testing.assert_array_equal([b["label"] for b in got], expected)
        for batch in got:
            check(batch, batch["label"])
        again = batches(training_feed(way, split, share, 8, 3), share, 9, 2)
        np.testing.assert_array_equal(again[0]["tokens"], got[9]["tokens"])


@pytest.mark.parametrize("way", ["resident", "host", "streaming"])
def test_evaluation_has_each_once(way):
    split = Split(source_of("items"), "train", pads=parse_pads(PADS))
    share = Share(mirrored(2))
    got = batches(evaluation_feed(way, split, share, 8), share, 0, 8)
    labels = np.concatenate([b["label"] for b in got])
    np.testing.assert_array_equal(labels[:SIZE], np.arange(SIZE))
    np.testing.assert_array_equal(np.concatenate([b[MASK] for b in got]), np.arange(64) < SIZE)
    for batch in got:
        check(batch, batch["label"])


def test_order_of_buckets_by_hand():
    lengths, batch, window = LENGTHS, 5, 3
    permute = bucketed(permutation, lengths, batch, window)
    for epoch in (0, 1, 2):
        plain, sorted_ = permutation(4, SIZE, epoch), permute(4, SIZE, epoch)
        assert sorted(sorted_) == list(range(SIZE))
        first = -epoch * SIZE % batch  # the batch that began in the epoch before
        np.testing.assert_array_equal(sorted_[:first], plain[:first])
        for start in range(first, SIZE, window * batch):  # no example leaves its window
            piece = slice(start, start + window * batch)
            assert sorted(sorted_[piece]) == sorted(plain[piece])
            rows = lengths[sorted_[piece]]
            whole = rows[: len(rows) // batch * batch].reshape(-1, batch)
            spans = sorted((row.min(), row.max()) for row in whole)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert not np.array_equal(permute(4, SIZE, 0), permute(5, SIZE, 0))


def test_buckets_waste_less_and_resume():
    def waste(rule):
        split = Split(source_of("arrays"), "train", pads=parse_pads([rule, "points"]))
        feed = training_feed("resident", split, Share(tf.distribute.get_strategy()), 8, 3)
        share = Share(tf.distribute.get_strategy())
        whole = batches(feed, share, 0, 21)
        resumed = batches(training_feed("resident", split, share, 8, 3), share, 10, 3)
        np.testing.assert_array_equal(resumed[1]["tokens"], whole[11]["tokens"])
        labels = np.concatenate([b["label"] for b in whole])[: 2 * SIZE]
        assert sorted(labels) == sorted([*range(SIZE)] * 2)
        hosted = batches(training_feed("host", split, share, 8, 3), share, 0, 21)
        np.testing.assert_array_equal(hosted[20]["tokens"], whole[20]["tokens"])
        return 1 - np.mean([b["tokens_mask"].mean() for b in whole])

    assert waste("tokens bucket=7") < 0.6 * waste("tokens")


def test_rules_that_cannot_be_meant():
    def refused(*texts):
        with pytest.raises(UserError) as error:
            parse_pads(texts)
        return str(error.value)

    assert "begins with the name of a feature" in refused("multiple=4")
    assert "Did you mean multiple" in refused("x multipel=4")
    assert "not a whole number above 0" in refused(
        "x multiple=0"
    ) and "max=10 is not a multiple of 4" in refused("x multiple=4 max=10")
    assert "has a rule already" in refused("x", "x max=4")
    source = source_of("items")
    with pytest.raises(
        UserError, match=r"points float32\[None, 2\] differs in length.*--pad='points multiple=16'"
    ):
        Split(source, "train", pads=parse_pads(["tokens"])).spec()
    with pytest.raises(UserError, match=r"--pad=token: there is no feature token. Did you mean tokens"):
        Split(source, "train", pads=parse_pads([*PADS, "token"])).spec()
    with pytest.raises(UserError, match=r"label int64.* has one length"):
        Split(source, "train", pads=parse_pads([*PADS, "label"])).spec()
    with pytest.raises(UserError, match=r"--data_residency=streaming does not know"):
        split = Split(source, "train", pads=parse_pads(["tokens bucket=3", "points"]))
        training_feed("streaming", split, Share(tf.distribute.get_strategy()), 8, 0)


def build():
    tokens = keras.Input([None], dtype="int64", name="tokens")
    x = keras.layers.Embedding(200, 8, name="embed")(tokens)
    return keras.Model(tokens, keras.layers.Dense(4, name="head")(x))


def loss(model, batch, training):
    """The mean over the real tokens of an example."""
    logits, weight = model(batch["tokens"]), tf.cast(batch["tokens_mask"], tf.float64)
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["tokens"] % 4, logits)
    return tf.reduce_sum(each * weight, 1) / tf.maximum(tf.reduce_sum(weight, 1), 1), {}


def trained(strategy=None, **flags):
    data = {"train": {"tokens": TOKENS}, "test": {"tokens": TOKENS[:13]}}
    config = Config(
        model=trainer.ModelModule(build=build, loss=loss), dataset=data, group=[".* adam 1e-2"], train_for=12,
        precision="float64",
        **{"pad": ["tokens multiple=4"], "batch_size": 8, **flags},
    )  # fmt: skip
    config.check()
    made = assemble(config, on=(strategy or tf.distribute.get_strategy(), ""))
    program, feed = made.program(), made.training_feed()
    program.trainer(made.parts.phases[0], feed)(feed.chunk(0, 12), tf.constant(12))
    rest = made.evaluation_feed()
    sums = program.evaluator(rest)(rest.chunk(0, rest.steps), tf.constant(rest.steps))[0].numpy()
    return {v.name: v.value.numpy() for v in made.built.variables}, sums


@pytest.mark.slow
def test_a_model_learns_the_same_whatever_the_padding_and_the_replicas():
    expected, sums = trained()
    assert sums[1] == 13  # padding of the last batch counts nothing
    cases = {
        "more padding": {"pad": ["tokens multiple=32 value=3"]},
        "host": {"data_residency": "host"},
        "streaming": {"data_residency": "streaming"},
        "two replicas": {"strategy": mirrored(2)},
        "accumulated": {"batch_size": 4, "accumulate": 2},
        "two, streaming": {"strategy": mirrored(2), "data_residency": "streaming"},
    }
    for case, flags in cases.items():
        found, other = trained(**flags)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=case)
        np.testing.assert_allclose(other, sums, rtol=1e-9, err_msg=case)
