"""Collects `docstrings.jsonl.gz` from the Python packages that are installed here: `python collect.py`."""

import ast
import gzip
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy
import tensorflow

EACH, SHORTEST, LONGEST = 1200, 60, 600
ROOTS = {
    "python": Path(sysconfig.get_paths()["stdlib"]),
    "numpy": Path(numpy.__file__).parent,
    "tensorflow": Path(tensorflow.__file__).parent / "python",
    "keras": Path(keras.__file__).parent,
}


def paragraphs(file: Path) -> Iterator[str]:
    """The first paragraphs of a file's docstrings, on one line each, in ASCII."""
    try:
        tree = ast.parse(file.read_text())
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            first = " ".join(text.split("\n\n")[0].split())
            if SHORTEST <= len(first) <= LONGEST and first.isascii() and first.isprintable():
                yield first


def examples() -> Iterator[dict[str, str]]:
    """`EACH` of each library, over its files; a file is wholly in one split, no text is there twice."""
    seen: set[str] = set()
    for name, root in ROOTS.items():
        files = [f for f in sorted(root.rglob("*.py")) if "site-packages" not in f.relative_to(root).parts]
        files = [f for f in files if not {"test", "tests", "idlelib"} & set(f.relative_to(root).parts)]
        found = []
        for file in files:
            key = hashlib.sha256(f"{name}/{file.relative_to(root)}".encode()).hexdigest()
            split = "test" if int(key[:8], 16) % 5 == 0 else "train"
            for text in paragraphs(file):
                if text not in seen:
                    seen.add(text)
                    found.append((hashlib.sha256(text.encode()).hexdigest(), split, text))
        found.sort()
        yield from ({"library": name, "split": split, "text": text} for _, split, text in found[:EACH])


if __name__ == "__main__":
    target = Path(__file__).with_name("docstrings.jsonl.gz")
    lines = "".join(json.dumps(example) + "\n" for example in examples())
    with gzip.GzipFile(target, "wb", mtime=0) as file:
        file.write(lines.encode())
    print(target, target.stat().st_size, hashlib.sha256(target.read_bytes()).hexdigest(), lines.count("\n"))
