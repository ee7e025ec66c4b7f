"""Full disks, missing rights and interrupted writes cost no checkpoint that was there."""

import contextlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf

from tests.support.checkpoints import content, names, saved, state
from trainer.checkpoints import checkpoint
from trainer.checkpoints.lock import Lock
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def mounted(path, options):
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("mounting a tmpfs needs root and the right to mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_is_an_error_and_leaves_no_litter(tmp_path):
    with mounted(tmp_path / "small", "size=300k") as disk:
        checkpoint.save(disk / "checkpoints", 1, state(1.0), {})
        before = content(disk)
        with pytest.raises(UserError, match=r"step 2 could not be saved in .*No space left") as e:
            checkpoint.save(disk / "checkpoints", 2, state(2.0, size=100_000), {})
        assert "Free some space" in str(e.value) and "function_node" not in str(e.value)
        assert content(disk) == before and names(disk / "checkpoints") == ["step-000000001"]
        assert checkpoint.newest(disk / "checkpoints")[0].step == 1
        with pytest.raises(UserError, match="could not be saved"):  # the manifest does not fit
            checkpoint.save(disk / "checkpoints", 2, state(2.0), {"meta": "x" * 400_000})
        assert content(disk) == before and names(disk / "checkpoints") == ["step-000000001"]


def test_a_read_only_directory_is_an_error(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        saved(disk, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(UserError, match=r"step 2 could not be saved.*Read-only"):
            checkpoint.save(disk, 2, state(), {})
        assert checkpoint.newest(disk)[0].step == 1 and names(disk) == ["step-000000001"]
        with Lock(disk):  # nothing is written by it; the first save will tell
            pass
        with pytest.raises(UserError, match=r"cannot be used.*Read-only"), Lock(disk / "run"):
            pass


@pytest.mark.parametrize("where", ["mkdir", "fsync", "rename"])
def test_a_failing_system_call_is_an_error_and_leaves_no_litter(tmp_path, monkeypatch, where):
    saved(tmp_path, 1)
    before = content(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(os if where == "fsync" else Path, where, fail)
        with pytest.raises(UserError, match="No space left"):
            checkpoint.save(tmp_path, 2, state(), {})
    assert content(tmp_path) == before and names(tmp_path) == ["step-000000001"]


def test_a_file_where_the_directory_should_be(tmp_path):
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(UserError, match="cannot be listed"):
        checkpoint.newest(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="could not be saved"):
        checkpoint.save(tmp_path / "checkpoints", 1, state(), {})


SAVER = """
import os, sys
from pathlib import Path
import tensorflow as tf
from trainer.checkpoints import checkpoint
from trainer.checkpoints.lock import Lock
work = Path(sys.argv[1])
with Lock(work):
    print("clean", *checkpoint.clean(work / "checkpoints"), flush=True)
    state = {"a/w": tf.Variable(tf.zeros([200, 200])), "step": tf.Variable(0, dtype=tf.int64)}
    entry, notes = checkpoint.newest(work / "checkpoints")
    assert not notes, notes
    if entry:
        checkpoint.load(entry, state)
    print("start", entry.step if entry else 0, [n for n in os.listdir(work / "checkpoints")
          if n.startswith(".")] if entry else [], flush=True)
    step = entry.step if entry else 0
    while True:
        step += 1
        state["a/w"].assign(tf.fill([200, 200], float(step)))
        state["step"].assign(step)
        checkpoint.save(work / "checkpoints", step, state, {"step": step})
        print("saved", step, flush=True)
        checkpoint.prune(work / "checkpoints", 2)
"""


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost(tmp_path):
    rng = random.Random(1)
    last = 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        line = child.stdout.readline()
        assert line == "clean\n", line + child.stderr.read()
        line = child.stdout.readline()
        assert line.startswith("start"), line + child.stderr.read()
        start = int(line.split()[1])
        assert start >= last and line.split(maxsplit=2)[2] == "[]\n", line
        assert child.stdout.readline() == f"saved {start + 1}\n"
        time.sleep(rng.uniform(0.0, 0.1))
        child.send_signal(signal.SIGKILL)
        lines = child.communicate()[0].splitlines()
        last = int(lines[-1].split()[1]) if lines and lines[-1].startswith("saved ") else start + 1
        entry, notes = checkpoint.newest(tmp_path / "checkpoints", set_aside=False)
        assert entry.step >= last and notes == []
        read = {"a/w": tf.Variable(tf.zeros([200, 200])), "step": tf.Variable(0, dtype=tf.int64)}
        checkpoint.load(entry, read)
        assert read["step"].numpy() == entry.step == read["a/w"].numpy().max()
        assert read["a/w"].numpy().min() == entry.step


def test_a_second_process_is_refused_and_told_which_holds_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from trainer.checkpoints.lock import Lock\n"
        "with Lock(Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as child:
        assert child.stdout.readline() == "held\n"
        os.unlink(tmp_path / ".lock")  # removing the file does not let a second one in
        for text in ("another training process\\.", f"process \\(process {child.pid}\\)"):
            with pytest.raises(UserError, match=text), Lock(tmp_path):
                pass
            (tmp_path / ".lock").write_text(f"{child.pid}\n")
        child.send_signal(signal.SIGKILL)
        child.wait()
        with Lock(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_given_back(tmp_path):
    for _ in range(2):
        with (
            Lock(tmp_path / "new"),
            pytest.raises(UserError, match="in use"),
            Lock(tmp_path / "new"),
        ):
            pass


def test_a_hostile_lock_file_is_harmless(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for i, make in enumerate(
        [
            lambda path: path.mkdir(),
            lambda path: path.symlink_to(precious),
            lambda path: path.hardlink_to(precious),
            os.mkfifo,
            lambda path: path.write_bytes(b"\xff" * 100),
            lambda path: path.write_text("999999999"),
        ]
    ):
        work = tmp_path / str(i)
        work.mkdir()
        make(work / ".lock")
        with Lock(work), pytest.raises(UserError, match="in use"), Lock(work):
            pass
        with Lock(work):
            pass
    assert precious.read_text() == "precious" and stat.S_ISDIR((tmp_path / "0/.lock").stat().st_mode)
