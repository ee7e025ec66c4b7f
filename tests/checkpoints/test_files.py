"""A directory written aside: whole or not there; what a killed process left is gone at the next attempt."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.checkpoints import files

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_not_renamed_is_removed_with_the_folders_made_for_it(tmp_path):
    target = tmp_path / "a" / "b" / "out"
    with pytest.raises(OSError, match="full"), files.aside(target) as folder:
        (folder / "part").write_text("half")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []
    with files.aside(target) as folder:
        (folder / "part").write_text("all")
        folder.rename(target)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == [
        "a",
        "a/b",
        "a/b/out",
        "a/b/out/part",
    ]


def test_what_killed_processes_left_goes_and_what_another_writes_or_owns_stays(tmp_path):
    target = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from trainer.checkpoints import files\n"
        "with files.aside(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'part').write_text('x'); print(folder, flush=True); time.sleep(1000)"
    )
    command = [sys.executable, "-c", code, str(target)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, alive = (Path(process.stdout.readline().strip()) for process in processes)
    try:
        processes[0].kill()
        processes[0].wait()
        others = [tmp_path / ".tmp-out-notours", tmp_path / ".tmp-other-0123abcd", tmp_path / "out-0123abcd"]
        for other in others:
            other.mkdir()
        (tmp_path / ".tmp-out-0123abcd").symlink_to(others[0])
        assert killed.exists() and alive.exists()
        with files.aside(target) as folder:
            there = {path.name for path in tmp_path.iterdir()}
        link = ".tmp-out-0123abcd"
        assert there == {alive.name, folder.name, link, *(other.name for other in others)}
        assert (alive / "part").read_text() == "x"
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.mark.slow
def test_a_signal_in_an_export_leaves_nothing(tmp_path):
    """A real SIGTERM while TensorFlow writes."""
    code = (
        "import os, signal, sys, tensorflow as tf, run\n"
        "save = tf.saved_model.save\n"
        "def slow(holder, path, **more):\n"
        "    save(holder, path, **more)\n"
        "    print(sorted(os.listdir(path)), flush=True)\n"
        "    import time; time.sleep(1000)\n"
        "tf.saved_model.save = slow\n"
        "import numpy as np; from models import mnist_mlp; from trainer.model.names import walk\n"
        "values = {v.name: v.value.numpy() for v in walk(mnist_mlp.build(hidden=2))}\n"
        "np.savez(sys.argv[1] + '/w.npz', **values)\n"
        "flags = ['--mode=export', '--model=mnist_mlp(hidden=2)', '--dataset=digits']\n"
        "flags += [f'--data_dir={sys.argv[1]}', f'--init_from={sys.argv[1]}/w.npz']\n"
        "sys.exit(run.main(['run.py', *flags, f'--export_to={sys.argv[1]}/new/out']))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    while "saved_model.pb" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    process.stdout.close()
    assert [p.name for p in (tmp_path / "new").iterdir()] == []
