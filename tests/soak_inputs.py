"""Bad inputs from seeds: `python -m tests.soak_inputs [CASES [FIRST SEED [ENVIRONMENTS]]]`.

Each seed makes one input: flags, rules, a model module, a builder, files or an environment, with something
wrong in most. None may end in a traceback, hang, drive the terminal, or exit with 0 and nothing trained.
A case runs in a fork of this process, which has imported TensorFlow and not started it; those of the
environment run in a process of their own, and not at all where ENVIRONMENTS is 0. A failure prints its
seed: `python -m tests.soak_inputs 1 SEED` is that case alone.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import run
from tests.support import bad_inputs
from tests.support.bad_case import Case, good
from trainer.modes import plan, train  # noqa: F401

PATIENCE = 120.0  # seconds; a machine that is busy takes many times what a case needs
ROOT = Path(run.__file__).parent


def fork(case: Case, folder: Path, log: Path) -> int:
    """The process id of the case, run by `run.main` in a fork."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setpgid(0, 0)
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.path.insert(0, str(folder))
        os.chdir(folder)
        status = run.main(["run.py", *case.flags])
    except SystemExit as leave:  # as the interpreter takes it
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def start(case: Case, folder: Path, log: Path) -> int:
    """The process id of the case, as a shell starts it in its environment."""
    command = ["bash", "-c", f'{case.before} "$@" {case.after}', "bash", sys.executable, str(ROOT / "run.py")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    environment = {**environment, "PYTHONPATH": str(folder), **case.environment}
    with open(log, "wb") as file:
        return subprocess.Popen(
            [*command, *case.flags],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        ).pid


def wait(pid: int) -> int | None:
    """The exit status (of a signal, less than 0); None for a hang, which is killed."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def faults(case: Case, status: int | None, text: str, folder: Path) -> list[str]:
    """What is wrong with the end of a case."""
    wrong = []
    if status is None:
        return [f"hangs for {PATIENCE:.0f} s"]
    if "Traceback (most recent call last)" in text or "Exception ignored" in text:
        wrong.append("a traceback")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text):
        wrong.append("control characters on the terminal")
    named = [flag.partition("=")[2] for flag in case.flags if flag.startswith("--workdir=")]
    workdirs = {folder / name for name in ("work", *named)}  # what was made worse may be its name
    trained = any(any(workdir.glob("checkpoints/step-*/manifest.json")) for workdir in workdirs)
    if status == 0 and case.trains and not trained:
        wrong.append("status 0, and nothing was trained")
    if status == 1 and case.heard and not re.search(r"^run\.py: .{5}", text, re.MULTILINE):
        wrong.append("no message")
    if status == 1 and len(text) > 6000:
        wrong.append(f"a message of {len(text):,} letters")
    if status not in (0, 1, *case.statuses):
        wrong.append(f"status {status}")
    return wrong


def try_one(seed: int, data_dir: Path, alone: bool = True) -> tuple[Case, list[str], str]:
    """(the case of the seed, what is wrong with it, what it printed)"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = bad_inputs.make(random.Random(seed), folder, data_dir, alone)
        log = folder / ".log"
        status = wait(start(case, folder, log) if case.alone else fork(case, folder, log))
        text = log.read_bytes().decode(errors="replace")
        return case, faults(case, status, text, folder), f"status {status}\n{text}"


def soak(count: int, first: int, alone: int = 1) -> int:
    """Runs `count` cases from seed `first` on; how many have something wrong."""
    failed, kinds = 0, dict[str, int]()
    with tempfile.TemporaryDirectory() as name:
        data_dir = Path(name) / "data"
        fine = good(data_dir)
        status = wait(fork(fine, Path(name), Path(name) / "log"))
        assert status == 0 and not faults(fine, status, "", Path(name)), (Path(name) / "log").read_text()
        shutil.rmtree(Path(name) / "work")
        for seed in range(first, first + count):
            case, wrong, text = try_one(seed, data_dir, bool(alone))
            kinds[case.kind] = kinds.get(case.kind, 0) + 1
            if (seed - first) % 100 == 99:
                print(f"{seed - first + 1} cases, {failed} with something wrong so far", flush=True)
            if wrong:
                failed += 1
                print(f"seed {seed}: {case.kind}: {'; '.join(wrong)}\n{case}\n{text[-3000:]}\n", flush=True)
    print(f"{count} cases, {failed} with something wrong: {kinds}")
    return failed


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    sys.exit(soak(*(numbers + [1000, 0, 1][len(numbers) :])) > 0)
