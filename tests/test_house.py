"""The house of docs/design.md: a package imports what its `__init__.py` says, and nothing imports upwards."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "trainer"
BASE = {"bundled", "errors", "noise", "signals", "text"}  # files beside the packages, which all may import


def packages() -> dict[str, set[str]]:
    """`{package: the packages that it says it imports}`, from the last sentence of its docstring."""
    said = {}
    for file in sorted(ROOT.glob("*/__init__.py")):
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        (names,) = re.findall(r"^Imports ([a-z, ]+)\.$", text, re.MULTILINE)
        said[file.parent.name] = set(names.split(", ")) - {"errors"}
    return said


def imports(file: Path) -> set[str]:
    """Packages (and files beside them) of `trainer` that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "trainer":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainer."):
            found.add((node.module or "").split(".")[1])
    return found


def test_a_package_imports_what_it_says() -> None:
    said, wrong = packages(), []
    for name, allowed in said.items():
        really: set[str] = set()
        for file in (ROOT / name).rglob("*.py"):
            really |= imports(file) - {name} - BASE
        if really != allowed:
            wrong.append(f"{name}: imports {sorted(really)}, says {sorted(allowed)}")
    assert not wrong, "\n".join(wrong)
    assert len(said) > 10


def test_there_is_no_circle() -> None:
    order = list(TopologicalSorter(packages()).static_order())
    assert order[-1] == "modes"


def test_what_lies_beside_the_packages_imports_none_of_them() -> None:
    for name in BASE:
        assert imports(ROOT / f"{name}.py") <= BASE
