"""Whole runs on data of one's own: interrupted and gone on with, changed, broken, overlapping."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from examples import own_data
from tests.support.runs import assert_same, killed, main, newest
from trainer.checkpoints import checkpoint, manifest
from trainer.data.streaming import Streaming
from trainer.training.log_points import LogPoints

RULES = ("--model=mnist_mlp(hidden=4)", "--group=.* adam 1e-2", "--batch_size=20", "--eval_split=none")
LENGTH = ("--train_for=12", "--log_every=3", "--save_every=2", "--keep=100")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    own_data.write(folder)
    return folder


def datasets(files):
    return {
        "npz": f"{files}/digits.npz",
        "photos": f"{files}/photos(channels=1)",
        "records": f"{files}/records(features='image: png[28,28,1], label: int64')",
        "items": "examples.own_data.make",
        "tf.data": "tests.support.own_pipelines.shuffled(shuffle=64)",
    }


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("kind", ["npz", "photos", "records", "items", "tf.data"])
@pytest.mark.parametrize("way", ["auto", "streaming"])
def test_a_killed_run_goes_on_to_the_same_bits(kind, way, files, tmp_path, monkeypatch):
    if (kind, way) in (("tf.data", "auto"), ("npz", "streaming")):
        pytest.skip("drawn in the same way as another case")
    flags = (f"--dataset={datasets(files)[kind]}", f"--data_residency={way}", *RULES, *LENGTH)
    # 360 examples in steps of 20: an epoch ends at 18, the kill is in the middle of one.
    assert main(tmp_path / "whole", *flags, "--train_for=20") == 0
    killed(monkeypatch, 8, True, tmp_path / "killed", *flags, "--train_for=20")
    assert main(tmp_path / "killed", *flags, "--train_for=20") == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")


def plan_of(workdir):
    return newest(workdir).meta["plan"]


@pytest.mark.slow
def test_changed_data_are_drift(files, tmp_path, capsys):
    folder = shutil.copytree(files / "photos", tmp_path / "photos")
    flags = (f"--dataset={folder}(channels=1)", *RULES, *LENGTH)
    assert main(tmp_path / "run", *flags) == 0
    before = plan_of(tmp_path / "run")["fingerprint"]
    assert len(before) == 16 and plan_of(tmp_path / "run")["classes"] == {
        "label": [str(i) for i in range(10)]
    }
    for file in sorted(folder.rglob("*.png"))[:2]:  # times tell nothing
        file.touch()
    assert main(tmp_path / "run", *flags, "--train_for=14") == 0
    one, other = sorted((folder / "train/3").glob("*.png"))[:2]
    one.write_bytes(other.read_bytes())
    capsys.readouterr()
    assert main(tmp_path / "run", *flags, "--train_for=16") == 1
    said = capsys.readouterr().err
    assert f"- fingerprint: {before}" in said and "--accept_plan_change" in said
    assert main(tmp_path / "run", *flags, "--train_for=16", "--accept_plan_change") == 0


@pytest.mark.slow
def test_a_plan_saved_without_the_field_is_no_drift(files, tmp_path, monkeypatch):
    from trainer.run.assemble import Assembled

    flags = (f"--dataset={files}/digits.npz", *RULES, *LENGTH)
    with monkeypatch.context() as patch:
        patch.setattr(Assembled, "_of_the_data", lambda self: {})
        assert main(tmp_path / "run", *flags) == 0
    assert "fingerprint" not in plan_of(tmp_path / "run")
    assert main(tmp_path / "run", *flags, "--train_for=14") == 0
    assert "fingerprint" in plan_of(tmp_path / "run") and newest(tmp_path / "run").step == 14


def test_a_file_that_breaks_while_it_trains(files, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(files / "photos", tmp_path / "photos")
    flags = (
        f"--dataset={folder}(channels=1)",
        "--data_residency=streaming",
        *RULES,
        "--train_for=100",
        "--save_every=5",
    )
    save = checkpoint.save

    def breaking(directory: Path, step: int, *rest):
        if step == 10:
            for file in (folder / "train/7").glob("*.png"):
                file.write_bytes(b"no more")
        return save(directory, step, *rest)

    monkeypatch.setattr(checkpoint, "save", breaking)
    assert main(tmp_path / "run", *flags) == 1
    said = capsys.readouterr().err
    assert "split train, example" in said and f"({folder}/train/7/" in said and "cannot be read" in said
    assert "Traceback" not in said and len(said.splitlines()) < 4, said
    # Every step that was done is saved, though a checkpoint was due at every 5th only.
    steps = [entry.step for entry in manifest.scan(tmp_path / "run" / "checkpoints")]
    assert f"The state of step {max(steps)} was saved" in said or max(steps) % 5 == 0, (steps, said)
    assert max(steps) >= 10


@pytest.mark.slow
def test_waiting_for_data_is_measured(files, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(Streaming, "waited", lambda self: asked.append(1) or 0.4)
    # 3 steps of 20 examples a second.
    monkeypatch.setattr(LogPoints, "_rate", lambda self, step, seconds: 60.0)
    flags = ("--dataset=examples.own_data.make", "--data_residency=streaming", *RULES, *LENGTH)
    assert main(tmp_path / "run", *flags) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    shares = [line["input_wait"] for line in lines if line["kind"] == "train"]
    # The first step is the one that compiled: neither it nor what it waited for is in a share.
    assert shares == pytest.approx([0.6, 0.4, 0.4, 0.4]) and len(asked) == 5
    said = capsys.readouterr().out
    assert "60% of the time steps wait for their data" in said and "--data_residency=host" in said
    assert main(tmp_path / "quick", f"--dataset={files}/digits.npz", *RULES, *LENGTH) == 0
    assert "input_wait" not in (tmp_path / "quick/metrics.jsonl").read_text()


def test_overlap_is_said_and_a_missing_split_has_a_way_out(files, tmp_path, capsys):
    rules = (*RULES[:3], "--train_for=4")
    photos = f"--dataset={files}/photos(channels=1)"
    assert main(None, photos, *rules, "--train_split=train", "--eval_split=train[90%:]", "--mode=plan") == 0
    said = capsys.readouterr().out
    assert "--eval_split=train[90%:]: 36 of its examples are trained on" in said
    assert (
        main(None, photos, *rules, "--train_split=train[:90%]", "--eval_split=train[90%:]", "--mode=plan")
        == 0
    )
    assert "trained on" not in capsys.readouterr().out
    assert main(None, f"--dataset={files}/photos/train(channels=1)", *rules, "--mode=plan") == 1
    said = capsys.readouterr().err
    assert "--eval_split=test: not a split" in said and "--eval_split=train[90%:]" in said


def test_labels_beyond_the_model_are_refused_before_training(tmp_path, capsys):
    image = np.zeros([20, 28, 28, 1], np.uint8)
    np.savez(tmp_path / "d.npz", image=image, label=np.arange(20) % 12)
    assert main(tmp_path / "run", f"--dataset={tmp_path}/d.npz", *RULES, *LENGTH) == 1
    assert "labels run from 0 to 11 but the model has 10 classes" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_tells_how_examples_were_padded(tmp_path):
    data = "--dataset=tests.support.own_pipelines.words"
    flags = (
        data,
        "--model=tests.support.own_pipelines",
        "--pad=tokens multiple=4 bucket=2",
        *RULES[1:],
        *LENGTH,
    )
    assert main(tmp_path / "run", *flags) == 0
    assert plan_of(tmp_path / "run")["pad"] == ["tokens multiple=4 bucket=2"]
    assert main(tmp_path / "run", *flags[:2], "--pad=tokens", *flags[3:], "--train_for=14") == 1
