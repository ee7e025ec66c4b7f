"""The house of docs/design.md: a package imports what its `__init__.py` says, and nothing imports upwards."""

import ast
import io
import re
import tokenize
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "trainer"
BASE = {
    "bundled",
    "errors",
    "modules",
    "noise",
    "signals",
    "text",
}  # files beside the packages, which all may import


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


def walks() -> list[list[Path]]:
    """The files of the two ways through the code that docs/design.md lists."""
    text = (ROOT.parent / "docs/design.md").read_text()
    found = re.findall(r"^\*\*From [^\n]*\n\n((?:    trainer/[^\n]*\n)+)", text, re.MULTILINE)
    return [[ROOT.parent / line.split()[0] for line in block.splitlines()] for block in found]


def test_a_reader_opens_few_files() -> None:
    to_update, to_gradient = walks()
    assert len(to_update) <= 9 and len(to_gradient) <= 7
    for walk in (to_update, to_gradient):
        for file in walk[1:]:  # the first is where a reader comes from; each other one leads on to another
            named_by = any(file.stem in modules(other) for other in walk if other != file)
            assert named_by or modules(file) & {other.stem for other in walk}, file


def modules(file: Path) -> set[str]:
    """Last names of the modules of `trainer` that a file imports or imports from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainer"):
            found |= {(node.module or "").split(".")[-1], *(alias.name for alias in node.names)}
    return found


def test_what_lies_beside_the_packages_imports_none_of_them() -> None:
    for name in BASE:
        assert imports(ROOT / f"{name}.py") <= BASE


def test_names_that_say_nothing_are_not_used() -> None:
    found = {
        (str(file.relative_to(ROOT)), token.string)
        for file in ROOT.rglob("*.py")
        for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline)
        if token.type == tokenize.NAME and token.string.strip("_") in ("told", "way", "there", "made")
    }
    assert not found
