"""SIGKILL at random moments, over and over: `python -m tests.soak [KILLS [SEED]]`.

A small run is started and killed KILLS times, in and out of saves, before it has begun and while it
trains; then it may end. Every start must find a whole checkpoint once there was one, what a killed save
left must not survive the next start, and the end must have the bits of a run that was left alone.
"""

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

# Imported once, and forked for every start before TensorFlow has started anything.
import run
from trainer.modes import train  # noqa: F401

FLAGS = (
    "--model=mnist_mlp(hidden=8)",
    "--dataset=digits",
    "--train_split=train[:300]",
    "--eval_split=test[:50]",
    "--batch_size=20",
    "--train_for=6epochs",
    "--group=hidden1/.*  adam  cosine(1e-2)  name=late from=40",
    "--group=.*  sgd(momentum=0.9)  0.05  name=early",
    "--log_every=7",
    "--save_every=1",
    "--keep=4",
)


def start(workdir: Path, log: Path, *flags: str) -> int:
    """The process id of a run of its own."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = run.main(["run.py", *FLAGS, f"--workdir={workdir}", *flags])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def finish(pid: int, log: Path) -> None:
    """Waits for a run that must end well."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, log.read_text()


def names(directory: Path) -> set[str]:
    """What is in the directory of the checkpoints."""
    with contextlib.suppress(FileNotFoundError):
        return set(os.listdir(directory))
    return set()


def steps(directory: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max((int(n.split("-")[1]) for n in names(directory) if n.startswith("step-")), default=0)


def wait(pid: int, directory: Path, chance: random.Random) -> None:
    """Until the moment for the next kill, or the end of the run.

    One in four comes at any time since the start; the others so many saves after it, or as soon as one is
    seen unfinished, and then anywhere in the next ones.
    """
    began, goal = time.monotonic(), steps(directory) + chance.randrange(1, 10)
    kind = chance.choice(["any", "after", "after", "within"])
    limit = chance.uniform(0, 4) if kind == "any" else 120.0
    while (
        time.monotonic() < began + limit
        and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        if kind != "any" and steps(directory) >= goal:
            unfinished = any(n.startswith(".tmp-") for n in names(directory))
            if kind == "after" or unfinished:
                time.sleep(chance.uniform(0, 0.02) if kind == "after" else chance.uniform(0, 0.004))
                return
        time.sleep(0.0005)


def soak(directory: Path, kills: int, seed: int) -> None:
    """The test; raises AssertionError."""
    chance = random.Random(seed)
    shared, log = f"--data_dir={directory / 'data'}", directory / "log"
    whole, killed = directory / "whole", directory / "killed"
    checkpoints = killed / "checkpoints"
    finish(start(whole, log, shared), log)
    left: set[str] = set()
    within = count = 0
    while count < kills:
        before = steps(checkpoints)
        pid = start(killed, log, shared)
        wait(pid, checkpoints, chance)
        os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL), log.read_text()
        ended = status == 0
        check(checkpoints, log, before, left)
        count += not ended
        left = {n for n in names(checkpoints) if n.startswith(".tmp-")}
        within += bool(left)
        print(f"kill {count}: step {steps(checkpoints)}{', within a save' if left else ''}", flush=True)
        if ended:  # and on from an earlier step, for more kills
            for name in names(checkpoints):
                (checkpoints / name).rename(directory / f"done-{count}-{name}")
            left = set()
    finish(start(killed, log, shared), log)
    assert not {n for n in names(checkpoints) if not n.startswith("step-")}
    print(f"{count} kills, {within} of them within a save.")
    compare(whole, killed)


def check(checkpoints: Path, log: Path, before: int, left: set[str]) -> None:
    """What a start that was killed must have done: used a whole checkpoint, cleared what was left."""
    text = log.read_text()
    assert "damaged" not in text and "Traceback" not in text, text
    if steps(checkpoints) > before:
        assert not before or f"step {before} of" in text, text
        assert not left & names(checkpoints)


def compare(whole: Path, killed: Path) -> None:
    """In a process of its own, as reading starts TensorFlow."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            from tests.support.runs import assert_same

            assert_same(whole, killed)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the results differ"


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        soak(Path(folder), *(numbers + [40, 0][len(numbers) :]))
