"""`--mode=report`: the page of a run, or of several side by side, out of their working directories."""

from pathlib import Path

from trainer.errors import UserError, near
from trainer.flags.config import Config
from trainer.report import page
from trainer.report.compare import Comparison
from trainer.report.history import History
from trainer.report.screen import Screen


def run(config: Config) -> int:
    """Writes the page and its charts as PNGs. Reads the working directories alone, and no data set.

    Raises:
      UserError: no run there, `--runs` without `--report_to`, or a file that cannot be written.
    """
    screen = Screen()
    histories = [_read(name, "runs") for name in config.runs]
    if config.report_to == "none":
        raise UserError("--report_to=none: --mode=report writes a report. Name a file, or remove the flag.")
    if histories and not config.report_to:
        raise UserError("--runs: where is the page to go? Give --report_to=FILE, such as compared.html.")
    if config.workdir and histories:
        raise UserError("--workdir: with --runs nothing is read from it. Name it as one more of --runs.")
    if not histories and not config.workdir:
        raise UserError("--mode=report: of which run? Give --workdir=DIR, or --runs=DIR --runs=DIR.")
    to = Path(config.report_to or Path(config.workdir) / page.NAME).expanduser()
    try:
        if histories:
            comparison = Comparison(histories)
            written = page.write_comparison(comparison, to, png=True)
            _show(comparison, screen)
        else:
            written = page.write(_read(config.workdir, "workdir"), to, png=True)
    except OSError as error:
        raise UserError(f"--report_to={to}: cannot be written: {error.strerror or error}.") from None
    screen.note(f"Report: {written[0]}; as PNGs: {len(written) - 1} charts beside it.")
    return 0


def _read(name: str, flag: str) -> History:
    path = Path(name).expanduser()
    history = History.read(path)
    if not history:
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        hint = "" if path.is_dir() else f" {near(path.name, [p.name for p in siblings])}"
        raise UserError(
            f"--{flag}={name}: no run has left anything there (no metrics.jsonl and no plan.json).{hint}"
        )
    return history


def _show(comparison: Comparison, screen: Screen) -> None:
    """Both tables, on the terminal."""
    columns, rows = comparison.finals()
    screen.table("Final numbers", columns, [["-" if v is None else v for v in row] for row in rows])
    flags, differing = comparison.differing()
    if differing:
        screen.table("Flags that differ", flags, differing)
    else:
        screen.note("All have the same flags, but for --workdir.")
