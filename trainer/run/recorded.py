"""What a checkpoint may say of the flags it was saved under, where `--model` is not given.

A checkpoint may have been handed in. It may name a model of `models/` and a known data set, and say numbers;
it must not choose which module of this machine is imported, or which path is read or written. What it says
beyond that is shown, ready to paste by whoever trusts it.
"""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import bundled
from trainer.checkpoints.manifest import Entry
from trainer.data.sources.tfds_builders import is_known
from trainer.errors import UserError
from trainer.flags.calls import parse_call
from trainer.flags.config import Config

_TAKEN = (
    "model",
    "dataset",
    "fallback_dataset",
    "data_dir",
    "manual_dir",
    "eval_split",
    "batch_size",
    "precision",
    "pad",
    "bad_examples",
)


def flags(entry: Entry) -> dict[str, Any]:
    """The flags that the checkpoint was saved under, those of the right type."""
    found = entry.meta.get("flags")
    defaults = vars(Config())
    found = found if isinstance(found, dict) else {}
    return {k: v for k, v in found.items() if k in defaults and type(v) is type(defaults[k])}


def completed(config: Config, entry: Entry) -> tuple[Config, str]:
    """The flags with those of the checkpoint in the place of what is not given; and these in words.

    Raises:
      UserError: the checkpoint names no model, or something that is not taken from a checkpoint.
    """
    found, defaults = flags(entry), vars(Config())
    taken = {n: found[n] for n in _TAKEN if n in found and getattr(config, n) == defaults[n]}
    if "model" not in taken:
        raise UserError(f"--model: not given, and {entry.path} names none. Give it, and --dataset.")
    of_python = [name for name in ("model", "dataset") if str(taken.get(name, "")).startswith("<")]
    if of_python:
        what = of_python[0]
        raise UserError(
            f"--{what}: not given. The run of {entry.path} was given its {what} in Python, so it must be "
            f"given again: trainer.Run({what}=..., workdir=...)."
        )
    each = [(n, one) for n, value in taken.items() for one in (value if isinstance(value, list) else [value])]
    words = " ".join(shlex.quote(f"--{name}={value}") for name, value in each)
    if strange := [name for name, value in taken.items() if not _harmless(name, value)]:
        named = " and ".join(f"--{name}" for name in strange)
        raise UserError(
            f"--model: not given. {entry.path} records {named} that is not taken from a checkpoint: only "
            "names of models/ and of known data sets are, never a module and never a path. If you trust it, "
            f"give the flags yourself (or --flagfile=flags.txt of the run):\n  {words}"
        )
    config = dataclasses.replace(config, **taken)
    config.check()
    return config, words


def _harmless(name: str, value: Any) -> bool:
    """Whether a recorded flag names nothing but what this program brings."""
    if name == "model":
        return _is_bundled(value)
    if name in ("dataset", "fallback_dataset"):
        return is_known(value)
    return name not in ("data_dir", "manual_dir")


def _is_bundled(text: str) -> bool:
    """Whether it calls a model of `models/` with no text among its arguments that could be a path."""
    try:
        call = parse_call(text, "--model")
    except UserError:
        return False
    own = Path.cwd() / "models" / f"{call.name}.py"
    brought = {file.stem: file for file in bundled.folder("models").glob("[!_]*.py")}.get(call.name)
    if brought is None or (own.is_file() and not own.samefile(brought)):  # which would go before it
        return False
    return all(map(_is_plain, [*call.args, *call.kwargs.values()]))


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z0-9_-]*", value) is not None
    if isinstance(value, Mapping):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return not isinstance(value, bytes)
