"""`--mode=lr_find`: which learning rate each group bears, tried on its first steps."""

import dataclasses
from pathlib import Path

from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.report import charts
from trainer.report.charts import Chart
from trainer.report.drawings import Swept
from trainer.report.plain_chart import plain_chart
from trainer.report.screen import Screen
from trainer.run.api import Run
from trainer.run.lr_find import RangeTest
from trainer.signals import stopping


def run(config: Config) -> int:
    """Prints a chart, two suggestions and a line for the flagfile per group; writes the charts as PNGs.

    They go to `lr_find-GROUP.png` in `--workdir` (or beside `--report_to`, under its name). From a workdir
    with checkpoints, the newest one's weights are where the test starts. No checkpoint is written.

    Raises:
      UserError: such a run cannot start.
    """
    with stopping():
        screen = Screen()
        found = Run(**vars(dataclasses.replace(config, mode="train"))).lr_find()
    for test in found.values():
        _show(test, screen)
    lines = [test.line for test in found.values() if test.line]
    if lines:
        screen.note("For the flagfile, a tenth of the rate of the minimum, each group tested alone:", "bold")
        screen.verbatim(lines)
    if to := _place(config):
        try:
            written = _write(list(found.values()), to)
        except OSError as error:
            raise UserError(f"--report_to={to}: cannot be written: {error.strerror or error}.") from None
        except ImportError as error:
            screen.warn(f"No PNG: {error}.")
        else:
            screen.note(f"Charts: {', '.join(map(str, written))}")
    return 0


def _show(test: RangeTest, screen: Screen) -> None:
    marks = {"S": test.steepest, "T": test.tenth}
    given = {letter: rate for letter, rate in marks.items() if rate is not None}
    screen.note(f"\n{test.group}: relative change of the loss over the learning rate", "bold")
    screen.note("\n".join(plain_chart(test.rates, test.change, given)))
    if test.steepest is None or test.tenth is None:
        bears = "" if test.borne is None else f" It does no harm up to {test.borne:.2g}."
        screen.note(f"The loss does not fall by this group's updates at any rate: no suggestion.{bears}")
        return
    screen.note(f"S  steepest descent   {test.steepest:.2g}\nT  minimum over ten   {test.tenth:.2g}")
    if test.line is None:
        screen.note(
            "The schedule has no single rate to put it into: scale its rates so that this is the highest."
        )


def _place(config: Config) -> Path | None:
    """What the names of the PNGs begin with."""
    if config.report_to == "none" or not (config.report_to or config.workdir):
        return None
    given = Path(config.report_to or Path(config.workdir) / "lr_find").expanduser()
    return given.with_suffix("")


def _write(tests: list[RangeTest], to: Path) -> list[Path]:
    pictures = []
    for test in tests:
        marks = {"steepest descent": test.steepest, "minimum over ten": test.tenth}
        given = {label: rate for label, rate in marks.items() if rate is not None}
        curve = Swept(test.rates, test.change, given)
        title = f"{test.group}: range test of the learning rate"
        pictures.append(Chart(test.group, title, curve, margins=(0.75, 0.5, 0.15, 0.1)))
    to.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for name, png in charts.pngs(pictures).items():
        written.append(to.with_name(f"{to.name}-{name}.png"))
        written[-1].write_bytes(png)
    return written
