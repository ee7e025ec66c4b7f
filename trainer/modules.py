"""Modules of the user's own: by a dotted path, from the working directory or PYTHONPATH, or by a file's."""

import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer import bundled

_FOLDERS = ("models", "trainer.models")  # as what a file of a folder `models` may be imported


def look_here() -> None:
    """Lets modules be found in the working directory, too, as `python -m` has it."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def by_name(name: str) -> ModuleType | None:
    """The module of a dotted path, imported; None where there is none.

    Raises:
      Exception: whatever importing it, or a package that it is in, raises.
    """
    look_here()
    return importlib.import_module(name) if _importable(name) else None


def by_path(path: str) -> Any:
    """What a dotted path names: a module, or something in one; None where there is none.

    `FILE.py` and `FILE.py.NAME` are paths of files.

    Raises:
      Exception: as `by_name`.
    """
    if in_file := re.fullmatch(r"(.*\.py)((?:\.\w+)*)", path):
        file = Path(in_file[1]).expanduser()
        return _inside(from_file(file.resolve()), in_file[2]) if file.is_file() else None
    names = path.split(".")
    if not all(name.isidentifier() for name in names):
        return None
    for count in range(len(names), 0, -1):
        module = by_name(".".join(names[:count]))
        if module is not None:
            return _inside(module, ".".join(names[count:]))
    return None


def is_own(word: str) -> bool:
    """Whether a bare word is a module in the working directory or in a folder of PYTHONPATH."""
    folders = [Path.cwd(), *map(Path, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
    return any((f / f"{word}.py").is_file() or (f / word / "__init__.py").is_file() for f in folders)


def from_file(file: Path) -> ModuleType:
    """The module in `file`: as part of its package where it has one, so that it may import its neighbours.

    Raises:
      Exception: whatever importing it raises.
    """
    _join(file.parent)
    for package in _FOLDERS:
        module = f"{package}.{file.stem}"
        try:
            spec = importlib.util.find_spec(module)
        except Exception:  # another package of that name, whatever it does
            continue
        if spec and spec.origin and os.path.exists(spec.origin) and os.path.samefile(spec.origin, file):
            return importlib.import_module(module)
    loaded = sys.modules.get(file.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    taken = loaded is not None or importlib.util.find_spec(file.stem) is not None
    name = f"{file.stem}_{abs(hash(str(file))):x}" if taken else file.stem
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # it is a .py file
    module_object = importlib.util.module_from_spec(spec)
    sys.modules[name] = module_object  # where AutoGraph and pickle look for it
    try:
        spec.loader.exec_module(module_object)
    except BaseException:
        del sys.modules[name]
        raise
    return module_object


def _importable(name: str) -> bool:
    """Whether there is a module of that name, without importing more than its parents."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            return False
        raise  # a parent is there, and lacks something that it imports
    except (ValueError, ImportError):
        return False


def _inside(module: ModuleType, path: str) -> Any:
    found: Any = module
    for name in filter(None, path.split(".")):
        found = getattr(found, name, None)
    return found


def _join(folder: Path) -> None:
    """Lets a user's own folder `models` be part of the package `models`, where a checkout has that name."""
    path = getattr(sys.modules.get("models") or _parent(), "__path__", None)
    own = folder.name == "models" and str(folder) not in (path or ())
    if isinstance(path, list) and own and str(bundled.folder("models")) in path:
        path.insert(0, str(folder))


def _parent() -> ModuleType | None:
    try:
        return importlib.import_module("models")
    except Exception:  # there is none, or another's, whatever it does
        return None
