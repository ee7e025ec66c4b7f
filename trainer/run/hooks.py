"""Functions of the user's own that look on: `--hook=my_module.on_record`."""

import importlib
from collections.abc import Sequence
from typing import Any

from trainer import modules
from trainer.errors import UserError, near
from trainer.model.module import guarded
from trainer.report.reporter import Hook


def load(paths: Sequence[str]) -> tuple[Hook, ...]:
    """The functions that `--hook` names, imported from the working directory or PYTHONPATH.

    Raises:
      UserError: no such module, one that fails to import, or no such function in it.
    """
    return tuple(map(_loaded, paths))


def _loaded(path: str) -> Hook:
    module, _, name = path.rpartition(".")
    if not module or not name.isidentifier():
        raise UserError(
            f"--hook={path}: not a function's path. Write MODULE.FUNCTION, such as my_module.on_record."
        )
    modules.look_here()
    found: Any = guarded(lambda: importlib.import_module(module), f"--hook={path}: importing {module}")
    function = getattr(found, name, None)
    if not callable(function):
        functions = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
        raise UserError(f"--hook={path}: {module} has no function {name}. {near(name, functions)}")
    return function
