"""Runs on each kind of data that a real SIGKILL ends in mid-epoch: they go on to the same bits."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from examples import own_data
from tests.support.runs import assert_same, main, newest

ROOT = Path(__file__).resolve().parents[2]
RULES = ("--group=.* adam 1e-2", "--batch_size=20", "--eval_split=none", "--train_for=20", "--log_every=3")
SAVES = ("--save_every=4", "--keep=100", "--report_to=none")
PERCEPTRON = "--model=mnist_mlp(hidden=4)"

# The process ends as it is about to write its third checkpoint, in step 12 of 18 of the first epoch.
KILLED = """
import os, signal, sys
import run
from trainer.checkpoints import checkpoint
save = checkpoint.save
def until(directory, step, *rest):
    if step == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return save(directory, step, *rest)
checkpoint.save = until
run.main(sys.argv)
"""


class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The digits as array_record."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        kinds = {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kinds))

    def _split_generators(self, dl_manager):
        train = own_data.arrays()["train"]
        pairs = zip(train["image"], train["label"], strict=True)
        return {"train": ((i, {"image": x, "label": y}) for i, (x, y) in enumerate(pairs))}

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    own_data.write(folder)
    builder = Records(data_dir=folder / "tfds", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    return {
        "npz": f"{folder}/digits.npz",
        "npy": f"{folder}/npy",
        "photos": f"{folder}/photos(channels=1)",
        "records": f"{folder}/records(features='image: png[28,28,1], label: int64')",
        "array_record": f"{builder.data_dir}/",
        "items": "examples.own_data.make",
        "tf.data": "tests.support.own_pipelines.shuffled(shuffle=64)",
        "words": "tests.support.own_pipelines.words",
        "table": f"{ROOT}/examples/data/wine.csv(label='cultivar')",
    }


@pytest.mark.parametrize("kind", "npz npy photos records array_record items tf.data words table".split())
def test_killed_in_the_middle_of_an_epoch(kind, data, tmp_path):
    way = "resident" if kind == "npz" else "host" if kind == "words" else "streaming"
    own = {
        "words": ("--model=tests.support.own_pipelines", "--pad=tokens multiple=4 bucket=3"),
        "table": ("--model=table_mlp(columns=13, classes=3, label='cultivar')",),
    }.get(kind, (PERCEPTRON,))
    flags = (f"--dataset={data[kind]}", f"--data_residency={way}", *own, *RULES, *SAVES)
    assert main(tmp_path / "whole", *flags) == 0
    command = [sys.executable, "-c", KILLED, *flags, f"--workdir={tmp_path / 'killed'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert newest(tmp_path / "killed").step == 8
    assert main(tmp_path / "killed", *flags) == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")
