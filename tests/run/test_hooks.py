"""`--hook`: what a function of the user's own is given, what it may do, and what it can not."""

import json
import time

import pytest

from tests.devices.test_agreement import ended, two_workers
from tests.support.runs import main, newest, records

FLAGS = (
    "--model=mnist_mlp(hidden=4)",
    "--dataset=digits",
    "--train_split=train[:200]",
    "--eval_split=test[:40]",
    "--batch_size=20",
    "--train_for=10",
    "--log_every=2",
    "--eval_every=5",
    "--group=.* adam 1e-2",
)
HOOKS = """
import json, sys
from pathlib import Path
import trainer

def on_record(record):
    with open({file!r}, "a") as file:
        file.write(json.dumps(record) + "\\n")

def stops(record):
    return trainer.STOP if record["kind"] == "eval" else None

def fails(record):
    raise ValueError("no such server")

def leaves(record):
    sys.exit(3)
"""


@pytest.fixture
def hooks(tmp_path, monkeypatch):
    """A module of hooks of a name of its own, and what its `on_record` has been given."""
    name = f"hooks_{abs(hash(str(tmp_path))):x}"
    (tmp_path / f"{name}.py").write_text(HOOKS.format(file=str(tmp_path / "given.jsonl")))
    monkeypatch.chdir(tmp_path)
    return name


def given(tmp_path):
    lines = map(json.loads, (tmp_path / "given.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]


def test_a_hook_is_given_every_record(hooks, tmp_path, data):
    assert main(tmp_path / "run", *FLAGS, data, f"--hook={hooks}.on_record") == 0
    assert given(tmp_path) == records(tmp_path / "run") != []
    assert {r["kind"] for r in given(tmp_path)} == {"train", "eval"}


@pytest.mark.slow
def test_a_hook_may_stop_the_run_which_goes_on_later(hooks, tmp_path, data, capsys):
    flags = [*FLAGS, data, f"--hook={hooks}.stops", f"--hook={hooks}.on_record"]
    assert main(tmp_path / "run", *flags) == 0
    assert newest(tmp_path / "run").step == 5 and not newest(tmp_path / "run").meta["finished"]
    assert "Stopped by a hook at step 5, saved." in capsys.readouterr().out
    assert main(tmp_path / "run", *FLAGS, data) == 0
    assert newest(tmp_path / "run").step == 10


def test_a_hook_that_fails_is_a_warning(hooks, tmp_path, data, capsys):
    flags = [*FLAGS, data, f"--hook={hooks}.fails", f"--hook={hooks}.leaves", f"--hook={hooks}.on_record"]
    assert main(tmp_path / "run", *flags) == 0
    said = capsys.readouterr().out
    assert f"--hook={hooks}.fails raised ValueError at step 2: no such server" in said
    assert f"--hook={hooks}.leaves raised SystemExit at step 2: 3" in said
    assert len(given(tmp_path)) == 7 and newest(tmp_path / "run").step == 10


@pytest.mark.parametrize(
    "path, words",
    [
        ("on_record", "not a function's path"),
        ("nowhere.on_record", "No module named 'nowhere'"),
        ("{}.on_recrd", "Did you mean on_record?"),
        ("{}.json", "has no function json"),
    ],
)
def test_what_is_no_hook_is_refused_before_anything(hooks, tmp_path, data, capsys, path, words):
    assert main(tmp_path / "run", *FLAGS, data, f"--hook={path.format(hooks)}") == 1
    said = capsys.readouterr().err
    assert words in said and "--hook=" in said and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_of_two_workers_the_first_calls_and_both_stop(hooks, tmp_path, data, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flags = (*FLAGS, data, f"--hook={hooks}.stops", f"--hook={hooks}.on_record")
    with two_workers(*flags, f"--workdir={tmp_path / 'run'}") as both:
        ends = [ended(process) for process in both]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert newest(tmp_path / "run").step == 6  # one step after the evaluation, for all to hear of it
    assert [r["step"] for r in given(tmp_path) if r["kind"] == "eval"] == [5]


def test_mlflow_keeps_the_run_in_its_local_store(tmp_path, data, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as active:
        assert main(tmp_path / "run", *FLAGS, data, "--hook=examples.mlflow_hook.on_record") == 0
    client = mlflow.MlflowClient()
    for metric, kind in (("loss", "train"), ("accuracy", "eval")):
        kept = {m.step: m.value for m in client.get_metric_history(active.info.run_id, f"{kind}/{metric}")}
        expected = {r["step"]: r[metric] for r in records(tmp_path / "run") if r["kind"] == kind}
        assert kept == expected != {}


def test_weights_and_biases_keeps_the_run_offline(tmp_path, data, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main(tmp_path / "run", *FLAGS, data, "--hook=examples.wandb_hook.on_record") == 0
    wandb.finish()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert "raised" not in capsys.readouterr().out
    # JSON text among protocol buffers, which a process of wandb's own writes when it comes to it.
    expected = [f"{r['kind']}/accuracy" for r in records(tmp_path / "run")]
    expected += [json.dumps(r["accuracy"]) for r in records(tmp_path / "run")]
    until = time.monotonic() + 30
    while missing := [text for text in expected if text.encode() not in file.read_bytes()]:
        assert time.monotonic() < until, missing
        time.sleep(0.1)
