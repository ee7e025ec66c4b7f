"""Checkpoints: flat named variables, written aside, committed by rename, restored all or nothing.

The data files are what `tf.train.Checkpoint(v=state).write` makes, so plain TensorFlow reads them
too; `manifest.py` says what else a checkpoint directory holds and when it is whole.
"""

import contextlib
import itertools
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.checkpoints import manifest
from trainer.checkpoints.differences import Differences
from trainer.checkpoints.files import sync
from trainer.checkpoints.manifest import Entry, ShapeDtype, check, scan, usable
from trainer.devices.replicas import assign
from trainer.errors import UserError, listing

_UNFINISHED = re.compile(r"\.tmp-(step|pruned)-[0-9a-f-]+")
# What an unfinished directory of ours can hold, TensorFlow's own temporary files among them.
_OWN = re.compile(
    r"(manifest\.json|(data|part-\d{5}-of-\d{5})\.(index|data-\d{5}-of-\d{5}))(\.tempstate\d+)?"
)


# Writing


def save(directory: Path, step: int, state: Mapping[str, tf.Variable], meta: dict) -> Path:
    """Writes `state` as the checkpoint of `step` and returns its directory, whole and on the disk.

    `directory` is `workdir/checkpoints`, made if need be. `meta` is any JSON (plan, seed, metrics,
    ...); NaN and infinities in it become the strings "NaN", "Infinity" and "-Infinity". Of a
    MirroredVariable the first replica is saved.

    Nothing is overwritten. Where the newest whole checkpoint of this step has the same values and
    meta, it stays as it is and its path is returned; with other values or meta the new one stands
    beside it as `step-<step>-2` and is the newer one. A damaged one is first set aside.

    Raises UserError when the disk is full or cannot be written; then what was there before is
    untouched and no part of the new checkpoint is left. ValueError for a state that the format
    cannot hold: one variable under two names.
    """
    aside = directory / f".tmp-step-{step:09d}-{secrets.token_hex(4)}"
    try:
        if not directory.is_dir():
            directory.mkdir(parents=True)
            sync(directory.parent)
        aside.mkdir()
        tf.train.Checkpoint(v=dict(state)).write(str(aside / "data"))
        _reader(aside, _specs(state))
        text = manifest.text(step, _specs(state), aside, meta)
        (aside / manifest.NAME).write_text(text, encoding="utf-8")
        for name in os.listdir(aside):
            sync(aside / name)
        sync(aside)
        return _commit(directory, step, aside)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"The checkpoint of step {step} could not be saved in {directory}: {_reason(error)}. "
            "Those saved before it are as they were. Free some space or make the directory "
            "writable, then run the same command again: it goes on from the newest one."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _remove(aside)


def _commit(directory: Path, step: int, aside: Path) -> Path:
    """Renames `aside` to its place; `save` says what happens when the step is there already."""
    same = [e for e in map(check, scan(directory, step)) if not _set_aside(e)]
    if same:
        new, old = manifest.read(aside, step), usable(same[0])
        if (new.files, new.meta) == (old.files, old.meta):
            return old.path
    revision = same[0].revision + 1 if same else 1
    target = directory / (f"step-{step:09d}" + (f"-{revision}" if same else ""))
    aside.rename(target)
    sync(directory)
    return target


# Keeping house


def clean(directory: Path) -> list[str]:
    """Removes what killed saves and prunings left unfinished; a sentence for each that must stay.

    Only for the process that holds the workdir's lock: another's save in progress looks the same.
    """
    with _refused(f"What is unfinished in {directory} could not be removed"):
        unfinished = [n for n in manifest.names_in(directory) if _UNFINISHED.fullmatch(n)]
        return [
            f"{directory / name} holds what is not the program's, and stays."
            for name in unfinished
            if not _remove(directory / name)
        ]


def prune(directory: Path, keep: int, protect: Collection[int] = ()) -> list[str]:
    """Deletes all but the newest `keep` (1 or more) whole checkpoints and the steps in `protect`.

    Only files that the checkpoint's own manifest names go, and links are not followed. Where a
    directory holds anything else, that stays, in `pruned-step-...`, and a sentence says so.
    """
    whole = [entry for entry in scan(directory) if not entry.damage]
    notes = []
    for entry in whole[max(keep, 1) :]:
        if entry.step in protect:
            continue
        failed = f"The old checkpoint {entry.path} could not be deleted"
        with _refused(failed), contextlib.suppress(FileNotFoundError):
            own = {*entry.files, manifest.NAME}
            alien = sorted(set(os.listdir(entry.path)) - own)
            # Renamed first: a kill half-way must not leave what looks like a damaged checkpoint.
            gone = directory / f".tmp-pruned-{entry.path.name[5:]}-{secrets.token_hex(4)}"
            if alien:
                gone = _free(directory, f"pruned-{entry.path.name}")
                notes.append(f"{gone} stays for what is not the program's: {listing(alien)}.")
            entry.path.rename(gone)
            for name in own:
                (gone / name).unlink()
            if not alien:
                gone.rmdir()
    return notes


def _remove(path: Path) -> bool:
    """Deletes an unfinished directory; False where it holds, or is, something that is not ours."""
    if not os.path.lexists(path):
        return True
    if path.is_symlink() or not path.is_dir():
        return False
    for item in list(os.scandir(path)):
        if item.is_dir(follow_symlinks=False) and item.name.startswith("data_temp"):
            _remove(Path(item.path))
        elif item.is_file(follow_symlinks=False) and _OWN.fullmatch(item.name):
            os.unlink(item.path)
    if os.listdir(path):
        return False
    path.rmdir()
    return True


def _set_aside(entry: Entry) -> Path | None:
    """Renames a damaged checkpoint to `damaged-...`, where it stays; None if it is not damaged."""
    if not entry.damage or entry.later:
        return None
    target = _free(entry.path.parent, f"damaged-{entry.path.name}")
    with _refused(f"The damaged checkpoint {entry.path} could not be set aside"):
        entry.path.rename(target)
        sync(target.parent)
    return target


def _free(directory: Path, name: str) -> Path:
    names = (f"{name}-{i}" if i > 1 else name for i in itertools.count(1))
    return next(directory / n for n in names if not os.path.lexists(directory / n))


# Reading


def newest(directory: Path, set_aside: bool = True) -> tuple[Entry | None, list[str]]:
    """The newest checkpoint whose every byte is right (None: there is none at all), and warnings.

    Damaged ones are renamed to `damaged-...`, a sentence for each; with `set_aside` false (for a
    reader that does not hold the workdir's lock) they are only told of.

    Raises UserError where there are checkpoints and none is whole, now or since an earlier start,
    or where one of a later format version comes first: that is no reason to start afresh.
    """
    found: Entry | None = None
    damaged = []
    for entry in scan(directory):
        entry = entry if found else check(entry)
        if entry.damage and not entry.later:
            damaged.append(entry)
        elif not found:
            found = entry if not entry.later else usable(entry)  # which refuses it
    if not found:
        aside = [name for name in manifest.names_in(directory) if name.startswith("damaged-step-")]
        if not damaged and not aside:
            return None, []
        reasons = [*(f"{entry.path.name}: {entry.damage}" for entry in damaged), *aside]
        raise UserError(
            f"No checkpoint in {directory} is whole ({'; '.join(reasons)}). Training does not start "
            f"afresh over them: name another --workdir, or move {directory} away and run again."
        )
    notes = []
    for entry in damaged:
        target = _set_aside(entry) if set_aside else None
        done = f"set aside as {target.name}" if target else "passed over"
        notes.append(
            f"The checkpoint {entry.path} is damaged ({entry.damage}) and is {done}; "
            f"the newest whole one is {found.path.name}."
        )
    return found, notes


def compare(entry: Entry, state: Mapping[str, tf.Variable]) -> Differences:
    """How the names, shapes and dtypes of `state` differ from those saved, in order of name."""
    here, saved = _specs(state), entry.variables
    both = sorted(here.keys() & saved.keys())
    return Differences(
        missing=sorted(here.keys() - saved.keys()),
        extra=sorted(saved.keys() - here.keys()),
        changed={n: (saved[n], here[n]) for n in both if here[n] != saved[n]},
    )


def load(entry: Entry, state: Mapping[str, tf.Variable], only: Collection[str] | None = None) -> None:
    """Assigns the saved values to `state`, bit for bit, on every replica; or nothing at all.

    `only` names the variables to load; without it every name must be on both sides. Names, shapes
    and dtypes are compared, and every tensor is read (TensorFlow checks its CRC), before the first
    is assigned. Raises UserError with all differences at once, or where a file cannot be read.
    """
    if entry.damage:
        usable(entry)
    names = sorted(only if only is not None else {*state, *entry.variables})
    wrong = Differences(
        [name for name in names if name not in entry.variables],
        [name for name in names if name not in state],
        {n: pair for n, pair in compare(entry, state).changed.items() if n in names},
    ).lines()
    if wrong:
        lines = "\n".join(wrong)
        raise UserError(f"The checkpoint {entry.path} does not fit; nothing was loaded.\n{lines}")
    for name, value in read(entry, names).items():
        assign(state[name], value)


def read(entry: Entry, names: Collection[str]) -> dict[str, Any]:
    """`{name: array}` of some of the entry's variables. UserError where a file cannot be read."""
    try:
        reader = _reader(entry.path, {name: entry.variables[name] for name in names})
        return {name: reader.get_tensor(manifest.key(name)) for name in names}
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(
            f"The checkpoint {entry.path} cannot be read, and nothing was loaded: {_reason(error)}."
        ) from error


def _reader(path: Path, specs: Mapping[str, ShapeDtype]) -> Any:
    """TensorFlow's reader, whose index was found to hold `specs`; ValueError where it does not.

    Not `tf.train.load_checkpoint`: where `data` is a directory, that follows a state file in it.
    """
    reader = tf.compat.v1.train.NewCheckpointReader(str(path / "data"))
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    for name, (shape, dtype) in specs.items():
        at = manifest.key(name)
        if at not in shapes or (tuple(shapes[at]), dtypes[at].name) != (shape, dtype):
            raise ValueError(f"the index {path / 'data.index'} does not hold {name} as it should")
    return reader


def _specs(state: Mapping[str, tf.Variable]) -> dict[str, ShapeDtype]:
    return {name: (tuple(v.shape), tf.as_dtype(v.dtype).name) for name, v in state.items()}


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {_reason(error)}. Make the directory writable.") from error


def _reason(error: Exception) -> str:
    text = str(getattr(error, "message", "") or error).splitlines()[0]
    return re.sub(r"\{\{.*?\}\}| \[Op:\w+\]", "", text).strip()  # TensorFlow's own trimmings
