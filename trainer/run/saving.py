"""The checkpoints of a run: the newest to go on from, and those that it writes."""

import contextlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.checkpoints import checkpoint, manifest
from trainer.checkpoints.manifest import Entry
from trainer.devices.agreement import check_same, from_first
from trainer.errors import UserError
from trainer.groups import plan
from trainer.report.reporter import Reporter
from trainer.run.assemble import Assembled
from trainer.run.predictions import describe
from trainer.training.program import Program


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
      assembled: the run, for what the manifest says of it.
      reporter: told of each checkpoint.
      plan: of the run, as JSON.
      last: the checkpoint written last.
      step: of the newest one there is; 0 for none.
    """

    directory: Path
    program: Program
    assembled: Assembled
    reporter: Reporter
    plan: Mapping[str, Any]
    last: Path | None = field(default=None)
    step: int = 0

    def rescue(self) -> bool:
        """Saves what no checkpoint has yet, after an error; whether that was possible, or not needed."""
        step = int(self.program.state.step.numpy())
        if step != self.step:
            with contextlib.suppress(UserError):
                self.save(step, {})
        return step == self.step

    def save(self, step: int, metrics: Mapping[str, float]) -> None:
        """Saves the state at `step`; then deletes what `--keep` and `--keep_best` let go.

        Raises:
          UserError: it could not be saved; those before it are intact.
        """
        self.reporter.check()
        config, total = self.assembled.config, self.assembled.total
        meta = {
            "plan": self.plan,
            "plan_hash": plan.digest(self.plan),
            "metrics": dict(metrics),
            "best_by": str(self.assembled.criterion or ""),
            "finished": step == total or bool(self.assembled.judge.ended),
            "stopping": self.assembled.judge.recorded(),
            "flags": config.given(),
            "data": self.assembled.split.source.full_name,
            "example": describe(self.assembled.split.source.spec()),
            "replicas": self.program.replicas,
            "records": self.reporter.written,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
            },
        }
        self.reporter.sync()
        self.last = checkpoint.save(self.directory, step, unshared(self.program.state.named()), meta)
        self.step = step
        protect: set[int] = set()
        if self.assembled.criterion:
            best = manifest.best(self.directory, self.assembled.criterion)
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
