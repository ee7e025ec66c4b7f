"""`--mode=train`: a run from its start, or from where it was, to its end."""

import contextlib
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer import signals
from trainer.checkpoints import manifest
from trainer.checkpoints.lock import Lock
from trainer.devices.agreement import check_same, digests, from_first
from trainer.devices.strategy import is_chief
from trainer.flags.command_line import flagfile
from trainer.flags.config import Config
from trainer.modes.plan import show
from trainer.report.screen import Reporter
from trainer.run import resume
from trainer.run.assemble import Run, assemble, make_program, workdir_of
from trainer.run.evaluation import evaluator, feed
from trainer.run.resume import Resume
from trainer.run.session import Checkpoints, initialise, newest, training_feed
from trainer.signals import Stop, stopping
from trainer.training.loop import Loop, Result
from trainer.training.program import Program


def run(config: Config) -> int:
    """Trains; exit status 0 at the end, 143 or 130 where SIGTERM or SIGINT stopped the run, 143 where
    another worker was sent either.

    Raises:
      UserError: the run cannot start or go on as asked.
    """
    began = time.perf_counter()
    workdir = workdir_of(config)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopping())
        made = assemble(config, resumes=bool(manifest.scan(workdir / "checkpoints")))
        stop.catch()
        strategy = made.built.strategy
        chief = is_chief(strategy)
        from_first(strategy, lambda: str(stack.enter_context(Lock(workdir)).workdir.name))
        reporter = Reporter(
            workdir if chief else None, made.total, made.total / epochs(made), quiet=not chief
        )
        stack.callback(reporter.close)
        for note in (made.built.engine, *made.dataset.notes):
            reporter.note(note)
        entry = newest(workdir / "checkpoints", reporter, strategy)
        resumed = resume.resume(made, entry, config.accept_plan_change) if entry else None
        if resumed and _finished(resumed, reporter):
            return 0
        plan = {key: json.dumps(value) for key, value in (resumed.run if resumed else made).plan().items()}
        check_same(strategy, plan, "plans", "Give all the same data and --data_residency.")
        return _train(workdir, made, resumed, reporter, stop, began)


def epochs(run: Run) -> float:
    """How many epochs the run is; 1 where the number of examples is not known."""
    return run.total * run.clock.batch / run.clock.examples if run.clock.examples else 1.0


def _train(
    workdir: Path, made: Run, resumed: Resume | None, reporter: Reporter, stop: Stop, began: float
) -> int:
    made = resumed.run if resumed else made
    config, chief = made.config, is_chief(made.built.strategy)
    sources: dict[str, str] = {}
    if config.init_from and not resumed:
        sources = initialise(config, made.built, reporter, workdir if chief else None)
    program = make_program(made)
    if resumed:
        told = resumed.restore(program)
        sources = dict.fromkeys((v.name for v in made.built.variables), resumed.entry.path.name)
        reporter.note(resume.note(resumed, program, told))
    both = ("raw", "ema") if config.ema is not None else ("raw",)
    examples = feed(config, made.built, made.dataset)
    plan = made.plan(sources)
    saved = Checkpoints(workdir / "checkpoints", program, made, reporter, plan)
    loop = Loop(
        program,
        made.phases,
        made.events,
        training_feed(made),
        reporter,
        evaluator(examples, program, reporter, both),
        saved.save if chief else lambda step, metrics: None,
        made.total / epochs(made),
        evaluate_first=bool(resumed and resumed.unevaluated),
        save_evaluated=bool(config.keep_best),
    )
    # From here on no refusal is left, and the files of the run may change.
    reporter.trim(resumed.entry.step if resumed else 0, evaluated=not loop.evaluate_first)
    show(reporter, plan)
    if chief:
        _write(workdir / "plan.json", json.dumps(plan, indent=1) + "\n")
        _write(workdir / "flags.txt", flagfile(replace(config, accept_plan_change=False)))
    stop.request = lambda: program.stop.assign(True)
    _check_workers(program, "start values", "All must read the same --workdir and the same --init_from.")
    result = loop.run()
    _check_workers(program, "values at the end", "This run is worthless; please report it with its flags.")
    reporter.summary(_summary(made, result, saved, time.perf_counter() - began))
    if result.stopped:
        step = int(program.state.step.numpy())
        whom = "a signal" if stop.status else "a signal to another worker"
        reporter.note(f"Stopped by {whom} at step {step}, saved. The same command goes on from there.")
        return stop.status or signals.EXIT[signal.SIGTERM]
    return 0


def _check_workers(program: Program, what: str, remedy: str) -> None:
    """Several workers: that all hold the same state, bit for bit."""
    state = digests(program.strategy, program.state.named())
    check_same(program.strategy, state, what, remedy)


def _finished(resumed: Resume, reporter: Reporter) -> bool:
    """Whether nothing is left to do, and says so."""
    entry, total = resumed.entry, resumed.run.total
    if entry.step < total or resumed.unevaluated:
        return False
    reporter.note(
        f"This run is finished: {entry.path} is its last step, {entry.step}. Lengthen "
        f"--train_for to go on, or start afresh in another --workdir. {_final(entry.meta.get('metrics'))}"
    )
    return True


def _summary(made: Run, result: Result, saved: Checkpoints, seconds: float) -> list[tuple[str, str]]:
    rate = result.steps / result.training_seconds if result.training_seconds else 0.0
    rows = [("data", f"{made.dataset.full_name} ({made.config.train_split})")]
    rows += [(f"final {name}", _shown(name, value)) for name, value in result.metrics.items()]
    rows += [
        ("steps", f"{int(saved.program.state.step.numpy())} of {made.total}"),
        ("steps per second", f"{rate:.1f}"),
        ("examples per second", f"{rate * made.clock.batch:,.0f}"),
        ("training time", f"{result.training_seconds:.1f} s"),
        ("total time", f"{seconds:.1f} s"),
        ("checkpoint", str(saved.last or "-")),
    ]
    return rows


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, int | float):  # "NaN", as a manifest has it
        return str(value)
    return f"{100 * value:.2f}%" if name == "accuracy" else f"{value:,.6g}"


def _final(metrics: Any) -> str:
    if not isinstance(metrics, dict) or not metrics:
        return ""
    return f"It ended with {', '.join(f'{name} {_shown(name, value)}' for name, value in metrics.items())}."


def _write(path: Path, text: str) -> None:
    """Replaces a small file whole: a killed run leaves the old one or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.rename(path)
