"""A run with its data, its checkpoints and its evaluation: what the modes that train or evaluate share."""

import contextlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer import checkpoint, distribution, manifest, pipelines, plan, setup
from trainer.errors import UserError, listing
from trainer.feeds import Feed
from trainer.loop import evaluate
from trainer.manifest import Entry
from trainer.report import Reporter
from trainer.setup import Run
from trainer.step import Program

LOWER_IS_BETTER = ("loss", "error", "perplexity")


def training_feed(run: Run) -> Feed:
    """Batches of one update's examples, in the order of the run's seed."""
    config, strategy, decode = run.config, run.built.strategy, getattr(run.built.module, "decode", None)
    return pipelines.train_feed(
        run.residency,
        run.dataset,
        config.train_split,
        decode,
        strategy,
        config.batch_size * config.accumulate,
        config.seed,
        distribution.worker(strategy),
        config.accumulate,
    )


def evaluation_feed(run: Run) -> Feed | None:
    """Every example of the evaluation split once; None with `--eval_split=none`."""
    config, strategy, decode = run.config, run.built.strategy, getattr(run.built.module, "decode", None)
    if config.eval_split == "none":
        return None
    way = pipelines.residency(config.data_residency, run.dataset, config.eval_split, decode, strategy)
    workers = distribution.worker(strategy)
    batch = config.batch_size
    return pipelines.eval_feed(way, run.dataset, config.eval_split, decode, strategy, batch, workers)


def evaluator(
    run: Run, program: Program, reporter: Reporter, weights: tuple[str, ...]
) -> Callable[[], dict[str, float]] | None:
    """A function that evaluates the weights as they stand and reports the result.

    Args:
      weights: `raw`, `ema` or both, in the order to evaluate them in; the last one's metrics are
        what the function returns.
    """
    feed = evaluation_feed(run)
    if feed is None:
        return None
    function = program.evaluator(feed)

    def one(kind: str) -> dict[str, float]:
        with averaged(program) if kind == "ema" else contextlib.nullcontext():
            values = evaluate(program, function, feed)
        if values:
            step = int(program.state.step.numpy())
            reporter.evaluation({"kind": "eval", "step": step, "weights": kind, **values})
        return values

    def all_kinds() -> dict[str, float]:
        results = [one(kind) for kind in weights]
        return results[-1] if all(results) else {}

    return all_kinds


@contextlib.contextmanager
def averaged(program: Program) -> Any:
    """The averages of the weights in the place of the weights, for as long as the context lasts."""
    swap = tf.function(lambda: program.state.swap_averages(program.strategy))
    swap()
    try:
        yield
    finally:
        swap()


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

    def restore(self, entry: Entry, only: set[str] | None = None) -> None:
        """Loads `entry` into the state, all of it or the names in `only`."""
        checkpoint.load(entry, self.program.state.named(), only)


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


def resumed(run: Run, entry: Entry, accept: bool) -> tuple[Run, list[str]]:
    """The run that goes on from `entry`, and what changed with `--accept_plan_change`.

    Raises:
      UserError: the plan differs and that is not accepted; the message has the diff.
    """
    now = run.plan()
    changed = plan.differences(entry.meta["plan"], now, entry.step)
    if not changed:
        return run, []
    if not accept:
        raise UserError(
            f"--workdir: {entry.path} was saved by a run of another plan ( - as saved, + as now):\n"
            + "\n".join(changed)
            + "\nGo back to the flags it was started with (flags.txt in the workdir), name another "
            "--workdir, or give --accept_plan_change to go on with the new plan."
        )
    prefix, suffix = "optimizer/", "/iterations"
    names = [n for n in entry.variables if n.startswith(prefix) and n.endswith(suffix)]
    counts = {
        name.removeprefix(prefix).removesuffix(suffix): int(value)
        for name, value in checkpoint.read(entry, names).items()
    }
    return setup.cohorts(run, counts), changed


def load_what_fits(entry: Entry, program: Program) -> list[str]:
    """After an accepted change of plan: loads what the checkpoint has; names what starts fresh."""
    state = program.state.named()
    other = checkpoint.compare(entry, state)
    fresh = sorted({*other.missing, *other.changed})
    checkpoint.load(entry, state, {name for name in state if name not in fresh})
    for v in program.state.variables:
        if f"ema/{v.name}" in fresh:
            program.state.averages[v.name].assign(v.value.read_value())
    return fresh


def describe_fresh(fresh: list[str]) -> str:
    """A sentence on what an accepted change of plan starts anew."""
    return f"Not in the checkpoint, so it starts fresh: {listing(fresh, 100)}." if fresh else ""


def chief(run: Run) -> bool:
    """Whether this process writes checkpoints, metrics and event files."""
    return distribution.is_chief(run.built.strategy)
