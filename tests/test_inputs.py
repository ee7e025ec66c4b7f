"""The program in an environment that is wrong, and some of the bad inputs of `tests/soak_inputs.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import run
from tests import soak_inputs
from tests.support.bad_case import Case

ROOT = Path(run.__file__).parent
FLAGS = (
    "--model=mnist_mlp(hidden=4)",
    "--dataset=digits",
    "--train_split=train[:64]",
    "--eval_split=none",
    "--batch_size=32",
    "--train_for=2",
    "--group=.* sgd 0.1",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def shell(tmp_path, data_dir, before="", after="", **environment):
    """(status, standard output, standard error) of a run that a shell starts."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    command = ["bash", "-c", f'{before} "$@" {after}', "bash", sys.executable, str(ROOT / "run.py"), *FLAGS]
    done = subprocess.run(
        [*command, f"--data_dir={data_dir}", f"--workdir={tmp_path / 'work'}"],
        cwd=tmp_path,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def trained(tmp_path):
    return (tmp_path / "work/checkpoints/step-000000002/manifest.json").exists()


@pytest.mark.slow
def test_closed_streams_keep_no_run_from_training(tmp_path, data_dir):
    assert shell(tmp_path, data_dir, after="<&- >&- 2>&-") == (0, "", "")
    assert trained(tmp_path)
    # What was printed went nowhere, and not into a file that got the number of the stream.
    for file in (tmp_path / "work").rglob("*"):
        assert file.is_dir() or b"ompiling" not in file.read_bytes(), file


def test_a_refusal_with_a_closed_stream_is_status_1(tmp_path, data_dir):
    status, _, said = shell(tmp_path, data_dir, before='set -- "$@" --seed=x;', after=">&-")
    assert status == 1 and said == "run.py: --seed=x: takes a whole number.\n"
    assert shell(tmp_path, data_dir, before='set -- "$@" --seed=x;', after="2>&-")[::2] == (1, "")


@pytest.mark.slow
def test_keras_of_another_backend_or_format(tmp_path, data_dir):
    status, said, message = shell(tmp_path, data_dir, KERAS_BACKEND="jax")
    assert (status, said) == (1, "")
    assert message == "run.py: KERAS_BACKEND=jax: this trains TensorFlow models. Unset it.\n"
    (tmp_path / ".keras").mkdir()
    for setting, words in (
        ('{"image_data_format": "channels_first"}', "image_data_format is channels_first"),
        ('{"backend": "jax"}', "keras.json, whose backend must be tensorflow"),
    ):
        (tmp_path / ".keras/keras.json").write_text(setting)
        status, said, message = shell(tmp_path, data_dir, HOME=str(tmp_path))
        assert status == 1 and said == "" and words in message, message
        assert message.startswith("run.py: ") and message.count("\n") == 1 and not trained(tmp_path)


@pytest.mark.parametrize("most", [500_000, 1_500_000])
def test_too_little_memory_to_import_tensorflow(tmp_path, data_dir, most):
    status, _, message = shell(tmp_path, data_dir, before=f"ulimit -v {most};")
    assert status == 1 and "cannot be imported" in message and "limits on memory" in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_bad_inputs_of_forty_seeds():
    """In a process of its own, as it forks before TensorFlow has started anything."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak_inputs", "40", "0", "0"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "40 cases, 0 with something wrong" in done.stdout


def test_the_judge_of_bad_inputs_sees_what_is_wrong(tmp_path):
    case = Case("x", [])
    fault = soak_inputs.faults
    assert fault(case, None, "", tmp_path)[0].startswith("hangs")
    assert fault(case, 0, "", tmp_path) == ["status 0, and nothing was trained"]
    assert fault(case, 1, "run.py: --seed=x: no number", tmp_path) == []
    assert fault(case, 1, "", tmp_path) == ["no message"]
    assert fault(case, 1, "Traceback (most recent call last)\nrun.py: message", tmp_path) == ["a traceback"]
    assert fault(case, 1, "run.py: \x1b[31mred", tmp_path) == ["control characters on the terminal"]
    assert fault(case, -9, "", tmp_path) == ["status -9"]
    (tmp_path / "work/checkpoints/step-000000002").mkdir(parents=True)
    (tmp_path / "work/checkpoints/step-000000002/manifest.json").write_text("{}")
    assert fault(case, 0, "", tmp_path) == []
