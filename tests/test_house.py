"""The house of docs/design.md: each file imports lower floors only, and every file has a floor."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def floors() -> dict[str, int]:
    """`{module of trainer: floor}` as docs/design.md lists them."""
    text = (ROOT / "docs" / "design.md").read_text().split("## One step")[0]
    found: dict[str, int] = {}
    for name, floor in re.findall(r"^      ([a-z_./]+)\s+(\d+)   ", text, re.MULTILINE):
        found[name.removesuffix(".py").rstrip("/")] = int(floor)
    return found


def imports(file: Path) -> set[str]:
    """Modules of `trainer` that a file imports anywhere, packages by their first name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "trainer":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainer."):
            found.add(node.module.split(".")[1])
    return found


def test_every_file_imports_lower_floors_only() -> None:
    floor, wrong = floors(), []
    files = [
        f for f in (ROOT / "trainer").rglob("*.py") if f.relative_to(ROOT / "trainer") != Path("__init__.py")
    ]
    for file in files:
        name = file.relative_to(ROOT / "trainer").parts[0].removesuffix(".py")
        assert name in floor, f"{name} has no floor in docs/design.md"
        for other in imports(file) - {name}:
            if floor[other] >= floor[name]:
                wrong.append(f"{name} ({floor[name]}) imports {other} ({floor[other]})")
    assert not wrong, wrong
    assert len(files) > 30


def test_no_file_is_listed_that_is_not_there() -> None:
    gone = [
        n
        for n in floors()
        if not (ROOT / "trainer" / n).exists() and not (ROOT / "trainer" / f"{n}.py").exists()
    ]
    assert not gone
