"""Two worker processes on this machine: the run of one process, one that breaks off, and what is refused."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.support import runs
from trainer.devices import cluster
from trainer.devices.agreement import check_same, digests, from_first, share
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    "--model=mnist_mlp",
    "--dataset=digits",
    "--eval_split=test[:101]",  # 25 batches and one example
    "--batch_size=4",
    "--train_for=1000",
    "--log_every=100",
    "--eval_every=250",
    "--save_every=100",
    "--keep=100",
    "--precision=float64",
    "--clip_norm=1",
    "--group=.*/b  sgd(momentum=0.9)  0.01  until=57%",
    "--group=.*  adam  cosine(1e-3)",
)


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def two_workers(*flags, own=((), ())):
    """Both processes, started; killed at the end if they still run."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    started = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {
            "TF_CONFIG": json.dumps(task),
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        command = [sys.executable, "run.py", "--strategy=multi_worker", *flags, *own[index]]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, **pipes))
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def ended(process, seconds=100):
    """(status, standard output, standard error)"""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def wait_for(path, processes, seconds=100):
    until = time.monotonic() + seconds
    while not path.exists():
        assert all(process.poll() is None for process in processes) and time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """A run of two workers from its start to its end; they prepare the data set at the same time."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    with two_workers(*FLAGS, data, f"--workdir={workdir}") as both:
        ends = [ended(process) for process in both]
    return workdir, ends


def assert_close(one, other, steps):
    """Two runs' weights, optimizer state and records are equal but for the order of sums in float64."""
    values, others = runs.state(one), runs.state(other)
    assert values.keys() == others.keys() and values["step"] == others["step"] == steps
    for name, value in values.items():
        scale = np.abs(value, dtype="float64").max(initial=1e-3)
        np.testing.assert_allclose(value / scale, others[name] / scale, rtol=0, atol=1e-10, err_msg=name)
    records, other_records = runs.records(one), runs.records(other)
    assert len(records) == len(other_records) > 4
    for record, expected in zip(records, other_records, strict=True):
        assert record.keys() == expected.keys()
        for key in ("loss", "accuracy", "step", "examples"):
            if key in record:
                assert record[key] == pytest.approx(expected[key], rel=1e-10, abs=0), (key, record)


@pytest.mark.slow
def test_two_workers_make_the_run_of_one_process(data, reference, tmp_path):
    workdir, ends = reference
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert runs.main(tmp_path, *FLAGS, data) == 0
    assert_close(workdir, tmp_path, 1000)
    assert {r["examples"] for r in runs.records(workdir) if r["kind"] == "eval"} == {101}


@pytest.mark.slow
def test_only_the_first_worker_says_and_writes_anything(reference):
    workdir, ends = reference
    (_, out, _), (_, silent, errors) = ends
    assert "worker 0 of 2 in the cluster" in out and "Summary" in out
    assert silent == "" and errors == ""
    names = sorted(path.name for path in workdir.iterdir())
    assert names == [
        *(".lock", "checkpoints", "environment.json", "evaluation.npz", "flags.txt", "metrics.jsonl"),
        *("plan.json", "report.html", "tensorboard"),
    ]
    assert len(list((workdir / "tensorboard" / "train").iterdir())) == 1
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == [
        f"step-{step:09d}" for step in range(100, 1001, 100)
    ]


@pytest.mark.slow
def test_a_signal_to_one_stops_all_a_dead_one_ends_all_and_the_same_command_goes_on(
    data, reference, tmp_path
):
    flags, checkpoints = (*FLAGS, data, f"--workdir={tmp_path}"), tmp_path / "checkpoints"
    with two_workers(*flags) as both:
        wait_for(checkpoints / "step-000000100", both)
        both[1].send_signal(signal.SIGTERM)
        ends = [ended(process) for process in both]
    assert [status for status, _, _ in ends] == [143, 143], ends
    stopped = runs.newest(tmp_path).step
    assert 100 <= stopped < 1000
    assert f"Stopped by a signal to another worker at step {stopped}" in ends[0][1]
    with two_workers(*flags) as both:
        wait_for(checkpoints / f"step-{(stopped // 100 + 1) * 100:09d}", both)
        both[1].kill()
        died = time.monotonic()
        status, out, err = ended(both[0])
        assert time.monotonic() - died < 60
    assert status == 1 and f"step {stopped} of 1000" in out
    message = err.strip().splitlines()[-1]
    assert message.startswith("run.py: --strategy=multi_worker: worker 0 cannot go on: worker 1 (127.0.0.1:")
    assert "same command" in message and "Traceback" not in err
    assert runs.newest(tmp_path).step < 1000
    with two_workers(*flags) as both:
        assert [ended(process)[0] for process in both] == [0, 0]
    runs.assert_same(reference[0], tmp_path)


@pytest.mark.slow
def test_streaming_workers_read_disjoint_rows_of_the_same_batches(data, tmp_path):
    flags = runs.last(*FLAGS, data, "--data_residency=streaming", "--accumulate=2", "--train_for=300")
    with two_workers(*flags, f"--workdir={tmp_path / 'two'}") as both:
        ends = [ended(process) for process in both]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert runs.main(tmp_path / "one", *flags) == 0
    assert_close(tmp_path / "two", tmp_path / "one", 300)


@pytest.mark.slow
def test_workers_started_with_other_flags_are_refused(data, tmp_path):
    with two_workers(
        *FLAGS, data, own=(["--seed=1", f"--workdir={tmp_path / 'a'}"], [f"--workdir={tmp_path / 'b'}"])
    ) as both:
        ends = [ended(process) for process in both]
    for status, _, err in ends:
        assert status == 1
        assert "the workers' flags differ: worker 0 has 'seed: 1', worker 1 has 'seed: 0'" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_example_runs_both_workers(data, tmp_path):
    flags = ["--flagfile=examples/two_workers.flags", "--mode=plan", "--dataset=digits", data]
    command = [sys.executable, "examples/two_workers.py", *flags, f"--plan_out={tmp_path / 'plan.json'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 replicas, 1 of them in this process (worker 0 of 2 in the cluster)") == 1
    assert json.loads((tmp_path / "plan.json").read_text())["batch_size"] == 128
    done = subprocess.run([*command, "--batch_size=3"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and done.stderr.count("--batch_size=3: does not divide into 2 replicas") == 2


# One process


def resolver(index=0):
    spec = tf.train.ClusterSpec({"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]})
    return tf.distribute.cluster_resolver.SimpleClusterResolver(spec, task_type="worker", task_id=index)


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        (
            "Collective ops is aborted by: ... remote target /job:worker/replica:0/task:1 while",
            "worker 1 (127",
        ),
        ("Error reported from /job:worker/task:1: unhealthy (stopped sending heartbeats)", "worker 1 (127"),
        ("Deadline Exceeded\n\nRPC: /tensorflow.CoordinationService/Heartbeat", "worker 1 (127"),  # no answer
    ],
)
def test_the_lost_worker_is_named(text, gone):
    message = str(cluster.lost(tf.errors.UnavailableError(None, None, text), resolver()))
    assert f"worker 0 cannot go on: {gone}" in message


def test_an_error_of_another_kind_is_not_the_loss_of_a_worker():
    assert cluster.lost(tf.errors.InternalError(None, None, "ptxas failed"), resolver()) is None


def test_who_waits_for_workers_says_for_which_and_gives_up(monkeypatch, capsys):
    given_up = []
    monkeypatch.setattr(cluster, "REMIND", 0.05)
    monkeypatch.setattr(cluster, "PATIENCE", 0.1)
    monkeypatch.setattr(os, "_exit", given_up.append)
    found = resolver()
    with cluster.awaiting(found):
        deadline = time.monotonic() + 30
        while not given_up and time.monotonic() < deadline:
            time.sleep(0.01)
    said = capsys.readouterr().err
    assert f"no answer from worker 1 ({cluster.tasks(found)['worker 1']})" in said and given_up[0] == 1


def test_one_worker_has_nobody_to_agree_with():
    strategy = tf.distribute.get_strategy()
    assert share(strategy, "text") == ["text"]
    assert from_first(strategy, lambda: "answer") == "answer"
    check_same(strategy, {"a": "b"}, "flags", "")
    assert digests(strategy, {"a": tf.Variable(1.0)}) == {}
    with pytest.raises(UserError, match="no"):
        from_first(strategy, refuse)


def refuse():
    raise UserError("no")
