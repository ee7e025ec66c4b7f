"""A run from its start, or from where it was, to its end: what `--mode=train` and `Run.train` share."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoints.lock import Lock
from trainer.devices import agreement
from trainer.devices.strategy import is_chief
from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.flags.span import span
from trainer.groups import plan as plans
from trainer.report.reporter import NO_HOOKS, Hooks, Reporter
from trainer.report.screen import Screen
from trainer.run import ending, resume, saving
from trainer.run.assemble import Assembled, assemble
from trainer.run.environment import environment
from trainer.run.resume import Resume
from trainer.run.start import initialise
from trainer.run.workdir import Workdir
from trainer.signals import Stop
from trainer.training.evaluation import evaluator
from trainer.training.loop import Loop, Result
from trainer.training.profile import Profile
from trainer.training.program import Program


@dataclass
class Live:
    """A run in this process: what it is made of, and its state; None as long as there is none."""

    made: Assembled | None = None
    program: Program | None = None


@dataclass
class _Begun:
    """A run on its way, with what of the outside it was given."""

    made: Assembled
    resumed: Resume | None
    workdir: Workdir | None
    reporter: Reporter
    stop: Stop | None
    profile: Profile

    @property
    def chief(self) -> bool:
        return is_chief(self.made.built.strategy)


def train(
    config: Config,
    screen: Screen,
    hooks: Hooks = NO_HOOKS,
    stop: Stop | None = None,
    live: Live | None = None,
) -> Result:
    """Trains from the newest checkpoint of `--workdir`, or from the start, to the end.

    Args:
      config: the flags; without a `workdir` nothing is written.
      screen: for people.
      hooks: the user's own functions.
      stop: what signals do, where they are caught.
      live: filled with the run; where it holds one already, that goes on.

    Raises:
      UserError: the run cannot start or go on as asked, or a step was not finite.
      KeyboardInterrupt: it came while the run trained; the state was saved.
    """
    began, workdir, live = time.perf_counter(), Workdir.of(config), live or Live()
    with contextlib.ExitStack() as stack:
        made = live.made or assemble(config, resumes=bool(workdir and workdir.has_checkpoints))
        steps = _profiled(made)
        if stop:
            stop.catch()
        strategy = made.built.strategy
        if workdir:
            lock = Lock(workdir.path)
            agreement.from_first(strategy, lambda: str(stack.enter_context(lock).workdir.name))
        reporter = _reporter(made, workdir, screen, hooks)
        stack.callback(reporter.close)
        entry = saving.newest(workdir.checkpoints, reporter, strategy) if workdir else None
        resumed = resume.resume(made, entry, config.accept_plan_change) if entry else None
        if resumed and resumed.finished:
            reporter.note(resume.finished_note(resumed))
            return Result(_metrics(resumed), resumed.made.total)
        directory = workdir.path / "tensorboard" / "train" if workdir else Path()
        profile = Profile(steps, directory, reporter.warn)
        begun = _Begun(resumed.made if resumed else made, resumed, workdir, reporter, stop, profile)
        plan = {key: json.dumps(value) for key, value in begun.made.plan().items()}
        agreement.check_same(strategy, plan, "plans", "Give all the same data and --data_residency.")
        sources: dict[str, str] = {}
        if live.program is None:
            live.program, sources = _start(begun)
        live.made = begun.made
        return _train(begun, live.program, sources, began)


def _reporter(made: Assembled, workdir: Workdir | None, screen: Screen, hooks: Hooks) -> Reporter:
    """What the run says: of several workers the first does. It begins with devices and data."""
    chief = is_chief(made.built.strategy)
    screen.quiet = screen.quiet or not chief
    files = workdir.path if workdir and chief else None
    epoch = made.total / made.epochs
    reporter = Reporter(files, made.total, epoch, screen, hooks, made.config.show_groups)
    for note in (made.built.engine, *made.split.source.notes):
        reporter.note(note)
    return reporter


def show_plan(screen: Screen, plan: Mapping[str, Any]) -> None:
    """The table of the variables, the rules, and the table of the groups."""
    columns, rows, below = plans.table(plan)
    screen.table(f"Plan: {plan['total']} steps; @N: learning rate at step N; wd: weight decay", columns, rows)
    for sentence in below:
        screen.note(sentence)
    columns, rows = plans.totals_table(plan)
    screen.table("Groups", columns, rows)


def _start(begun: _Begun) -> tuple[Program, dict[str, str]]:
    """The state that the run starts from, and where each value of it comes from."""
    made, resumed, config = begun.made, begun.resumed, begun.made.config
    sources: dict[str, str] = {}
    if config.init_from and not resumed:
        receipt_in = begun.workdir if begun.chief else None
        sources = initialise(config, made.built, begun.reporter.screen, receipt_in)
    program = made.program()
    if resumed:
        notes = resumed.restore(program)
        sources = dict.fromkeys((v.name for v in made.built.variables), resumed.entry.path.name)
        begun.reporter.note(resume.note(resumed, program, notes))
    return program, sources


def _train(begun: _Begun, program: Program, sources: Mapping[str, str], began: float) -> Result:
    made, reporter, workdir = begun.made, begun.reporter, begun.workdir
    examples = made.evaluation_feed()
    weights = ("raw", "ema") if made.config.ema is not None else ("raw",)
    plan = made.plan(sources)
    saved = saving.Checkpoints(workdir.checkpoints, program, made, reporter, plan) if workdir else None
    loop = Loop(
        program,
        made.parts.phases,
        dataclasses.replace(made.events, marks=begun.profile.marks),
        made.training_feed(),
        reporter,
        evaluator(examples, program, reporter, weights) if examples else None,
        _save(begun, saved),
        evaluate_first=bool(begun.resumed and begun.resumed.unevaluated),
        save_evaluated=bool(made.config.keep_best),
        profile=begun.profile,
        histograms=made.config.histograms,
    )
    # From here on no refusal is left, and the files of the run may change.
    reporter.trim(begun.resumed.entry.step if begun.resumed else 0, evaluated=not loop.evaluate_first)
    show_plan(reporter.screen, plan)
    if workdir and begun.chief:
        workdir.record(plan, made.config, environment(made))
        ending.describe(reporter, workdir, plan, made.config, int(program.state.step.numpy()))
    program.stop.assign(False)
    if begun.stop:
        begun.stop.request = lambda: program.stop.assign(True)
    _check_workers(program, "start values", "All must read the same --workdir and the same --init_from.")
    result = loop.run()
    _check_workers(program, "values at the end", "This run is worthless; please report it with its flags.")
    reporter.summary(_summary(made, result, saved, time.perf_counter() - began))
    if workdir and begun.chief:
        report = ending.write_report(made.config, workdir, reporter, result.step)
        next_rows = ending.where_next(made.config, workdir, result, report)
        reporter.screen.table("Next", ("what", "where or how"), next_rows)
    return result


def _profiled(made: Assembled) -> tuple[int, int] | None:
    """The steps of `--profile`."""
    steps = span(made.config.profile, "--profile")
    if steps and steps[1] > made.total:
        raise UserError(
            f"--profile={made.config.profile}: the run has {made.total} steps. Name some of them."
        )
    return steps


def _save(begun: _Begun, saved: saving.Checkpoints | None) -> Callable[[int, dict[str, float]], None] | None:
    """What writes a checkpoint: of several workers the first does."""
    if saved is None or begun.chief:
        return saved.save if saved else None
    return lambda step, metrics: None


def _check_workers(program: Program, what: str, remedy: str) -> None:
    """Several workers: that all hold the same state, bit for bit."""
    state = agreement.digests(program.strategy, program.state.named())
    agreement.check_same(program.strategy, state, what, remedy)


def _metrics(resumed: Resume) -> dict[str, float]:
    """Of the evaluation at the end of a finished run, as far as its manifest tells."""
    metrics = resumed.entry.meta.get("metrics")
    return {k: float(v) for k, v in metrics.items()} if isinstance(metrics, dict) else {}


def _summary(
    made: Assembled, result: Result, saved: saving.Checkpoints | None, seconds: float
) -> list[tuple[str, str]]:
    rate = result.steps / result.training_seconds if result.training_seconds else 0.0
    rows = [("data", f"{made.split.source.full_name} ({made.config.train_split})")]
    rows += [(f"final {name}", resume.shown_metric(name, value)) for name, value in result.metrics.items()]
    rows += [
        ("steps", f"{result.step} of {made.total}"),
        ("steps per second", f"{rate:.1f}"),
        ("examples per second", f"{rate * made.parts.clock.batch:,.0f}"),
        ("training time", f"{result.training_seconds:.1f} s"),
        ("total time", f"{seconds:.1f} s"),
        ("checkpoint", str(saved.last if saved and saved.last else "-")),
    ]
    return rows
