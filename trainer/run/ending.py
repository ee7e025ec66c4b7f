"""What a run writes for people beside its records: TensorBoard's pages, the report, where to look next."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.flags.config import Config
from trainer.groups import plan_table
from trainer.report import page
from trainer.report.evaluated import FILE, Evaluated
from trainer.report.history import History
from trainer.report.reporter import Reporter
from trainer.report.summaries import markdown_table
from trainer.restore import receipt
from trainer.run.workdir import Workdir
from trainer.training.result import Result


def describe(
    reporter: Reporter, workdir: Workdir, plan: Mapping[str, Any], config: Config, step: int
) -> None:
    """The plan, the receipt of a restore and the flags, for TensorBoard."""
    columns, rows, below = plan_table.table(plan)
    groups, totals = plan_table.totals_table(plan)
    shown = [markdown_table(columns, rows), *below, markdown_table(groups, totals)]
    texts = {"plan": "\n\n".join(shown)}
    try:
        lines = json.loads((workdir.path / "restore.json").read_text())["variables"]
        texts["restored"] = markdown_table(*receipt.describe(lines))
    except (OSError, ValueError, LookupError, TypeError):
        pass  # nothing was restored
    reporter.describe(step, texts, config.given())


def keep_evaluated(workdir: Workdir, reporter: Reporter, plan: Mapping[str, Any], step: int) -> None:
    """What the report shows of the last evaluation of a classifier, beside the records."""
    kept = None
    if {"logits", "labels"} <= reporter.rows.keys():
        logits, labels = reporter.rows["logits"], reporter.rows["labels"]
        names = tuple((plan.get("classes") or {}).get("label", ()))
        kept = Evaluated.of(logits, labels, None, names if len(names) == logits.shape[-1] else (), step)
    try:
        if kept:
            kept.write(workdir.path)
        else:
            (workdir.path / FILE).unlink(missing_ok=True)
    except OSError as error:
        reporter.warn(f"{workdir.path / FILE} could not be written: {error.strerror}.")


def write_report(config: Config, workdir: Workdir, reporter: Reporter, step: int) -> Path | None:
    """The page of the run, and its confusion matrix for TensorBoard; a failure is a warning.

    Returns where the page is; None where there is none.
    """
    if config.report_to == "none":
        return None
    to = Path(config.report_to or workdir.path / page.NAME).expanduser()
    try:
        history = History.read(workdir.path)
        page.write(history, to)
        for name, png, size in page.images(history):
            reporter.image(step, name, png, size)
    except Exception as error:  # a page must never cost a run
        reporter.warn(f"The report {to} could not be written: {type(error).__name__}: {error}")
        return None
    return to


def where_next(
    config: Config, workdir: Workdir, result: Result, report: Path | None
) -> list[tuple[str, str]]:
    """(what, command or place) of what can be done now, ready to be pasted."""
    return list(_where_next(config, workdir, result, report))


def _where_next(
    config: Config, workdir: Workdir, result: Result, report: Path | None
) -> Iterator[tuple[str, str]]:
    program = "python run.py" if Path(sys.argv[0]).name == "run.py" else "python -m trainer"
    where = shlex.quote(str(workdir.path))
    if report:
        yield "report", str(report)
    yield "TensorBoard", f"tensorboard --logdir={where}"
    if not isinstance(config.model, str) or not isinstance(config.dataset, str):
        return  # what follows starts a process, which has no thing of this one
    flagfile = shlex.quote(str(workdir.path / "flags.txt"))
    if result.stopped:
        yield "go on", f"{program} --flagfile={flagfile}"
    else:
        yield "train on", f"{program} --flagfile={flagfile} --train_for=LONGER"
    export_to = shlex.quote(str(workdir.path / "export"))
    yield "export", f"{program} --mode=export --workdir={where} --export_to={export_to}"
