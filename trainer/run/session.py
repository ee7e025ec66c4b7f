"""A run with its data and its checkpoints: what the modes that train share."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.checkpoints import checkpoint, manifest
from trainer.checkpoints.manifest import Entry
from trainer.data.feed import Feed
from trainer.data.streaming import train_feed
from trainer.devices.agreement import check_same, from_first
from trainer.devices.strategy import worker
from trainer.flags.config import Config
from trainer.groups import plan
from trainer.report.screen import Reporter
from trainer.restore import receipt
from trainer.restore.match import load
from trainer.run.assemble import Run
from trainer.run.build import Built, match_source
from trainer.training.program import Program

LOWER_IS_BETTER = ("loss", "error", "perplexity")


def training_feed(run: Run) -> Feed:
    """Batches of one update's examples, in the order of the run's seed."""
    config, strategy, decode = run.config, run.built.strategy, getattr(run.built.module, "decode", None)
    return train_feed(
        run.residency,
        run.dataset,
        config.train_split,
        decode,
        strategy,
        config.batch_size * config.accumulate,
        config.seed,
        worker(strategy),
        config.accumulate,
    )


def initialise(config: Config, built: Built, reporter: Reporter, workdir: Path | None) -> dict[str, str]:
    """Restores the model from `--init_from` by its rules; `{variable: where its start value comes from}`.

    The receipt is shown, and written into `workdir` where there is one.

    Raises:
      UserError: all that does not fit, in one message; nothing has been assigned.
    """
    matched = match_source(config, built)
    lines = receipt.assign(built.strategy, matched, load(matched))
    columns, rows = receipt.describe(lines, matched.leftover)
    source = matched.source
    reporter.table(f"Restored from {source.path} ({source.kind})", columns, rows)
    if workdir:
        receipt.write(lines, matched, workdir)
    return matched.starts()


def newest(directory: Path, reporter: Reporter, strategy: tf.distribute.Strategy) -> Entry | None:
    """The checkpoint to go on from, if any: the same on all workers. The first, which holds the lock,
    looks first, and clears away what a kill left.

    Raises:
      UserError: there are checkpoints and none is whole, the directory cannot be used, or the
        workers do not find the same one in it.
    """
    found: list[Entry | None] = []

    def look(holds_lock: bool) -> str:
        notes = checkpoint.clean(directory) if holds_lock else []
        entry, warnings = checkpoint.newest(directory, set_aside=holds_lock)
        for sentence in [*notes, *warnings]:
            reporter.warn(sentence)
        found.append(entry)
        return entry.path.name if entry else "none"

    chosen = from_first(strategy, lambda: look(True))
    here = chosen if found else look(False)
    remedy = "All workers must see the same --workdir, on a file system that they share."
    check_same(strategy, {"newest checkpoint": here}, f"contents of {directory}", remedy)
    return found[0]


@dataclass
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
      directory: `workdir/checkpoints`.
      program: whose state is saved.
      run: for what the manifest says of it.
      reporter: told of each checkpoint.
      plan: of the run, as JSON.
    """

    directory: Path
    program: Program
    run: Run
    reporter: Reporter
    plan: Mapping[str, Any]
    last: Path | None = field(default=None)

    def save(self, step: int, metrics: Mapping[str, float]) -> None:
        """Saves the state at `step`; then deletes what `--keep` and `--keep_best` let go.

        Raises:
          UserError: it could not be saved; those before it are intact.
        """
        config, total = self.run.config, self.run.total
        meta = {
            "plan": self.plan,
            "plan_hash": plan.digest(self.plan),
            "metrics": dict(metrics),
            "finished": step == total,
            "flags": given(config),
            "data": self.run.dataset.full_name,
            "replicas": self.program.replicas,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
            },
        }
        self.reporter.sync()
        self.last = checkpoint.save(self.directory, step, unshared(self.program.state.named()), meta)
        protect: set[int] = set()
        if config.keep_best:
            best = manifest.best(self.directory, config.keep_best, lower_is_better(config.keep_best))
            protect = {best.step} if best else set()
        for note in checkpoint.prune(self.directory, config.keep, protect):
            self.reporter.warn(note)


def unshared(state: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    """`state` with a copy in the place of a variable that has had a name before.

    An optimizer keeps one count for its variables, which a checkpoint holds under each of them.
    """
    seen: set[int] = set()
    result = {}
    for name, variable in state.items():
        result[name] = tf.Variable(variable.read_value()) if id(variable) in seen else variable
        seen.add(id(variable))
    return result


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one, by its name."""
    return any(word in metric for word in LOWER_IS_BETTER)


def given(config: Config) -> dict[str, Any]:
    """`{flag: value}` of the flags that differ from their defaults."""
    return {name: value for name, value in vars(config).items() if value != getattr(Config(), name)}
