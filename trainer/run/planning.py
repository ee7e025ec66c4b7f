"""The plan of a run, in seconds: nothing is prepared, read, restored or written."""

from typing import Any

from trainer.checkpoints import checkpoint
from trainer.devices.replicas import is_chief
from trainer.flags.config import Config
from trainer.report.screen import Screen
from trainer.run import resume
from trainer.run.assemble import assemble
from trainer.run.workdir import Workdir


def planned(config: Config, screen: Screen) -> dict[str, Any]:
    """The plan that a run of these flags would have now; says on `screen` what it would go on from.

    Raises:
      UserError: whatever would keep the run from starting.
    """
    workdir = Workdir.of(config)
    resumes = bool(workdir and workdir.has_checkpoints)
    assembled = assemble(config, only_plan=True, resumes=resumes)
    screen.quiet = screen.quiet or not is_chief(assembled.built.strategy)
    for note in (assembled.built.engine, *assembled.notes):
        screen.note(note)
    starts = assembled.starts
    if workdir and resumes:
        entry, warnings = checkpoint.newest(workdir.checkpoints, set_aside=False)
        for warning in warnings:
            screen.warn(warning)
        if entry:
            assembled = resume.resume(assembled, entry, config.accept_plan_change).assembled
            starts = dict.fromkeys((v.name for v in assembled.built.variables), entry.path.name)
            screen.note(f"The run would go on from {entry.path}, step {entry.step} of {assembled.total}.")
    return assembled.plan(starts)
