"""A run from its start, or from where it was, to its end: what `--mode=train` and `Run.train` share."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.checkpoints.lock import Lock
from trainer.devices import agreement
from trainer.devices.replicas import is_chief
from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.flags.span import span
from trainer.groups import plan_table
from trainer.report.reporter import NO_HOOKS, Hooks, Reporter
from trainer.report.screen import Screen
from trainer.run import ending, resume, saving
from trainer.run.assemble import Assembled, assemble
from trainer.run.environment import environment
from trainer.run.hooks import load as load_hooks
from trainer.run.resume import Resume
from trainer.run.start import initialise
from trainer.run.workdir import Workdir
from trainer.signals import Stop
from trainer.text import aligned
from trainer.training.evaluation import evaluator
from trainer.training.loop import Loop
from trainer.training.profile import Profile
from trainer.training.program import Program
from trainer.training.result import Result

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")  # as a manifest has them


@dataclass
class Live:
    """A run in this process: what it is made of, and its state; None as long as there is none."""

    assembled: Assembled | None = None
    program: Program | None = None


@dataclass
class _Begun:
    """A run on its way, with what of the outside it was given."""

    assembled: Assembled
    resumed: Resume | None
    workdir: Workdir | None
    reporter: Reporter
    stop: Stop | None
    profile: Profile

    @property
    def chief(self) -> bool:
        return is_chief(self.assembled.built.strategy)


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
      BrokenPipeError: whoever read the output has gone; the state was saved where the run trained.
    """
    began, workdir, live = time.perf_counter(), Workdir.of(config), live or Live()
    hooks = replace(hooks, on_record=(*hooks.on_record, *load_hooks(config.hook)))
    with contextlib.ExitStack() as stack:
        assembled = live.assembled or assemble(config, resumes=bool(workdir and workdir.has_checkpoints))
        steps = _profiled(assembled)
        if stop:
            stop.catch()
        strategy = assembled.built.strategy
        lock = Lock(workdir.path) if workdir else None
        if lock:
            agreement.from_first(strategy, lambda: str(stack.enter_context(lock).workdir.name))
        reporter = _reporter(assembled, workdir, screen, hooks, lock)
        stack.callback(reporter.close)
        entry = saving.newest(workdir.checkpoints, reporter, strategy) if workdir else None
        resumed = resume.resume(assembled, entry, config.accept_plan_change) if entry else None
        if resumed and resumed.finished:
            reporter.note(resume.finished_note(resumed))
            return Result(_metrics(resumed), resumed.entry.step, ended=resumed.assembled.judge.ended)
        if assembled.judge.ended and not resumed:  # without a workdir, called again
            step = int(live.program.state.step.numpy()) if live.program else 0
            return Result(step=step, ended=assembled.judge.ended)
        directory = workdir.path / "tensorboard" / "train" if workdir else Path()
        profile = Profile(steps, directory, reporter.warn)
        begun = _Begun(resumed.assembled if resumed else assembled, resumed, workdir, reporter, stop, profile)
        plan = {key: json.dumps(value) for key, value in begun.assembled.plan().items()}
        agreement.check_same(strategy, plan, "plans", "Give all the same data and --data_residency.")
        sources: dict[str, str] = {}
        if live.program is None:
            live.program, sources = _start(begun)
        live.assembled = begun.assembled
        result = _train(begun, live.program, sources, began)
    if screen.lost and not (stop and stop.status):  # a terminal that was hung up is lost, too
        raise screen.lost
    return result


def _reporter(
    assembled: Assembled, workdir: Workdir | None, screen: Screen, hooks: Hooks, lock: Lock | None
) -> Reporter:
    """What the run says: of several workers the first does. It begins with devices and data."""
    chief = is_chief(assembled.built.strategy)
    screen.quiet = screen.quiet or not chief
    files = workdir.path if workdir and chief else None
    if not chief:
        hooks = replace(hooks, on_record=())  # a tracker is to hear of a run once
    check = lock.check if lock else lambda: None
    reporter = Reporter(files, assembled.total, assembled.total / assembled.epochs, screen, hooks, check)
    reporter.show_groups = assembled.config.show_groups
    for note in (assembled.built.engine, *assembled.notes):
        reporter.note(note)
    return reporter


def show_plan(screen: Screen, plan: Mapping[str, Any], full: bool = False) -> None:
    """The table of the variables, folded unless `full`, the rules, and the table of the groups."""
    columns, rows, below = plan_table.table(plan, None) if full else plan_table.table(plan)
    screen.table(f"Plan: {plan['total']} steps; @N: learning rate at step N; wd: weight decay", columns, rows)
    for sentence in below:
        screen.note(sentence)
    columns, rows = plan_table.totals_table(plan)
    screen.table("Groups", columns, rows)
    for sentence in plan_table.warnings(plan):
        screen.warn(sentence)


def _start(begun: _Begun) -> tuple[Program, dict[str, str]]:
    """The state that the run starts from, and where each value of it comes from."""
    assembled, resumed, config = begun.assembled, begun.resumed, begun.assembled.config
    sources: dict[str, str] = {}
    if config.init_from and not resumed:
        receipt_in = begun.workdir if begun.chief else None
        begun.reporter.check()
        sources = initialise(config, assembled.built, begun.reporter.screen, receipt_in)
    program = assembled.program()
    if resumed:
        notes = resumed.restore(program)
        sources = dict.fromkeys((v.name for v in assembled.built.variables), resumed.entry.path.name)
        begun.reporter.note(resume.note(resumed, program, notes))
    return program, sources


def _train(begun: _Begun, program: Program, sources: Mapping[str, str], began: float) -> Result:
    assembled, reporter, workdir = begun.assembled, begun.reporter, begun.workdir
    plan = assembled.plan(sources)
    saved = saving.Checkpoints(workdir.checkpoints, program, assembled, reporter, plan) if workdir else None
    loop = _loop(begun, program, saved)
    # From here on no refusal is left, and the files of the run may change.
    start = begun.resumed.entry.step if begun.resumed else 0
    reporter.trim(start, evaluated=not loop.evaluate_first)
    if begun.resumed and begun.chief and (lost := resume.lost_records(begun.resumed, reporter.written)):
        reporter.warn(lost)
    show_plan(reporter.screen, plan)
    if workdir and begun.chief:
        workdir.record(plan, assembled.config, environment(assembled))
        ending.forget(workdir, start if begun.resumed else -1)
        ending.describe(reporter, workdir, plan, assembled.config, int(program.state.step.numpy()))
    program.stop.assign(False)
    if begun.stop:
        begun.stop.request = lambda: program.stop.assign(True)
    _check_workers(program, "start values", "All must read the same --workdir and the same --init_from.")
    try:
        result = _run(loop, saved if begun.chief else None, start)
    except UserError:
        _leave(begun, program)
        raise
    if result.stopped:
        by = agreement.from_first(program.strategy, lambda: "a hook" if reporter.stop else "a signal")
        result.hooked = by == "a hook"
    _check_workers(program, "values at the end", "This run is worthless; please report it with its flags.")
    reporter.summary(_summary(assembled, result, saved, time.perf_counter() - began))
    if workdir and begun.chief:
        next_rows = ending.where_next(assembled.config, workdir, result, _leave(begun, program))
        reporter.note("Next")
        reporter.screen.verbatim(aligned(next_rows))
    return result


def _loop(begun: _Begun, program: Program, saved: saving.Checkpoints | None) -> Loop:
    """The loop of a run, with all that happens between its steps."""
    assembled, reporter = begun.assembled, begun.reporter
    examples = assembled.evaluation_feed()
    weights = ("raw", "ema") if assembled.config.ema is not None else ("raw",)
    return Loop(
        program,
        assembled.parts.phases,
        dataclasses.replace(assembled.events, marks=begun.profile.marks),
        assembled.training_feed(),
        reporter,
        evaluator(examples, program, reporter, weights) if examples else None,
        _save(begun, saved),
        evaluate_first=bool(begun.resumed and begun.resumed.unevaluated),
        save_evaluated=bool(assembled.config.keep_best),
        judge=lambda numbers: assembled.judge.judge(numbers, program.strategy),
        profile=begun.profile,
        histograms=assembled.config.histograms,
        meanwhile=lambda: ending.load_ahead(assembled.config) if saved and begun.chief else None,
    )


def _leave(begun: _Begun, program: Program) -> Path | None:
    """The page of a run that ends, however it does; returns where it is."""
    if not begun.workdir or not begun.chief:
        return None
    try:
        begun.reporter.check()
    except UserError:  # the directory is another one now, and the run ends for that
        return None
    ending.keep_evaluated(begun.workdir, begun.reporter, begun.assembled)
    step = int(program.state.step.numpy())
    return ending.write_report(begun.assembled.config, begun.workdir, begun.reporter, step)


def _profiled(assembled: Assembled) -> tuple[int, int] | None:
    """The steps of `--profile`."""
    steps = span(assembled.config.profile, "--profile")
    if steps and steps[1] > assembled.total:
        raise UserError(
            f"--profile={assembled.config.profile}: the run has {assembled.total} steps. Name some of them."
        )
    return steps


def _run(loop: Loop, saved: saving.Checkpoints | None, start: int) -> Result:
    """Trains; where the run cannot go on, as a record or the like cannot be written, its state is saved."""
    if saved:
        saved.step = start
    try:
        loop.reporter.screen.patient = True
        return loop.run()
    except UserError as error:
        before = int(loop.program.state.step.numpy())
        if saved is None or not loop.whole or saved.step == before or not saved.rescue():
            raise
        raise UserError(f"{error} The state of step {before} was saved.") from error
    finally:
        loop.reporter.screen.patient = False


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
    pairs = metrics.items() if isinstance(metrics, dict) else ()
    return {k: float(v) for k, v in pairs if isinstance(v, int | float) or v in _NOT_FINITE}


def _summary(
    assembled: Assembled, result: Result, saved: saving.Checkpoints | None, seconds: float
) -> list[tuple[str, str]]:
    rate = result.steps / result.training_seconds if result.training_seconds else 0.0
    rows = [("data", f"{assembled.split.source.full_name} ({assembled.config.train_split})")]
    rows += [(f"final {name}", resume.shown_metric(name, value)) for name, value in result.metrics.items()]
    rows += [
        ("steps", f"{result.step} of {assembled.total}"),
        *([("ended by", f"--stop_when={result.ended!r}")] if result.ended else []),
        ("steps per second", f"{rate:.1f}"),
        ("examples per second", f"{rate * assembled.parts.clock.batch:,.0f}"),
        ("training time", f"{result.training_seconds:.1f} s"),
        ("total time", f"{seconds:.1f} s"),
        ("checkpoint", str(saved.last if saved and saved.last else "-")),
    ]
    return rows
