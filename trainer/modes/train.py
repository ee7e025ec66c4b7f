"""`--mode=train`: a run from its start, or from where it was, to its end."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from trainer import checkpoint, session, setup
from trainer.command_line import flagfile
from trainer.config import Config
from trainer.lock import Lock
from trainer.loop import Events, Loop, Result
from trainer.modes.plan import show
from trainer.report import Reporter
from trainer.session import Checkpoints
from trainer.setup import Run
from trainer.signals import stopping


def run(config: Config) -> int:
    """Trains; exit status 0 at the end, 143 or 130 where SIGTERM or SIGINT stopped the run.

    Raises:
      UserError: the run cannot start or go on as asked.
    """
    began = time.perf_counter()
    workdir = setup.workdir(config)
    made = setup.assemble(config)
    chief = session.chief(made)
    with contextlib.ExitStack() as stack:
        if chief:
            stack.enter_context(Lock(workdir))
        reporter = Reporter(
            workdir if chief else None, made.total, made.total / epochs(made), quiet=not chief
        )
        stack.callback(reporter.close)
        for note in (made.built.engine, *made.dataset.notes):
            reporter.note(note)
        return _train(config, workdir, made, reporter, chief, began)


def epochs(run: Run) -> float:
    """How many epochs the run is; 1 where the number of examples is not known."""
    return run.total * run.clock.batch / run.clock.examples if run.clock.examples else 1.0


def _train(config: Config, workdir: Path, made: Run, reporter: Reporter, chief: bool, began: float) -> int:
    directory = workdir / "checkpoints"
    if chief:
        for note in checkpoint.clean(directory):
            reporter.note(note)
    entry, warnings = checkpoint.newest(directory, set_aside=chief)
    for warning in warnings:
        reporter.warn(warning)
    fresh: list[str] = []
    sources: dict[str, str] = {}
    if entry is not None:
        made, changed = session.resumed(made, entry, config.accept_plan_change)
        if entry.step >= made.total:
            reporter.note(
                f"This run is finished: {entry.path} is its last step, {entry.step}. Lengthen "
                f"--train_for to go on, or start afresh in another --workdir. {_final(entry.meta.get('metrics', {}))}"
            )
            return 0
        program = setup.program(made)
        sources = dict.fromkeys((v.name for v in made.built.variables), entry.path.name)
        state = program.state.named()
        if changed:
            fresh = session.load_what_fits(entry, program)
        else:
            checkpoint.load(entry, state)
        reporter.trim(entry.step)
        reporter.note(_resume_note(config, entry, made, changed, fresh))
    else:
        program = setup.program(made)
        if config.init_from:
            sources = _initialise(config, workdir, made, program, reporter, chief)
        reporter.trim(0)
    plan = made.plan(sources)
    show(reporter, plan)
    if chief:
        _write(workdir / "plan.json", json.dumps(plan, indent=1) + "\n")
        _write(workdir / "flags.txt", flagfile(config))
    saved = Checkpoints(directory, program, made, reporter, plan)
    both = ("raw", "ema") if config.ema is not None else ("raw",)
    evaluate = session.evaluator(made, program, reporter, both)
    events = Events(made.every("log_every"), made.every("eval_every"), made.every("save_every"), made.total)
    again = entry is not None and events.due(events.evaluate, entry.step) and not entry.meta.get("metrics")
    loop = Loop(
        program,
        made.phases,
        events,
        session.training_feed(made),
        reporter,
        evaluate,
        saved.save if chief else lambda step, metrics: None,
        made.total / epochs(made),
        evaluate_first=again,
    )
    with stopping(lambda: program.stop.assign(True)) as stop:
        result = loop.run()
    reporter.summary(_summary(made, result, saved, time.perf_counter() - began))
    if result.stopped:
        step = int(program.state.step.numpy())
        reporter.note(f"Stopped by a signal at step {step}, saved. The same command goes on from there.")
        return stop.status or 1
    return 0


def _initialise(
    config: Config, workdir: Path, made: Run, program: Any, reporter: Reporter, chief: bool
) -> dict[str, str]:
    """Restores from `--init_from`, writes the receipt, and tells where each start value comes from."""
    raise NotImplementedError


def _resume_note(config: Config, entry: Any, made: Run, changed: list[str], fresh: list[str]) -> str:
    notes = [f"Goes on from {entry.path}, step {entry.step} of {made.total}."]
    if config.init_from:
        notes.append(f"--init_from={config.init_from} is not used: this run has a checkpoint of its own.")
    replicas = made.built.strategy.num_replicas_in_sync
    if entry.meta.get("replicas", replicas) != replicas:
        notes.append(
            f"It was saved on {entry.meta['replicas']} replicas and goes on with {replicas}: the same batches, "
            "but sums in another order, so that the last bits may differ."
        )
    if changed:
        notes += ["The plan has changed ( - as saved, + as now):", *changed, session.describe_fresh(fresh)]
    return "\n".join(n for n in notes if n)


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


def _shown(name: str, value: float) -> str:
    return f"{100 * value:.2f}%" if name == "accuracy" else f"{value:,.6g}"


def _final(metrics: dict[str, float]) -> str:
    shown = ", ".join(f"{name} {_shown(name, value)}" for name, value in metrics.items())
    return f"It ended with {shown}." if shown else ""


def _write(path: Path, text: str) -> None:
    """Replaces a small file whole: a killed run leaves the old one or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.rename(path)
