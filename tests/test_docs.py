"""What the pages show runs as it stands: Python blocks of a page in order, public names' examples."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import trainer

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str) -> str:
    """The Python blocks of a page as one program, each at its own line."""
    text, program, inside = (ROOT / "docs" / page).read_text(), [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            line = ""
        program.append(line if inside else "")
    return "\n".join(program)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["python.md"])
def test_a_page_runs_word_for_word(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # A file of its own, so that AutoGraph finds the source of what it stages.
    (tmp_path / "page.py").write_text(blocks(page))
    monkeypatch.syspath_prepend(tmp_path)
    space = {"__name__": "page", "__file__": str(tmp_path / "page.py")}
    exec(compile(blocks(page), str(tmp_path / "page.py"), "exec"), space)
    assert space["result"].step == 100 and "hidden/kernel" in capsys.readouterr().out


@pytest.mark.parametrize("name", trainer.__all__)
def test_each_public_name_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write a file to show it
    thing = trainer.STOP.__class__ if name == "STOP" else getattr(trainer, name)
    module = importlib.import_module(trainer._PUBLIC[name])
    # Into a class, where the examples may stand in its own docstring only.
    (found,) = doctest.DocTestFinder(recurse=False).find(thing, name, module, globs={})
    assert found.examples, f"{name} has no example"
    assert doctest.DocTestRunner().run(found).failed == 0


def test_the_public_names_are_in_the_guide():
    text = (ROOT / "docs" / "python.md").read_text()
    missing = [name for name in trainer.__all__ if not re.search(rf"\b{name}\b", text)]
    assert missing == []
