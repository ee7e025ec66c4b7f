"""A trunk of keras.applications by examples/pretrained.flags, then all of it: minutes."""

from tests.support.exercise import BRIEF, exercise
from tests.support.runs import main, records

MODEL = '--model=pretrained(trunk="MobileNetV2", size=32, alpha=0.35)'


def test_a_trunk_with_a_head_then_its_last_blocks(data, tmp_path, monkeypatch):
    exercise(["--flagfile=examples/pretrained.flags", MODEL, *BRIEF, data], tmp_path, monkeypatch)


def test_then_all_of_it_with_layer_decay(data, tmp_path):
    first = ["--flagfile=examples/pretrained.flags", *BRIEF, data]
    assert main(tmp_path / "first", *first) == 0
    second = ["--flagfile=examples/pretrained_unfreeze.flags", *BRIEF, data]
    assert main(tmp_path / "second", *second, f"--init_from={tmp_path / 'first'}") == 0
    assert [r["step"] for r in records(tmp_path / "second") if r["kind"] == "eval"] == [2, 4]
