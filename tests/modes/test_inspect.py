"""What a file of weights holds, and the lines that would make it fit a model."""

import dataclasses

import keras
import numpy as np
import pytest

from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.model.names import walk
from trainer.modes import inspect
from trainer.readers import Spec, WeightsFile, open_source
from trainer.report.reporter import Reporter
from trainer.restore.match import match
from trainer.restore.propose import propose
from trainer.restore.rules import parse
from trainer.run.build import build_model


@pytest.fixture
def mlp(tmp_path):
    """The weights of `mnist_mlp`, under names of another program."""
    variables = walk(build_model(Config(model="mnist_mlp")).model)
    weights = {f"other/{v.name.replace('/', '.')}": v.value.numpy() + 1 for v in variables}
    np.savez(tmp_path / "w.npz", **weights)
    return str(tmp_path / "w.npz")


def test_lists_what_is_there(tmp_path, capsys):
    np.savez(tmp_path / "w.npz", **{"conv/kernel": np.float32([[1, 2], [3, 6]]), "global_step": np.int64(9)})
    assert inspect.run(Config(mode="inspect", init_from=str(tmp_path / "w.npz"))) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "conv/kernel" in line)
    for cell in ("2x2", "float32", "3", f"{np.std([1, 2, 3, 6]):.6g}", "1", "6"):
        assert cell in row.split(), row
    assert "NumPy .npz" in out and "1 weights, 16 bytes" in out and "global_step" in out


def test_values_that_are_not_finite_are_shown(tmp_path, capsys):
    np.savez(tmp_path / "w.npz", a=np.float32([1, np.nan]), none=np.zeros((0, 3)))
    inspect.run(Config(mode="inspect", init_from=str(tmp_path / "w.npz")))
    out = capsys.readouterr().out
    assert next(line for line in out.splitlines() if " a " in f" {line}").count("nan") == 4


def test_proposes_lines_that_fit(mlp, capsys):
    inspect.run(Config(mode="inspect", init_from=mlp, model="mnist_mlp"))
    out = capsys.readouterr().out
    assert "PROPOSED" in out and "Checked" in out
    # As a user would paste them.
    flags: dict[str, list[str]] = {}
    for line in out.splitlines():
        if line.startswith("--init_"):
            name, _, value = line.removeprefix("--init_").partition("=")
            flags.setdefault(name, []).append(value)
    variables = walk(build_model(Config(model="mnist_mlp")).model)
    matched = match(variables, open_source(mlp), parse(**flags))
    assert matched.problems == ()
    for entry in matched.entries:
        assert entry.source == f"other/{entry.variable.name.replace('/', '.')}"
    # And given as flags they are found to fit.
    config = Config(
        mode="inspect", init_from=mlp, model="mnist_mlp", **{f"init_{k}": v for k, v in flags.items()}
    )
    inspect.run(config)
    assert "It fits --model=mnist_mlp" in capsys.readouterr().out


def test_says_what_its_lines_leave_open(tmp_path, capsys):
    np.savez(tmp_path / "w.npz", other=np.zeros(3))
    inspect.run(Config(mode="inspect", init_from=str(tmp_path / "w.npz"), model="mnist_mlp"))
    out = capsys.readouterr().out
    assert "--init_skip=other" in out and "nothing would be restored" in out and "Checked" not in out


def test_writes_its_proposal_as_a_flagfile(tmp_path, mlp, capsys):
    config = Config(mode="inspect", init_from=mlp, model="mnist_mlp", propose_out=str(tmp_path / "p.flags"))
    inspect.run(config)
    lines = (tmp_path / "p.flags").read_text().splitlines()
    assert lines and all(line.startswith("--init_") and line in capsys.readouterr().out for line in lines[:1])
    rules = {"rename": [line.partition("=")[2] for line in lines]}
    variables = walk(build_model(Config(model="mnist_mlp")).model)
    assert match(variables, open_source(mlp), parse(**rules)).problems == ()
    # Where no rule is needed, there is an empty one, so that a job can always name it.
    fitting = dataclasses.replace(config, init_rename=rules["rename"], propose_out=str(tmp_path / "e.flags"))
    inspect.run(fitting)
    assert (tmp_path / "e.flags").read_text() == ""
    with pytest.raises(UserError, match=r"--propose_out=.*cannot be written"):
        inspect.run(dataclasses.replace(config, propose_out=str(tmp_path / "no" / "p.flags")))
    with pytest.raises(UserError, match="--propose_out"):
        dataclasses.replace(config, model="").check()


def test_equal_shapes_are_not_called_checked(capsys):
    """Two layers could be exchanged: said, and not called checked."""
    made = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, name=name) for name in "ab")])
    specs = {
        f"{name}/{leaf}": Spec(s, "float32") for name in "xy" for leaf, s in (("k", (4, 4)), ("b", (4,)))
    }
    source = WeightsFile("test", "memory", specs, (), "--init_from", lambda name: np.zeros(specs[name].shape))
    inspect._trust(propose(walk(made), source, model=made), Reporter(None, 0, 1))
    out = capsys.readouterr().out
    assert "AMBIGUOUS" in out and "a, b (4x4, 4)" in out and "Checked" not in out


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="--init_from=PATH"):
        inspect.run(Config(mode="inspect"))
    with pytest.raises(UserError, match="no such file"):
        inspect.run(Config(mode="inspect", init_from=str(tmp_path / "x")))
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="--init_only"):
        inspect.run(Config(mode="inspect", init_from=str(tmp_path / "w.npz"), init_only=["("]))


def test_a_keras_file(tmp_path, capsys):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="fc")])
    model.save(tmp_path / "m.keras")
    inspect.run(Config(mode="inspect", init_from=str(tmp_path / "m.keras")))
    out = capsys.readouterr().out
    assert "fc/kernel" in out and "2x3" in out
