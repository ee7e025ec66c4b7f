"""Data sets by name.

A name is one of TFDS (`mnist`, `emnist/letters`), of a builder in datasets/ (`digits` is the class
`Builder` of datasets/digits/digits_dataset_builder.py, the file that `tfds new` writes), or the
dotted path of a builder class, or of the module that defines one.
"""

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from trainer import bundled, modules
from trainer.errors import UserError, blame, listing, message_of, near

LOCAL = bundled.folder("datasets")


def find_builder(name: str, data_dir: str, flag: str, builder: Any = None) -> tfds.core.DatasetBuilder:
    """The TFDS builder that `name` stands for; reads no data.

    Args:
      name: of a set, or a dotted path, with config and version.
      data_dir: value of --data_dir.
      flag: for messages.
      builder: the class, or the module that defines one, where `name` has been looked up already.

    Raises:
      UserError: no such data set, config or version.
    """
    head, rest = re.fullmatch(r"([^/:]*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    directory = {"data_dir": str(Path(data_dir).expanduser())} if data_dir else {}
    if "://" in data_dir:  # a bucket
        directory = {"data_dir": data_dir}
    try:
        if builder is not None:
            found = _builder_class(builder, f"{flag}={name}")
            rest = "" if ".py" in name else rest
        elif (file := LOCAL / head / f"{head}_dataset_builder.py").is_file():
            found = _from_file(file)
        elif "." in head:
            with tfds.core.registered.skip_registration():
                found = _builder_class(modules.by_path(head), f"{flag}={name}")
        else:
            return tfds.builder(name, **directory)
        _, options = tfds.core.naming.parse_builder_name_kwargs(f"dataset{rest}")
        return found(**options, **directory)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise UserError(f"{flag}={name}: no such data set. {near(head, set_names())}") from error
    except UserError:
        raise
    except (ValueError, AssertionError, TypeError, ImportError) as error:
        reason = re.sub(r"Failed to construct dataset .*?}\": | Here are 10 .*", "", message_of(error))[:400]
        raise UserError(f"{flag}={name}: {reason}{_configs(head, rest)}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a builder of the user's own may raise anything
        raise UserError(f"{flag}={name}: its builder {blame(error)}") from error


def is_known(name: str) -> bool:
    """Whether `name` is a set of datasets/ or one that TFDS itself brings, with no argument and no path."""
    match = re.fullmatch(r"([a-z]\w*)(/[A-Za-z0-9][\w.+-]*)?(:[\d.*]+)?", name, re.ASCII)
    if match is None:
        return False
    return match[1] in set_names()


def _configs(head: str, rest: str) -> str:
    """The configs of a TFDS set, where `rest` of its name asks for one that there is not."""
    try:
        names = list(tfds.builder_cls(head).builder_configs)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, ImportError):
        return ""
    asked = rest.removeprefix("/").partition(":")[0]
    if not asked or asked in names:
        return ""
    return f" {near(asked, names)}" if names else f" It has no configs; write {head}."


def _local_names() -> list[str]:
    return [file.parent.name for file in LOCAL.glob("*/*_dataset_builder.py")]


def _from_file(file: Path) -> type[tfds.core.DatasetBuilder]:
    """The `Builder` in `file`, imported by path: another package may be called `datasets`."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None  # it is a .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # where TFDS looks for the file of a class
    with tfds.core.registered.skip_registration():  # else a second import is refused
        spec.loader.exec_module(module)
    module.Builder.pkg_dir_path = file.parent
    return module.Builder


def holds_builder(found: Any) -> bool:
    """Whether it is a TFDS builder class, or a module that defines one."""
    return (inspect.isclass(found) and issubclass(found, tfds.core.DatasetBuilder)) or bool(_defined(found))


def _defined(found: Any) -> list[type[tfds.core.DatasetBuilder]]:
    """The builder classes that a module defines."""
    if not inspect.ismodule(found):
        return []
    classes = [c for c in vars(found).values() if inspect.isclass(c) and c.__module__ == found.__name__]
    return [c for c in classes if issubclass(c, tfds.core.DatasetBuilder)]


def _builder_class(found: Any, flag: str) -> type[tfds.core.DatasetBuilder]:
    """The builder class, or the only one that a module defines."""
    if inspect.isclass(found) and issubclass(found, tfds.core.DatasetBuilder):
        return found
    if len(classes := _defined(found)) != 1:
        has = f" (it has {listing(c.__name__ for c in classes)})" if classes else ""
        raise UserError(f"{flag}: not a TFDS builder class, nor a module with exactly one{has}.")
    return classes[0]


def set_names() -> list[str]:
    """Names of datasets/ and of TFDS."""
    return [*_local_names(), *tfds.list_builders(with_community_datasets=False)]
