"""`--mode=plan`: who trains what, how and when, in seconds; exits 0 only if the run would start."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.checkpoints import checkpoint, manifest
from trainer.devices.strategy import is_chief
from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.groups import plan as plans
from trainer.report.screen import Reporter
from trainer.run import resume
from trainer.run.assemble import assemble


def run(config: Config) -> int:
    """Prints the plan, and writes it as JSON to `--plan_out`.

    Raises:
      UserError: whatever would keep the run from starting, or a file that cannot be written.
    """
    directory = Path(config.workdir).expanduser() / "checkpoints" if config.workdir else None
    there = bool(directory and manifest.scan(directory))
    made = assemble(config, only_plan=True, resumes=there)
    chief = is_chief(made.built.strategy)
    reporter = Reporter(None, made.total, made.total, quiet=not chief)
    for note in (made.built.engine, *made.dataset.notes):
        reporter.note(note)
    starts = made.starts
    if directory and there:
        entry, warnings = checkpoint.newest(directory, set_aside=False)
        for warning in warnings:
            reporter.warn(warning)
        if entry:
            made = resume.resume(made, entry, config.accept_plan_change).run
            starts = dict.fromkeys((v.name for v in made.built.variables), entry.path.name)
            reporter.note(f"The run would go on from {entry.path}, step {entry.step} of {made.total}.")
    plan = made.plan(starts)
    show(reporter, plan)
    if config.plan_out and chief:
        path = Path(config.plan_out).expanduser()
        try:
            path.write_text(json.dumps(plan, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--plan_out={path}: cannot be written: {error.strerror}.") from None
    reporter.close()
    return 0


def show(reporter: Reporter, plan: Mapping[str, Any]) -> None:
    """The table of the variables, the rules, and the table of the groups."""
    columns, rows, below = plans.table(plan)
    reporter.table(
        f"Plan: {plan['total']} steps; @N: learning rate at step N; wd: weight decay", columns, rows
    )
    for sentence in below:
        reporter.note(sentence)
    columns, rows = plans.totals_table(plan)
    reporter.table("Groups", columns, rows)
