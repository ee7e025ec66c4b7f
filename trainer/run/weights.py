"""The weights that `--mode=evaluate` and `--mode=export` take: a checkpoint's, or those of `--init_from`."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.checkpoints import checkpoint, manifest
from trainer.checkpoints.differences import Differences
from trainer.checkpoints.manifest import Entry
from trainer.devices.replicas import assign
from trainer.errors import UserError, listing
from trainer.flags import criteria
from trainer.flags.config import Config
from trainer.flags.criteria import Criterion
from trainer.groups.plan import trained_at
from trainer.model.finalize import finalize
from trainer.report.screen import Screen
from trainer.run import recorded
from trainer.run.build import Built, module_of
from trainer.run.start import initialise
from trainer.run.workdir import Workdir


@dataclass(frozen=True)
class Saved:
    """Weights of a checkpoint, read: `{variable: array}`; `entry` is None where --init_from has them."""

    entry: Entry | None
    arrays: Mapping[str, np.ndarray]

    @property
    def trained(self) -> frozenset[str] | None:
        """Names of the weights that trained at the checkpoint's step; None where no plan tells."""
        return trained_at(self.entry.meta.get("plan"), self.entry.step) if self.entry else None

    def assign(self, config: Config, built: Built, screen: Screen) -> str:
        """Gives the model its weights; says in words which ones.

        Raises:
          UserError: they do not fit the model; nothing has been assigned.
        """
        if self.entry is None:
            initialise(config, built, screen, None)
            return f"{config.init_from} (--init_from)"
        here = {v.name: (v.shape, v.dtype.name) for v in built.variables}
        saved = {name: (array.shape, tf.as_dtype(array.dtype).name) for name, array in self.arrays.items()}
        wrong = Differences(
            missing=sorted(here.keys() - saved.keys()),
            extra=sorted(saved.keys() - here.keys()),
            changed={n: (saved[n], here[n]) for n in here if n in saved and here[n] != saved[n]},
        ).lines()
        if wrong:
            lines = "\n".join(wrong)
            raise UserError(
                f"--model={config.model_name}: {self.entry.path} does not fit it.\n{lines}\n"
                "Give --model and its arguments as the run had them (flags.txt in its workdir)."
            )
        for v in built.variables:
            assign(v.value, self.arrays[v.name])
        finalize(built.variables)
        return f"{self.entry.path} ({config.weights} weights)"


def find(config: Config) -> tuple[Config, Saved, list[str]]:
    """The flags, completed; the weights that they ask for; and sentences to be notes.

    Takes no lock and writes nothing, so that it can be used beside a training process.

    Raises:
      UserError: there are no such weights.
    """
    notes: list[str] = []
    entry, arrays = _retried(config, notes) if config.workdir else (None, {})
    if entry is None:
        if not config.init_from:
            where = (
                f"in {config.workdir}/checkpoints" if config.workdir else "without --workdir or --init_from"
            )
            raise UserError(
                f"--mode={config.mode}: there is no checkpoint {where}. Name the --workdir of a run."
            )
        if config.weights != "raw" or config.checkpoint != "newest":
            raise UserError(
                "--weights and --checkpoint choose among the checkpoints of --workdir, where there is none. "
                "For --init_from there is --init_weights."
            )
        return config, Saved(None, {}), notes
    if config.init_from:
        notes.append(
            f"--init_from={config.init_from} is not used: {config.workdir} has checkpoints. To take its "
            "weights, give an empty --workdir= after the flagfile."
        )
    if not config.model:
        config, words = recorded.completed(config, entry)
        notes.append(f"Flags as the checkpoint has them: {words}")
    return config, Saved(entry, arrays), notes


def _retried(config: Config, notes: list[str]) -> tuple[Entry | None, dict[str, np.ndarray]]:
    """Training beside may delete an old checkpoint while it is read: then another look finds the next."""
    directory = Workdir.needed(config).checkpoints
    for _ in range(9):
        names = manifest.names_in(directory)
        try:
            return _read(config, notes)
        except UserError:
            if manifest.names_in(directory) == names:
                raise
            notes.clear()
    return _read(config, notes)


def _read(config: Config, notes: list[str]) -> tuple[Entry | None, dict[str, np.ndarray]]:
    entry = _chosen(config, notes)
    if entry is None:
        return None, {}
    names = {n.removeprefix("model/"): n for n in entry.variables if n.startswith("model/")}
    if config.weights == "ema":
        averages = {n.removeprefix("ema/"): n for n in entry.variables if n.startswith("ema/")}
        if not averages:
            raise UserError(f"--weights=ema: {entry.path} keeps no averages; it was saved without --ema.")
        names |= averages
    values = checkpoint.read(entry, list(names.values()))
    return entry, {name: values[stored] for name, stored in names.items()}


def _chosen(config: Config, notes: list[str]) -> Entry | None:
    """The checkpoint that `--checkpoint` names; None where `newest` finds none at all."""
    directory = Workdir.needed(config).checkpoints
    if config.checkpoint.isdecimal():
        return manifest.at(directory, int(config.checkpoint))
    if config.checkpoint not in ("newest", "best"):
        steps = listing(str(entry.step) for entry in manifest.scan(directory))
        raise UserError(f"--checkpoint={config.checkpoint}: not newest, best or a step. There is: {steps}.")
    entry, warnings = checkpoint.newest(directory, set_aside=False)
    notes += warnings
    if entry is None or config.checkpoint == "newest":
        return entry
    wanted = _criterion(config, entry)
    best = manifest.best(directory, wanted)
    if best is None:
        raise UserError(
            f"--checkpoint=best: no checkpoint in {directory} was evaluated in {wanted.metric!r}."
        )
    return manifest.usable(best)


def _criterion(config: Config, entry: Entry) -> Criterion:
    """What best means: by `--keep_best`, else as the run kept it; its direction by whatever states it.

    Raises:
      UserError: nothing says so; with the words to write.
    """
    kept = entry.meta.get("best_by")
    kept = kept if isinstance(kept, str) else ""
    text = config.keep_best or kept or recorded.flags(entry).get("keep_best", "")
    if not text:
        raise UserError(
            "--checkpoint=best: best in what? Name the metric, such as --keep_best=accuracy or "
            "--keep_best=rmse:min."
        )
    stated = dict(module_of(config)[0].better or {}) if config.model else {}
    metric, written = criteria.split(text)
    if config.keep_best and not written:
        before, direction = criteria.split(kept)
        stated = {before: direction, **stated} if direction else stated
    return criteria.criterion(text if config.keep_best or metric not in stated else metric, stated)
