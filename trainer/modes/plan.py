"""`--mode=plan`: who trains what, how and when, in seconds; exits 0 only if the run would start."""

import json
from pathlib import Path

from trainer.checkpoints import files
from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.report.screen import Screen
from trainer.run.planning import planned
from trainer.run.train import show_plan


def run(config: Config) -> int:
    """Prints the plan, and writes it as JSON to `--plan_out`.

    Raises:
      UserError: whatever would keep the run from starting, or a file that cannot be written.
    """
    screen = Screen()
    plan = planned(config, screen)
    if config.plan_out and not screen.quiet:
        path = Path(config.plan_out).expanduser()
        try:
            files.replace(path, json.dumps(plan, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--plan_out={path}: cannot be written: {error.strerror}.") from None
    show_plan(screen, plan, config.full)
    return 0
