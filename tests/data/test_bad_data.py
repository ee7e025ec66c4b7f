"""An example that cannot be used, in data that are not looked through beforehand: named as it comes."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.kinds import Items, arrays, tfrecord
from trainer.data.choice import training_feed
from trainer.data.feed import reading
from trainer.data.opening import Places, open_data, open_object
from trainer.data.records import load
from trainer.data.source import Split
from trainer.devices.replicas import Share
from trainer.errors import UserError

NAN, MISSING = 17, 41  # examples of train
SPEC = "(features='number: int64, half: float32, label: int64')"


def columns(which):
    found = arrays("train")
    if which == "nan":
        found["half"][NAN] = np.nan
    if which == "missing":
        found["label"][MISSING] = -1
    return found


class Bad(Items):
    def __init__(self, which):
        self._arrays = columns(which)


def source_of(kind, which, folder):
    if kind == "npy":
        for name, array in columns(which).items():
            np.save(folder / f"{name}.npy", array)
        return open_data(str(folder), Places())
    if kind == "tfrecords":
        tfrecord(folder / "train.tfrecord", columns(which))
        return open_data(f"{folder}{SPEC}", Places())
    if kind == "items":
        return open_object(Bad(which), "items")
    return open_object(tf.data.Dataset.from_tensor_slices(columns(which)), "dataset", shuffle=30)


def drawn(split, steps=13):
    """All examples of an epoch of 103, in batches of 8."""
    feed = training_feed("streaming", split, Share(tf.distribute.get_strategy()), 8, 3)
    with reading(feed, 0, steps):
        chunk = feed.chunk(0, steps)
        return np.concatenate([feed.draw(chunk, k)["number"].numpy() for k in range(steps)])


@pytest.mark.slow(but=3)
@pytest.mark.parametrize("kind", ["npy", "tfrecords", "items", "dataset"])
@pytest.mark.parametrize("which", ["nan", "missing"])
def test_it_is_named(kind, which, tmp_path):
    source = source_of(kind, which, tmp_path)
    number = NAN if which == "nan" else MISSING
    what = "half: not finite (NaN)" if which == "nan" else "label: -1 (the label is missing)"
    cut = f"split train[10:], example {number - 10}"  # of what is read in a row: its place in the part
    places = {"train": f"split train, example {number}"}
    if which == "nan":
        places["train[10:]"] = cut if kind in ("tfrecords", "dataset") else places["train"]
    for name, place in places.items():
        with pytest.raises(UserError) as error:
            drawn(Split(source, name))
        assert f"{place}, feature {what}. Mend the data, or give --bad_examples=keep" in str(error.value)
    with pytest.raises(UserError, match=rf"split train, example {number} .*feature {what.split(':')[0]}"):
        load(Split(source, "train"))
    kept = drawn(Split(source, "train", bad="keep"))
    assert sorted(kept[:103].tolist()) == list(range(103))


def test_labels_of_a_margin_are_none_that_are_missing(tmp_path):
    signs = {**arrays("train"), "label": arrays("train")["number"] % 2 * 2 - 1}
    tfrecord(tmp_path / "train.tfrecord", signs)
    assert len(drawn(Split(open_data(f"{tmp_path}{SPEC}", Places()), "train"))) == 104


def test_a_record_that_is_damaged_is_counted_in_the_order_of_its_file(tmp_path):
    tfrecord(tmp_path / "train.tfrecord", arrays("train"))
    records = (tmp_path / "train.tfrecord").read_bytes()
    start = records.index(list(tf.data.TFRecordDataset(str(tmp_path / "train.tfrecord")))[NAN].numpy())
    (tmp_path / "train.tfrecord").write_bytes(records[:start] + b"\xff" + records[start + 1 :])
    with pytest.raises(UserError, match=r"split train, example 17, cannot be read"):
        drawn(Split(open_data(f"{tmp_path}{SPEC}", Places()), "train"))
