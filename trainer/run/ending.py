"""What a run writes for people beside its records: TensorBoard's pages, the report, where to look next."""

import contextlib
import json
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.records import some_of
from trainer.data.source import Split
from trainer.errors import message_of
from trainer.flags.config import Config
from trainer.groups import plan_table
from trainer.report import charts, page
from trainer.report.evaluated import FILE, Evaluated
from trainer.report.history import History
from trainer.report.reporter import Reporter
from trainer.report.summaries import markdown_table
from trainer.restore import receipt
from trainer.run.assemble import Assembled
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


def load_ahead(config: Config) -> None:
    """Loads what draws the page beside the training, which leaves Python alone."""
    if config.report_to != "none":
        threading.Thread(target=charts.load, daemon=True).start()


def forget(workdir: Workdir, step: int) -> None:
    """Removes what an evaluation later than `step` has kept, as a run starts there."""
    kept = Evaluated.read(workdir.path / FILE)
    if kept and kept.step > step:
        with contextlib.suppress(OSError):
            (workdir.path / FILE).unlink()


def keep_evaluated(workdir: Workdir, reporter: Reporter, assembled: Assembled) -> None:
    """What the report shows of the last evaluation of a classifier, beside the records."""
    step, rows = reporter.rows
    if not {"logits", "labels"} <= rows.keys():
        return
    named = (assembled.plan().get("classes") or {}).get("label", ())

    def images(numbers: np.ndarray) -> np.ndarray | None:
        split = assembled.evaluation_split
        name = _image(split) if split else None
        try:
            return some_of(split, numbers)[name].numpy() if split and name else None
        except Exception as error:  # what reads and decodes may be the user's own
            reporter.warn(f"The worst-classified images could not be read: {message_of(error)}")
            return None

    kept = Evaluated.of(rows["logits"], rows["labels"], images, tuple(named), step)
    try:
        if kept:
            kept.write(workdir.path)
    except OSError as error:
        reporter.warn(f"{workdir.path / FILE} could not be written: {error.strerror}.")


def _image(split: Split) -> str | None:
    """The feature that is an image: `image`, or the only one of its shape."""
    found = [
        name
        for name, part in split.layout().items()
        if isinstance(part, tf.TensorSpec) and part.shape.rank == 3 and part.shape[-1] in (1, 3)
    ]
    return "image" if "image" in found else found[0] if len(found) == 1 else None


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
        if history.evaluated:
            reporter.text(step, "worst_classified_as", markdown_table(*history.evaluated.worst()))
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
    python = _python()
    program = f"{python} run.py" if Path(sys.argv[0]).name == "run.py" else f"{python} -m trainer"
    where = shlex.quote(str(workdir.path))
    if report:
        yield "report", str(report)
    yield "TensorBoard", f"{python} -m tensorboard.main --logdir={where}"
    if not isinstance(config.model, str) or not isinstance(config.dataset, str):
        return  # what follows starts a process, which has no thing of this one
    flagfile = shlex.quote(str(workdir.path / "flags.txt"))
    if result.stopped:
        yield "resume", f"{program} --flagfile={flagfile}"
    else:  # a schedule that depends on the length is another one then
        longer = f"--train_for={2 * result.step} --accept_plan_change"
        yield "train on", f"{program} --flagfile={flagfile} {longer}"
    export_to = shlex.quote(str(workdir.path / "export"))
    yield "export", f"{program} --mode=export --workdir={where} --export_to={export_to}"


def _python() -> str:
    """What starts this interpreter where the run was started: `python` where that is on the path."""
    own, found = Path(sys.executable), shutil.which("python")
    if found and Path(found).absolute() == own.absolute():
        return "python"
    inside = own.is_relative_to(Path.cwd())
    return shlex.quote(str(own.relative_to(Path.cwd()) if inside else own))
