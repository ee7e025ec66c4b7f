"""Where the weights of a run start: as the model's `build` made them, or restored by `--init_from`."""

from trainer.flags.config import Config
from trainer.readers import open_source
from trainer.report.screen import Screen
from trainer.restore import match, receipt, rules
from trainer.restore.match import Matched
from trainer.run.build import Built
from trainer.run.workdir import Workdir


def match_source(config: Config, built: Built) -> Matched:
    """Which weights of `--init_from` the variables start from. Reads none of them.

    Raises:
      UserError: all that does not fit, in one message.
    """
    source = open_source(config.init_from, config.init_weights)
    matched = match.match(built.variables, source, rules.of(config), built.model)
    matched.check()
    return matched


def initialise(config: Config, built: Built, screen: Screen, workdir: Workdir | None) -> dict[str, str]:
    """Restores the model from `--init_from` by its rules; `{variable: where its start value comes from}`.

    The receipt is shown, and written into `workdir` where there is one.

    Raises:
      UserError: all that does not fit, in one message; nothing has been assigned.
    """
    matched = match_source(config, built)
    lines = receipt.assign(built.strategy, matched, match.load(matched))
    columns, rows = receipt.describe(lines, matched.leftover)
    source = matched.source
    rows = receipt.folded(rows)
    screen.table(f"Restored from {source.path} ({source.kind})", columns, rows)
    if len(rows) < len(lines):
        kept = "restore.json has all" if workdir else "with a --workdir, restore.json has all"
        screen.note(f"The {len(lines)} variables are folded to {len(rows)} rows; {kept}.")
    if workdir:
        receipt.write(lines, matched, workdir.path)
    return matched.starts()
