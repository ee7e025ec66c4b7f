"""Where a model module is found: by a name, a dotted path, or the path of a file."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from trainer import bundled, modules
from trainer.errors import UserError, near


def find(name: str, flag: str) -> ModuleType:
    """The module that `name` stands for, imported.

    A name is a file of `models/` in the working directory, else of the bundled models, else a module or
    dotted path in the working directory or on PYTHONPATH; or the path of a file that ends in `.py`.

    Raises:
      UserError: nothing has that name, or two things have; says where it looked.
      Exception: whatever importing it raises.
    """
    modules.look_here()
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"{flag}: there is no file {path.absolute()}.")
        return modules.from_file(path.resolve())
    own = Path.cwd() / f"{name}.py"
    for file in (folder / f"{name}.py" for folder in _folders()):
        if file.is_file() and "." not in name:
            if own.is_file():
                raise UserError(f"{flag}: is {file} and {own}. Write --model=./{name}.py for the second one.")
            return modules.from_file(file)
    if (module := modules.by_name(name)) is not None:
        return module
    looked = f"models/{name}.py in {Path.cwd()}, the bundled models, and " if "." not in name else ""
    raise UserError(
        f"{flag}: there is no model module {name}. Looked for {looked}a module {name} in "
        f"{Path.cwd()} and on PYTHONPATH. {near(name, known())}"
    )


def known() -> list[str]:
    """Names of the models in the folders `models`."""
    return sorted({file.stem for folder in _folders() for file in folder.glob("[!_]*.py")})


def _folders() -> Iterator[Path]:
    yield Path.cwd() / "models"
    yield bundled.folder("models")
