"""From the value of `--dataset` to a source: a set of TFDS, a file, a folder, a function."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorflow_datasets as tfds

from trainer import modules
from trainer.data.source import Source
from trainer.data.sources.array_files import open_npy, open_npz
from trainer.data.sources.arrays import Arrays
from trainer.data.sources.image_files import SUFFIXES as IMAGES
from trainer.data.sources.images import Images, open_images
from trainer.data.sources.python import as_dataset
from trainer.data.sources.record_files import open_records
from trainer.data.sources.table import SUFFIXES as TABLES
from trainer.data.sources.table import open_table
from trainer.data.sources.tfds import TfdsSource, open_dataset
from trainer.data.sources.tfds_builders import holds_builder, is_known, set_names
from trainer.errors import UserError, guarded, listing, near
from trainer.flags.calls import Call, check_call, parse_call

_OWN = (
    "Data of your own: a .npz, .csv, .parquet or .tfrecord file, a folder of such or of images "
    "(train/CLASS/*.jpg), "
    "or a function by its dotted path (docs/data.md)."
)


@dataclass(frozen=True)
class Places:
    """Values of --data_dir, --manual_dir and --fallback_dataset, which concern sets of TFDS only."""

    data_dir: str = ""
    manual_dir: str = ""
    fallback: str = ""

    def refuse(self, name: str) -> None:
        """UserError where one of them is given for data called `name`, which are not of TFDS."""
        given = {"data_dir": self.data_dir, "manual_dir": self.manual_dir, "fallback_dataset": self.fallback}
        for flag, value in given.items():
            if value:
                raise UserError(
                    f"--{flag}={value}: is of use for sets of TFDS only, not for {name}. Remove it."
                )


def open_data(text: str, places: Places, bad: str = "refuse") -> Source:
    """The source that a value of --dataset names; nothing is prepared.

    Args:
      text: a name or a path, with arguments as of a call: `photos(size=96)`.
      places: where TFDS finds and keeps its sets.
      bad: value of --bad_examples.

    Raises:
      UserError: there is no such thing, or more than one.
    """
    flag = f"--dataset={text}"
    match = re.fullmatch(r"\s*([^()]*?)\s*(\(.*\))?\s*", text, re.DOTALL)
    if match is None or not match[1]:
        raise UserError(f"{flag}: not readable; write NAME, PATH or NAME(argument=value).")
    head, arguments = match.groups()
    call = parse_call(f"dataset{arguments}", flag) if arguments else Call("dataset", text="dataset")
    call = Call(head, call.args, call.kwargs, text)
    kinds = _kinds(head)
    if len(kinds) > 1:
        raise UserError(
            f"{flag}: is more than one thing here: {' and '.join(kinds.values())}. Write ./{head} for the "
            "file or "
            f"folder, {head}.make for a function of the module, or another name than the set's."
        )
    if not kinds:
        raise UserError(
            f"{flag}: no such data set. There is no set of TFDS or of datasets/ of this name, no file or "
            "folder "
            f"{Path(head).expanduser()}, and no module or function {head}. {_near(head)} {_OWN}"
        )
    (kind,) = kinds
    if kind == "set":
        if arguments:
            raise UserError(f"{flag}: a set of TFDS takes no arguments. Write {head}.")
        return _cleaned(open_dataset(head, places.data_dir, places.manual_dir, places.fallback), bad)
    return _of_your_own(kind, call, places, bad)


def _of_your_own(kind: str, call: Call, places: Places, bad: str) -> Source:
    if kind == "function":
        return _from_function(call, places, bad)
    places.refuse(call.name)
    return _from_path(call, Path(call.name).expanduser(), bad)


def _kinds(head: str) -> dict[str, str]:
    """`{kind: in words}` of everything that `head` names."""
    kinds: dict[str, str] = {}
    path = Path(head).expanduser()
    as_path = head.startswith((".", "/", "~")) or head.endswith("/")
    python = head.endswith(".py") or ".py." in head
    if not python and path.exists():
        kinds["path"] = f"the {'folder' if path.is_dir() else 'file'} {path}"
    dotted = re.fullmatch(r"([^\W\d]\w*(?:\.[^\W\d]\w*)+)([/:].*)?", head)  # of a builder with its config
    if python or (dotted and not as_path and not kinds):
        if _function(head) is not None:
            kinds["function"] = f"the function {head}"
        return kinds
    if as_path:
        return kinds
    if is_known(head):
        kinds["set"] = f"a data set called {head}"
    if re.fullmatch(r"[^\W\d]\w*", head) and modules.is_own(head):
        kinds["function"] = f"the module {head}"
    return kinds


def _near(head: str) -> str:
    """Names like this one, among sets and what lies in the same folder."""
    path = Path(head).expanduser()
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    names = [n for n in siblings if not n.startswith(".")] if "/" in head or "." in head else []
    hint = near(path.name, names) if names else near(head, set_names())
    return hint if hint.startswith("Did you mean") else ""


def _function(path: str) -> Any:
    """What a dotted path, a module or a path ending in `.py` names; of a module its `make`, if it has one."""
    path = path if ".py" in path else re.split("[/:]", path)[0]  # a builder's config and version
    with tfds.core.registered.skip_registration():  # else a second builder of the same name is refused
        found = guarded(lambda: modules.by_path(path), f"--dataset={path}: importing it")
    return getattr(found, "make", found) if isinstance(found, ModuleType) else found


def _from_function(call: Call, places: Places, bad: str) -> Source:
    """What a function of the user's own returns, or an object in a module."""
    flag, found = f"--dataset={call.text}", _function(call.name)
    if holds_builder(found):
        known = dict(data_dir=places.data_dir, manual_dir=places.manual_dir, fallback=places.fallback)
        return _cleaned(open_dataset(call.name, **known, builder=found), bad)
    if isinstance(found, ModuleType):
        raise UserError(
            f"{flag}: the module {call.name} has no function make(). Name one: {call.name}.FUNCTION."
        )
    how: dict[str, Any] = {}
    if callable(found):
        taken = _arguments(found)
        own = {k: v for k, v in call.kwargs.items() if k not in ("names", "shuffle") or k in taken}
        how = {k: v for k, v in call.kwargs.items() if k not in own}
        asked = Call(call.name, call.args, own, call.text)
        check_call(asked, found, "function", flag)
        function = found
        found = guarded(lambda: function(*call.args, **own), f"{flag}: it")
    if isinstance(found, str | Path):
        return open_data(str(found), places, bad)
    return open_object(found, call.text, bad, **how)


def _arguments(function: Callable[..., Any]) -> Sequence[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (ValueError, TypeError):  # it is of C
        return ()


def open_object(given: Any, name: str, bad: str = "refuse", **how: Any) -> Source:
    """The source that an object of Python is; `how` as of `as_dataset`, `bad` as of `open_data`.

    Raises:
      UserError: it is none, or an example of it cannot be used.
    """
    return _cleaned(as_dataset(given, name=name, **how), bad)


def _from_path(call: Call, path: Path, bad: str) -> Source:
    name, flag = call.name, f"--dataset={call.text}"
    found = _folder(path, flag) if path.is_dir() else {path.suffix.lower(): [path]}
    if ".npz" in found:
        return _opened(call, flag, lambda: open_npz(name, path), bad)
    if ".npy" in found:
        if not path.is_dir():
            raise UserError(f"{flag}: a .npy is one array. Name the folder that holds one for each feature.")
        return _opened(call, flag, lambda: open_npy(name, path), bad)
    if table := next((suffix for suffix in TABLES if suffix in found), ""):
        files = {"train": path} if path.is_file() else {file.stem: file for file in found[table]}

        def open_(features: Any = (), label: str = "") -> Arrays:
            return open_table(name, files, _words(features, flag), label)

        return _opened(call, flag, open_, bad)
    if any(suffix in found for suffix in IMAGES) and path.is_dir():

        def open_folder(size: Any = None, crop: bool = False, channels: int = 3) -> Source:
            return open_images(name, path, size, crop, channels, bad)

        return _opened(call, flag, open_folder, bad)
    if records := [f for files in found.values() for f in files if ".tfrecord" in f.name]:

        def open_files(features: str = "") -> Source:
            return open_records(name, path if path.is_dir() else path.parent, records, features)

        return _opened(call, flag, open_files, bad)
    if ".json" in found and (path / "dataset_info.json").is_file():
        return _cleaned(TfdsSource(name, tfds.builder_from_directory(path)), bad)
    siblings = listing(sorted(f"*{suffix}" for suffix in found), 8)
    raise UserError(f"{flag}: there is nothing in it that is known as data, only {siblings}. {_OWN}")


def _opened(call: Call, flag: str, open_it: Callable[..., Any], bad: str) -> Source:
    """What `open_it` makes of the call's arguments."""
    arguments = check_call(call, open_it, "data set", flag)
    return _cleaned(open_it(**arguments), bad)


def _cleaned(source: Source, bad: str) -> Source:
    """The source without what `--bad_examples` leaves out, where that is known before examples are read.

    Raises:
      UserError: an example cannot be used, or `skip` is asked for where nothing is known of one.
    """
    if isinstance(source, Arrays):
        return source.cleaned(bad)
    if bad == "skip" and not isinstance(source, Images):  # whose files were looked at when it was opened
        raise UserError(
            f"--bad_examples=skip: {source.name} is read as it goes, and what is bad in it is not known "
            "beforehand. Give refuse, or keep."
        )
    return source


def _folder(path: Path, flag: str) -> Mapping[str, list[Path]]:
    """By suffix, what lies in a folder, up to the third level."""
    if (path / "dataset_info.json").is_file():
        return {".json": [path / "dataset_info.json"]}
    found: dict[str, list[Path]] = {}
    for pattern in ("*", "*/*", "*/*/*"):
        for file in sorted(path.glob(pattern)):
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
                suffix = ".tfrecord" if ".tfrecord" in file.name else file.suffix.lower()
                found.setdefault(suffix, []).append(file)
    known = {".npy", ".tfrecord", *TABLES, *IMAGES} & set(found)
    families = {"images" if suffix in IMAGES else suffix for suffix in known}
    if len(families) > 1:
        raise UserError(
            f"{flag}: holds several kinds of data, {listing(sorted(families))}. Keep one kind in it."
        )
    if not found:
        raise UserError(f"{flag}: the folder is empty.")
    return found


def _words(value: Any, flag: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return tuple(value)
    raise UserError(
        f"{flag}: features={value!r} is not a list of names of columns, such as ['width', 'height']."
    )
