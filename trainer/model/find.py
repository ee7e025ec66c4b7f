"""Where a model module is found: by a name, a dotted path, or the path of a file."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from trainer import bundled
from trainer.errors import UserError, near

_FOLDERS = ("models", "trainer.models")  # as what a file of a folder `models` may be imported


def find(name: str, flag: str) -> ModuleType:
    """The module that `name` stands for, imported.

    A name is a file of `models/` in the working directory, else of the bundled models, else a module or
    dotted path in the working directory or on PYTHONPATH; or the path of a file that ends in `.py`.

    Raises:
      UserError: nothing has that name, or two things have; says where it looked.
      Exception: whatever importing it raises.
    """
    if str(Path.cwd()) not in sys.path:  # as `python -m` has it
        sys.path.insert(0, str(Path.cwd()))
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"{flag}: there is no file {path.absolute()}.")
        return _from_file(path.resolve())
    own = Path.cwd() / f"{name}.py"
    for file in (folder / f"{name}.py" for folder in _folders()):
        if file.is_file() and "." not in name:
            if own.is_file():
                raise UserError(f"{flag}: is {file} and {own}. Write --model=./{name}.py for the second one.")
            return _from_file(file)
    if _importable(name):
        return importlib.import_module(name)
    looked = f"models/{name}.py in {Path.cwd()}, the bundled models, " if "." not in name else ""
    raise UserError(
        f"{flag}: there is no model module {name}. Looked for {looked}and a module {name} in "
        f"{Path.cwd()} and on PYTHONPATH. {near(name, known())}"
    )


def known() -> list[str]:
    """Names of the models in the folders `models`."""
    return sorted({file.stem for folder in _folders() for file in folder.glob("[!_]*.py")})


def _folders() -> Iterator[Path]:
    yield Path.cwd() / "models"
    yield bundled.folder("models")


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


def _from_file(file: Path) -> ModuleType:
    """The module in `file`: as part of its package where it has one, so that it may import its neighbours."""
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
