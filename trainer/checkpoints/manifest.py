"""What a checkpoint directory must hold, and how the ones that are there are found and judged.

    checkpoints/step-000001000/{manifest.json, data.index, data.data-00000-of-00001}

The manifest names every variable and every file with its size and SHA-256, and carries its own. No
other file decides anything: checkpoints are found by scanning, and a directory that its manifest
does not vouch for is damaged. What a manifest says is checked before any of it is used.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.errors import UserError, listing
from trainer.flags.criteria import Criterion

FORMAT = 1
NAME = "manifest.json"
MOST_BYTES = 64 << 20  # more than this is not a manifest, and is not read
STEP = re.compile(r"step-(\d{9,15})(?:-(\d{1,6}))?")
DATA = re.compile(r"data\.(index|data-\d{5}-of-\d{5})")

ShapeDtype = tuple[tuple[int, ...], str]  # (shape, dtype name)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One checkpoint directory, as its manifest describes it.

    `damage` says why it cannot be used and is empty where nothing wrong was seen; then `variables`
    ({name: (shape, dtype)}), `files` ({name: (bytes, sha256)}) and `meta` are there. `later` is
    true for a manifest of a later format version (`damage` says so): it is refused, never set
    aside. Of two directories of one step the one of the higher `revision` is the newer.
    """

    path: Path
    step: int
    revision: int = 1
    damage: str = ""
    later: bool = False
    variables: dict[str, ShapeDtype] = dataclasses.field(default_factory=dict)
    files: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


# Writing


def text(step: int, specs: Mapping[str, ShapeDtype], path: Path, meta: dict) -> str:
    """The manifest of the data files in `path`. NaN and infinities in `meta` become strings."""
    body = {
        "format": FORMAT,
        "step": step,
        "variables": {
            name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype) in sorted(specs.items())
        },
        "files": {
            name: {"bytes": (path / name).stat().st_size, "sha256": digest(path / name)}
            for name in sorted(os.listdir(path))
            if DATA.fullmatch(name)
        },
        "meta": json.loads(json.dumps(meta), parse_constant=str),
    }
    return json.dumps({**body, "sha256": _seal(body)}, indent=1)


def _seal(body: dict) -> str:
    plain = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a regular file; OSError for anything else, links among it."""
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader]:
    # O_NONBLOCK: a pipe in a file's place must not hang the start.
    safe = os.O_NOFOLLOW | os.O_NONBLOCK
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | safe)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path.name} is not a regular file")
        yield file


# Finding


def names_in(directory: Path) -> list[str]:
    """The names in `directory`, sorted; none where it is not there. UserError if unreadable."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"The checkpoints in {directory} cannot be listed: {error.strerror}. "
            "Make it a readable directory or name another --workdir."
        ) from error


def scan(directory: Path, step: int | None = None) -> list[Entry]:
    """The checkpoints in `directory` (only those of `step` where given), newest first.

    Manifests, file types and sizes are looked at here; `check` reads the files. Where there is no
    directory there is no checkpoint. Raises UserError where it cannot be listed.
    """
    entries = []
    for name in names_in(directory):
        match = STEP.fullmatch(name)
        if match and (step is None or int(match[1]) == step):
            entries.append(read(directory / name, int(match[1]), int(match[2] or 1)))
    # One that the training process pruned meanwhile is not there, and not damaged.
    entries = [entry for entry in entries if not entry.damage or os.path.lexists(entry.path)]
    return sorted(entries, key=lambda entry: (entry.step, entry.revision), reverse=True)


def read(path: Path, step: int, revision: int = 1) -> Entry:
    """The entry of one directory, by its manifest and its files' types and sizes."""
    try:
        if path.is_symlink() or not path.is_dir():
            raise ValueError("it is not a directory")
        with _open(path / NAME) as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ValueError(f"{NAME} is over {MOST_BYTES} bytes long")
        body = json.loads(raw)
        _is(isinstance(body, dict), "an object")
        if isinstance(body.get("format"), int) and body["format"] > FORMAT:
            why = f"format {body['format']}, this program reads up to {FORMAT}"
            return Entry(path, step, revision, why, later=True)
        variables, files = _checked(path, body, step)
    except PermissionError as error:
        raise UserError(
            f"The checkpoint {path} cannot be read: {error.strerror}. Make it readable."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        return Entry(path, step, revision, damage=_reason(error))
    return Entry(path, step, revision, variables=variables, files=files, meta=body["meta"])


def _checked(path: Path, body: dict, step: int) -> tuple[dict[str, ShapeDtype], dict[str, tuple[int, str]]]:
    """The variables and files of a manifest. ValueError or OSError for the first thing wrong."""
    seal = body.pop("sha256", None)
    if seal != _seal(body):
        raise ValueError(f"{NAME} does not have the bytes it was saved with")
    _is(body.get("format") == FORMAT and body.get("step") == step, f"of step {step}")
    _is(all(isinstance(body.get(k), dict) for k in ("variables", "files", "meta")), "complete")
    files = {name: _file(name, value) for name, value in body["files"].items()}
    held = {name for name in os.listdir(path) if DATA.fullmatch(name)}
    if len(files) < 2 or "data.index" not in files or held != files.keys():
        raise ValueError(f"it has {listing(sorted(held))} for {listing(sorted(files))}")
    for name, (size, _) in files.items():
        status = (path / name).lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise ValueError(f"{name} is not a regular file of {size} bytes")
    variables = {name: _variable(name, value) for name, value in body["variables"].items()}
    room = sum(size for size, _ in files.values())
    need = sum(math.prod(shape) * tf.as_dtype(dtype).size for shape, dtype in variables.values())
    _is(need <= room, f"of {room} bytes of data, it speaks of {need}")
    return variables, files


def _file(name: str, value: Any) -> tuple[int, str]:
    # Only names that `save` gives, so that no name can leave the directory.
    _is(DATA.fullmatch(name) is not None and isinstance(value, dict), f"about data ({name!r})")
    size, sha256 = value.get("bytes"), value.get("sha256")
    _is(type(size) is int and size >= 0 and isinstance(sha256, str), f"right about {name!r}")
    return size, sha256


def _variable(name: str, value: Any) -> ShapeDtype:
    _is(isinstance(value, dict), f"right about {name!r}")
    shape, dtype = value.get("shape"), value.get("dtype")
    _is(isinstance(shape, list) and isinstance(dtype, str), f"right about {name!r}")
    sane = len(shape) < 255 and all(type(size) is int and 0 <= size < 1 << 63 for size in shape)
    _is(sane, f"right about {name!r}'s shape")
    try:
        return tuple(shape), tf.as_dtype(dtype).name
    except TypeError as error:
        raise ValueError(f"{name!r} has the unknown dtype {dtype!r}") from error


def _is(right: bool, what: str) -> None:
    if not right:
        raise ValueError(f"{NAME} is not {what}")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(error.filename or NAME).name}: {error.strerror}"
    return str(error) or type(error).__name__


def key(name: str) -> str:
    """Where a variable lies in the data: the key that `tf.train.Checkpoint(v={name: ...})` writes.

    Its dots and slashes are escaped as TensorFlow escapes them.
    """
    return f"v/{name.replace('.', '..').replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"


# Choosing


def check(entry: Entry) -> Entry:
    """The same entry, with `damage` filled where a file's bytes do not have their SHA-256."""
    for name, (_, sha256) in entry.files.items():
        try:
            wrong = digest(entry.path / name) != sha256
        except OSError as error:
            return dataclasses.replace(entry, damage=_reason(error))
        if wrong:
            damage = f"{name} does not have the bytes it was saved with"
            return dataclasses.replace(entry, damage=damage)
    return entry


def usable(entry: Entry) -> Entry:
    """`entry`, every byte of it checked; UserError where it is damaged or of a later version."""
    entry = check(entry)
    if entry.later:
        raise UserError(
            f"The checkpoint {entry.path} was saved by a later version of this program "
            f"({entry.damage}). Use that version, or name another --workdir."
        )
    if entry.damage:
        raise UserError(f"The checkpoint {entry.path} is damaged: {entry.damage}. Use another one.")
    return entry


def at(directory: Path, step: int) -> Entry:
    """The newest checkpoint of `step`, every byte checked; UserError lists the steps there are."""
    entries = scan(directory)
    for entry in entries:
        if entry.step == step:
            return usable(entry)
    steps = listing(str(entry.step) for entry in entries)
    raise UserError(f"There is no checkpoint of step {step} in {directory}. There is: {steps}.")


def best(directory: Path, criterion: Criterion) -> Entry | None:
    """The whole checkpoint whose finite `meta["metrics"]` of the criterion is best, the newest of equals.

    None where no checkpoint has that metric. Its files are not read: `usable` does that.
    """
    found: Entry | None = None
    record = 0.0
    for entry in scan(directory):
        values = entry.meta.get("metrics")
        value = values.get(criterion.metric) if isinstance(values, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not -math.inf < value < math.inf:  # not `isfinite`: an integer may be too long for it
            continue
        if found is None or criterion.better(value, record):
            found, record = entry, value
    return found
