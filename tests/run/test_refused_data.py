"""Refusals about data: one message, exit status 1, nothing read."""

import pytest

from tests.support.refusals import says

DATA = {
    "unknown": (dict(dataset="mnst"), "--dataset=mnst", "mnist"),
    "unknown, like a local one": (dict(dataset="digit"), "--dataset=digit", "digits"),
    "unknown config": (dict(dataset="emnist/leters"), "--dataset=emnist/leters", "letters"),
    "config of a set without any": (dict(dataset="mnist/foo"), "--dataset=mnist/foo", "no configs"),
    "unknown version": (dict(dataset="mnist:9.9.9"), "--dataset=mnist:9.9.9", "only: 3.0.1"),
    "unknown fallback": (dict(fallback_dataset="digts"), "--fallback_dataset=digts", "digits"),
    "dotted path to nothing": (dict(dataset="no.such.thing"), "--dataset=no.such.thing"),
    "unknown split": (dict(train_split="trian"), "--train_split=trian", "train (1437)", "test (360)"),
    "unknown split to evaluate": (dict(eval_split="validation"), "--eval_split=validation", "test (360)"),
    "empty split": (dict(train_split="train[:0]"), "--train_split=train[:0]", "no examples", "train (1437)"),
    "empty split to evaluate": (dict(eval_split="test[5:5]"), "--eval_split=test[5:5]", "no examples"),
    "unreadable split": (dict(train_split="train[:"), "--train_split=train[:", "train (1437)"),
    "no directory": (dict(manual_dir="/nowhere/at/all"), "--manual_dir=/nowhere/at/all", "no such directory"),
}


@pytest.mark.parametrize("case", DATA)
def test_data(refused, case):
    values, *words = DATA[case]
    says(refused(**values), *words)


@pytest.mark.parametrize("model", ["mnist_mlp(classes=7)", "mnist_cnn(classes=7)"])
def test_labels_that_the_model_cannot_take(refused, model):
    message = refused(model=model)
    says(message, "--dataset=digits", f"--model={model}: the labels", "7 classes", "classes=10")


def test_data_of_another_kind(refused, monkeypatch):
    monkeypatch.setattr("trainer.data.sources.tfds._unreachable", lambda url: "")
    message = refused(dataset="iris")
    says(message, "--dataset=iris", "--model=mnist_mlp", "image and label", "features, label")


DEVICES = {
    "no such GPU": (dict(devices="GPU:0,GPU:1"), "--devices=GPU:0,GPU:1", "no GPU:0", "CPU:0"),
    "no such CPU": (dict(devices="CPU:0,CPU:9"), "--devices=CPU:0,CPU:9", "no CPU:9", "CPU:3"),
    "twice the same": (dict(devices="CPU:1,CPU:1"), "--devices=CPU:1,CPU:1", "twice"),
    "two for one": (dict(devices="CPU:0,CPU:1", strategy="one"), "--devices=CPU:0,CPU:1", "one device"),
    "mirrored over nothing": (dict(strategy="mirrored"), "--strategy=mirrored", "--virtual_devices=2"),
    "unknown strategy": (dict(strategy="mirored"), "--strategy=mirored", "mirrored"),
    "batch that does not divide": (
        dict(devices="CPU:0,CPU:1", strategy="mirrored", batch_size="33"),
        "--batch_size=33",
        "2 replicas",
        "32 and 34",
    ),
    "too many virtual devices": (dict(virtual_devices="65"), "--virtual_devices=65", "64"),
    "no cluster": (dict(strategy="multi_worker"), "--strategy=multi_worker", "TF_CONFIG"),
}


@pytest.mark.parametrize("case", DEVICES)
def test_devices(refused, monkeypatch, case):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    values, *words = DEVICES[case]
    says(refused(**values), *words)
