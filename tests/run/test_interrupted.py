"""What ends a run from outside: its directory moved, its reader gone, its disk full."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.run.test_resume import ROOT, ticks, until
from tests.support import runs
from tests.support.runs import SMALL, assert_same, killed, main, newest, records
from trainer.checkpoints import checkpoint
from trainer.checkpoints.lock import Lock
from trainer.errors import UserError
from trainer.report.screen import Screen

FLAGS = (
    "--model=mnist_mlp(hidden=2)",
    "--group=.* sgd 0.1",
    "--dataset=digits",
    "--train_split=train[:200]",
    "--batch_size=20",
    "--train_for=30",
    "--log_every=5",
    "--save_every=10",
    "--eval_split=none",
)


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# The working directory, moved or deleted


def test_a_lock_knows_when_its_directory_is_another(tmp_path):
    with Lock(tmp_path / "run") as lock:
        lock.check()
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="is no longer the directory that this run began in"):
            lock.check()
        (tmp_path / "run").mkdir()
        with pytest.raises(UserError, match="moved, deleted or replaced"):
            lock.check()
        (tmp_path / "run").rmdir()
        (tmp_path / "elsewhere").rename(tmp_path / "run")
        lock.check()
    lock.check()  # without the lock there is nothing to check


@pytest.mark.slow
@pytest.mark.parametrize("what", ["moved", "deleted", "replaced"])
def test_a_directory_that_is_taken_away_ends_the_run_and_nothing_is_written_elsewhere(
    tmp_path, data, monkeypatch, capsys, what
):
    run, other = tmp_path / "run", tmp_path / "other"
    assert main(other, *FLAGS, data) == 0  # another's run, to be put in its place
    before = contents(other)
    save = checkpoint.save

    def disturbed(directory, step, *rest):
        path = save(directory, step, *rest)
        if step == 10:
            if what == "deleted":
                shutil.rmtree(run)
            else:
                run.rename(tmp_path / "moved")
            if what == "replaced":
                other.rename(run)
        return path

    monkeypatch.setattr(checkpoint, "save", disturbed)
    assert main(run, *FLAGS, data) == 1
    assert "is no longer the directory that this run began in" in capsys.readouterr().err
    if what == "replaced":
        assert contents(run) == before
    else:
        assert not run.exists()
    if what != "deleted":  # put back, it goes on
        if what == "replaced":
            run.rename(other)
        (tmp_path / "moved").rename(run)
        monkeypatch.undo()
        assert main(run, *FLAGS, data) == 0
        assert_same(run, other)


# Records that are gone


@pytest.mark.slow
@pytest.mark.parametrize("what", ["deleted", "cut", "garbled", "rewritten"])
def test_records_that_are_gone_are_said_to_be(tmp_path, data, monkeypatch, capsys, what):
    flags = [*SMALL, data, "--train_for=11"]
    killed(monkeypatch, 8, True, tmp_path, *flags)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    there = len([line for line in lines if json.loads(line)["step"] <= 8])
    assert there == 4  # log points 3 and 6, and at 8 an evaluation and one of the averages
    if what == "deleted":
        path.unlink()
    elif what == "cut":
        path.write_bytes(b"".join(lines[2:]))
    elif what == "garbled":
        path.write_bytes(b"\xff" + b"".join(lines))
    else:
        path.write_bytes(b"".join(lines).replace(b'"step": 3', b'"step": 2'))
    capsys.readouterr()
    assert main(tmp_path, *flags) == 0
    said = capsys.readouterr().out
    gone = {"deleted": "4 of 4 records", "cut": "2 of 4 records", "garbled": "1 of 4 records"}
    wanted = f"{gone[what]} up to step 8 are gone" if what in gone else "are not those that were written"
    assert "metrics.jsonl was deleted or changed since step-000000008" in said and wanted in said
    assert newest(tmp_path).step == 11


@pytest.mark.slow
def test_records_that_are_there_are_not_spoken_of(tmp_path, data, monkeypatch, capsys):
    flags = [*SMALL, data, "--train_for=11"]
    for step, saved in ((3, True), (5, False), (8, True)):
        killed(monkeypatch, step, saved, tmp_path, *flags)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 7')  # a torn line, as a kill may leave
    assert main(tmp_path, *flags) == 0
    assert "was deleted or changed" not in capsys.readouterr().out


# Signals, pipes and full disks


def start(tmp_path, data, *flags, **how):
    """As `tests.run.test_resume.start`, whose steps last and are counted, with an output of one's own."""
    model = f"--model=tests.support.slow(ticks='{tmp_path / 'ticks'}', seconds=0.2)"
    given = [model, "--dataset=digits", data, "--group=.* sgd 0.1", "--batch_size=10", "--train_for=100"]
    given += [f"--workdir={tmp_path / 'run'}", "--eval_split=none", *flags]
    return subprocess.Popen([sys.executable, "run.py", *given], cwd=ROOT, text=True, **how)


@pytest.mark.slow
def test_a_hang_up_saves_as_a_sigterm_does_and_nohup_is_heeded(tmp_path, data):
    process = start(tmp_path, data, stdout=subprocess.PIPE)
    until(tmp_path, 4)
    process.send_signal(signal.SIGHUP)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 129
    assert newest(tmp_path / "run").step == ticks(tmp_path)
    assert f"Stopped by a signal at step {ticks(tmp_path)}, saved." in said

    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = start(tmp_path, data, stdout=subprocess.PIPE, **ignoring)
    at = ticks(tmp_path)
    until(tmp_path, at + 2)
    process.send_signal(signal.SIGHUP)
    until(tmp_path, at + 5)  # it trains on
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.slow
def test_a_reader_that_goes_ends_the_run_which_saves(tmp_path, data):
    process = start(tmp_path, data, "--log_every=2", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(tmp_path, 5)
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=60) == 141  # as of SIGPIPE
    assert said == ""
    step = newest(tmp_path / "run").step
    assert step == ticks(tmp_path) < 20 and step % 2 == 0  # at the first log point after it
    assert [r["step"] for r in records(tmp_path / "run")] == list(range(2, step + 1, 2))


@pytest.mark.slow
def test_a_full_disk_under_the_output_ends_the_run_which_saves(tmp_path, data):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        done = start(tmp_path, data, stdout=full, stderr=subprocess.PIPE)
        said = done.communicate(timeout=60)[1]
    assert done.returncode == 1  # at the first sentence, before there is anything to save
    assert said.count("\n") == 1 and "Standard output cannot be written: No space left on device" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_an_output_that_fails_while_it_trains(tmp_path, data, monkeypatch, capsys):
    """The same within a run: what is lost is the output, and the state is saved."""
    note = Screen.note

    def full(screen, sentence, style=""):
        if "step 15/" in sentence:
            monkeypatch.setattr("builtins.print", lambda *a, **k: no_space())
        note(screen, sentence, style)

    def no_space():
        monkeypatch.undo()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Screen, "note", full)
    assert main(tmp_path, *FLAGS, data) == 1
    assert "Standard output cannot be written: No space left on device" in capsys.readouterr().err
    assert newest(tmp_path).step == 15
    assert main(tmp_path, *FLAGS, data) == 0 and newest(tmp_path).step == 30


@pytest.mark.slow
@pytest.mark.parametrize("what", ["write", "fsync"])
def test_records_that_cannot_be_written_end_the_run_which_saves(tmp_path, data, monkeypatch, capsys, what):
    whole = tmp_path / "whole"
    assert main(whole, *FLAGS, data) == 0
    real, calls = getattr(os, what), []

    def failing(descriptor, *rest):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/metrics.jsonl"):
            calls.append(1)
            if len(calls) == 3:
                if what == "write":
                    real(descriptor, rest[0][:7])  # half of it
                raise OSError(28, "No space left on device")
        return real(descriptor, *rest)

    monkeypatch.setattr(os, what, failing)
    status = main(tmp_path / "run", *FLAGS, data, "--save_every=10")
    said = capsys.readouterr().err
    assert status == 1 and "metrics.jsonl" not in said and "cannot be written: No space left" in said
    monkeypatch.undo()
    if what == "write":
        assert "The state of step 15 was saved." in said and newest(tmp_path / "run").step == 15
        assert [r["step"] for r in records(tmp_path / "run")] == [5, 10]  # nothing half-written
    assert main(tmp_path / "run", *FLAGS, data) == 0
    values, others = runs.state(whole), runs.state(tmp_path / "run")
    assert all(values[name].tobytes() == others[name].tobytes() for name in values)


def test_a_lock_that_cannot_be_written_is_one_message(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"cannot be used: No space left on device"), Lock(tmp_path):
        pass
    monkeypatch.undo()
    with Lock(tmp_path):
        pass


# Compiling


@pytest.mark.slow
def test_each_phase_says_that_it_compiles_and_the_rate_counts_from_then(tmp_path, data, monkeypatch, capsys):
    flags = [f for f in FLAGS if "--group" not in f and "--train_for" not in f]
    groups = ["--group=logits/.* sgd 0.1 name=head", "--group=.* sgd 0.1 name=body from=6", "--train_for=12"]
    from trainer.training.program import Program

    real = Program.trainer

    def slow(program, phase, feed):
        train, first = real(program, phase, feed), []

        def call(chunk, n):
            if not first:
                first.append(time.sleep(3))  # as if it compiled
            return train(chunk, n)

        return call

    monkeypatch.setattr(Program, "trainer", slow)
    assert main(tmp_path, *flags, *groups, data) == 0
    out = capsys.readouterr().out
    assert out.count("Compiling") == 2
    assert "Compiling steps 0 to 6 (head)" in out and "Compiling steps 6 to 12 (head, body)" in out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["examples_per_second"] for line in lines}
    # 4 of 5 steps in less than a second; counted in, three seconds would make it 33 examples a second.
    assert sorted(rates) == [5, 10, 12] and min(rates.values()) > 80
