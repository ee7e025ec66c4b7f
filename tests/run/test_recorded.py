"""From a checkpoint that was handed in come names of bundled things alone: no import, no path."""

import pytest

from tests.support.runs import main
from trainer.checkpoints.manifest import Entry
from trainer.data.sources.tfds_builders import is_known
from trainer.flags.config import Config
from trainer.run.recorded import _is_bundled, completed

GOOD = {"model": "mnist_mlp(hidden=4)", "dataset": "digits", "eval_split": "test[:20]", "batch_size": 20}


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory):
    """A function of recorded flags -> a working directory whose checkpoint records them."""
    import tensorflow as tf

    from models import mnist_mlp
    from trainer.checkpoints import checkpoint
    from trainer.model.names import walk

    state = {f"model/{v.name}": tf.Variable(v.value) for v in walk(mnist_mlp.build(hidden=4))}

    def write(**flags):
        workdir = tmp_path_factory.mktemp("handed_in")
        checkpoint.save(workdir / "checkpoints", 3, state, {"flags": {**GOOD, **flags}})
        return workdir

    return write


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A package whose import leaves a mark, and the mark."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "__init__.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    (tmp_path / "trap" / "net.py").write_text("")
    return tmp_path / "mark"


@pytest.mark.parametrize(
    "flags",
    [
        {"model": "trap.net"},
        {"model": "trap.net(x=1)"},
        {"model": "./trap/net.py"},
        {"model": "os"},
        {"model": "mnist_mlp(hidden='/etc/passwd')"},
        {"dataset": "trap.net"},
        {"dataset": "trap.net.Builder/x:1.0.0"},
        {"dataset": "mnist/data_dir=/tmp/x"},
        {"dataset": "huggingface:mnist"},
        {"dataset": "../trap"},
        {"dataset": "digits.npz"},
        {"fallback_dataset": "trap.net"},
        {"data_dir": "elsewhere"},
        {"manual_dir": "/etc"},
    ],
    ids=str,
)
def test_what_is_no_bundled_name_is_shown_and_not_used(handed_in, trap, tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    workdir = handed_in(**flags)
    for mode in ("--mode=evaluate", "--mode=export", "--mode=evaluate --dataset=digits"):
        more = [f"--export_to={tmp_path / 'out'}"] if mode == "--mode=export" else []
        if "dataset" in flags and "--dataset" in mode:
            continue  # what is given is not taken from the checkpoint
        assert main(workdir, *mode.split(), *more) == 1
        said = capsys.readouterr().err
        ((name, value),) = flags.items()
        assert f"records --{name} that is not taken from a checkpoint" in said
        pasted = said.rsplit("\n  ", 1)[1]
        import shlex

        assert f"--{name}={value}" in shlex.split(pasted)
    assert not trap.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"trap"}


@pytest.mark.slow
def test_bundled_names_are_taken(handed_in, tmp_path, capsys):
    data = f"--data_dir={tmp_path}"
    assert main(handed_in(), "--mode=evaluate", data) == 0
    assert "'--model=mnist_mlp(hidden=4)' --dataset=digits" in capsys.readouterr().out
    # What is recorded beside what was given does not matter.
    assert main(handed_in(data_dir="/no/such"), "--mode=evaluate", data) == 0
    assert main(handed_in(dataset="trap.net"), "--mode=evaluate", data, "--dataset=digits") == 0


def test_a_recorded_line_pasted_works(handed_in, tmp_path, capsys):
    import shlex

    workdir = handed_in(data_dir=str(tmp_path / "has blanks"))
    assert main(workdir, "--mode=evaluate") == 1
    pasted = shlex.split(capsys.readouterr().err.rsplit("\n  ", 1)[1])
    assert main(workdir, "--mode=evaluate", *pasted) == 0


def test_what_was_given_in_python_is_asked_for_again(handed_in, capsys):
    assert main(handed_in(dataset="<arrays>"), "--mode=evaluate") == 1
    assert "--dataset: not given" in capsys.readouterr().err


def test_how_examples_are_padded_is_taken_with_them(tmp_path):
    saved = {
        "model": "text_lm",
        "dataset": "digits",
        "pad": ["a multiple=4", "b max=9"],
        "bad_examples": "keep",
    }
    config, words = completed(Config(), Entry(tmp_path, 1, meta={"flags": saved}))
    assert (list(config.pad), config.bad_examples) == (saved["pad"], "keep")
    assert words.endswith("'--pad=a multiple=4' '--pad=b max=9' --bad_examples=keep")


def test_names_of_tfds_are_known_and_namespaces_are_not():
    for name in ("digits", "mnist", "mnist:3.0.1", "mnist:3.*.*", "emnist/letters", "emnist/letters:3.1.0"):
        assert is_known(name), name
    for name in (
        "",
        "nosuchset",
        "a/b/c",
        "mnist/..",
        "mnist/a=b",
        "kaggle:x",
        "mnist\n",
        "os.path",
        "ｍnist",
    ):
        assert not is_known(name), name
    assert _is_bundled("mnist_cnn(filters=[1, 2], batch_norm=True)") and not _is_bundled("mnist_cnn(a=b'x')")


@pytest.mark.slow
@pytest.mark.parametrize(
    "meta",
    [
        {"metrics": {"loss": "high", "accuracy": None}},
        {"metrics": ["loss"]},
        {"replicas": {"a": 1}},
        {"plan": {"order": ["resident"]}},
        {"plan": {"order": {"a": 1}, "rows": [{"name": [], "optimizer": "("}]}},
    ],
    ids=str,
)
def test_a_strange_manifest_is_never_a_traceback(tmp_path, capsys, meta):
    """Every part of a manifest that a resume reads, of a type that it is not."""
    import json

    from trainer.checkpoints import manifest

    flags = ["--model=mnist_mlp(hidden=2)", "--dataset=digits", f"--data_dir={tmp_path}", "--batch_size=20"]
    flags += ["--group=.* sgd 0.1", "--train_for=2", "--eval_split=none"]
    assert main(tmp_path / "run", *flags) == 0
    (path,) = (tmp_path / "run").glob("checkpoints/*/manifest.json")
    body = json.loads(path.read_text())
    del body["sha256"]
    body["meta"] |= meta
    path.write_text(json.dumps({**body, "sha256": manifest._seal(body)}))
    capsys.readouterr()
    for mode in ("train", "plan"):
        assert main(tmp_path / "run", *flags, f"--mode={mode}") in (0, 1)
    if "plan" in meta:
        assert "tells no plan of this program" in capsys.readouterr().err


def test_a_file_beside_the_run_does_not_stand_in_for_a_bundled_model(
    handed_in, tmp_path, monkeypatch, capsys
):
    """What is unpacked together with a checkpoint is as foreign as the checkpoint."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mnist_mlp.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert main(handed_in(), "--mode=evaluate") == 1
    assert "records --model that is not taken from a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()
