"""Where `--model` is looked for, what comes first, and what is said where nothing is found."""

import sys
from pathlib import Path

import pytest

import models
from trainer import modules
from trainer.errors import UserError
from trainer.model import find
from trainer.model.module import load

SOURCE = """
def build(width=4): return width
def loss(model, batch, training): return None, {{}}
WHERE = {where!r}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory, and a function that writes a model module into it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known, path = set(sys.modules), list(models.__path__)

    def write(path):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SOURCE.format(where=path))
        return file

    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]
    models.__path__[:] = path


def found(text):
    module, call = load(text)
    return sys.modules[module.build.__module__].WHERE, call


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("models/own_a.py", "own_a"),
        ("own_b.py", "own_b"),
        ("pack/own_c.py", "pack.own_c"),
        ("deep/er/own_d.py", "deep/er/own_d.py"),
        ("own_e.py", "./own_e.py"),
        ("models/mnist_cnn.py", "mnist_cnn"),  # before the bundled one
        ("string.py", "./string.py"),  # not the one of the standard library
    ],
)
def test_every_way_to_say_it(here, path, text):
    here(path)
    for written, arguments in ((text, {}), (f"{text}(width=8)", {"width": 8})):
        where, call = found(written)
        assert where == path and call.kwargs == arguments and call.text == written


def test_a_path_from_anywhere_and_from_home(here, monkeypatch, tmp_path):
    file = here("far/own_f.py")
    monkeypatch.setenv("HOME", str(tmp_path / "far"))
    assert found(str(file))[0] == found("~/own_f.py")[0] == "far/own_f.py"


def test_a_folder_on_pythonpath(here, tmp_path, monkeypatch):
    here("elsewhere/own_g.py")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert found("own_g")[0] == "elsewhere/own_g.py"


def test_a_model_of_a_folder_may_import_its_neighbour(here, tmp_path):
    here("models/own_h.py")
    (tmp_path / "models/own_i.py").write_text("from models.own_h import build, loss, WHERE\n")
    module, _ = load("own_i")
    assert module.build.__module__ == "models.own_h"


def test_what_is_not_there_is_said_with_where_it_was_looked_for(here, tmp_path):
    here("models/perceptron.py")
    with pytest.raises(UserError) as error:
        load("perceptrom")
    said = str(error.value)
    for words in (
        "--model=perceptrom",
        f"models/perceptrom.py in {tmp_path}",
        "the bundled models",
        "PYTHONPATH",
    ):
        assert words in said
    assert "Did you mean perceptron" in said
    with pytest.raises(UserError, match=r"--model=x/y.py: there is no file .*x/y.py"):
        load("x/y.py")
    with pytest.raises(UserError, match=r"--model=no.where: there is no model module no.where"):
        load("no.where")


def test_two_of_one_name_are_not_guessed_between(here):
    here("mnist_cnn.py")
    with pytest.raises(UserError, match=r"mnist_cnn.py and .*mnist_cnn.py. Write --model=./mnist_cnn.py"):
        load("mnist_cnn")
    assert found("./mnist_cnn.py")[0] == "mnist_cnn.py"


def test_a_parent_that_lacks_something_says_what(here, tmp_path):
    (tmp_path / "pack2").mkdir()
    (tmp_path / "pack2/__init__.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(UserError, match="nowhere_to_be_found"):
        load("pack2.model")


def test_the_bundled_models_are_known():
    assert {"mnist_cnn", "mnist_mlp"} <= set(find.known())
    assert Path(
        modules.from_file(Path(__file__).resolve().parents[2] / "models/mnist_mlp.py").__file__
    ).exists()
