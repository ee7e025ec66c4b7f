"""Everything that a training run says, to people, to files and to hooks.

A record is a flat dictionary with a `step`; its numbers, and the numbers in dictionaries in it
(`learning_rate: {group: rate}`), are what is logged.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from trainer.errors import message_of
from trainer.report import summaries
from trainer.report.curves import Curves
from trainer.report.images import is_image, png, source
from trainer.report.records import Records
from trainer.report.screen import Screen
from trainer.report.tables import tables
from trainer.text import aligned, cell

WAIT_SHOWN = 0.1  # of the time: the share of waiting for data from which on the screen says so
_NOT_CURVES = {"kind", "step", "epoch", "weights", "examples", "arrays"}
_NOT_SHOWN = {*_NOT_CURVES, "loss_scale"}
MOST = 1 << 16  # numbers of an array that a record keeps


class _Stop:
    """The type of `STOP`, which a hook returns to end the run as a signal would.

    Example:
      >>> import numpy as np, trainer
      >>> data = {"image": np.zeros([64, 28, 28, 1], "uint8"), "label": np.zeros([64], "int64")}
      >>> run = trainer.Run(
      ...     model="mnist_mlp(hidden=8)", dataset=data, eval_split="none", group=[".* adam 1e-3"],
      ...     train_for=30, log_every=10,
      ... )
      >>> run.train(on_log=lambda record: trainer.STOP).step
      10
    """

    def __repr__(self) -> str:
        return "trainer.STOP"


STOP = _Stop()
"""What a hook returns to end the run as a signal would: the state is saved, and the run can go on later."""

Hook = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Hooks:
    """Functions of the user's own; each gets a record, and may return `STOP`.

    Attributes:
      on_log: called at each log point.
      on_evaluation: called with each result of an evaluation.
      on_record: each called with either.
    """

    on_log: Hook | None = None
    on_evaluation: Hook | None = None
    on_record: tuple[Hook, ...] = ()


NO_HOOKS = Hooks()


class Reporter:
    """What a run says and leaves behind. Nothing is opened or written before the first call that needs it.

    Call `trim` at every start. Raises UserError where a file cannot be written.

    Args:
      workdir: for metrics.jsonl and TensorBoard's files; None writes none.
      total_steps: of the whole run.
      steps_per_epoch: may be a fraction.
      screen: for people.
      hooks: of the user's own.
      check: called before a record is written; raises UserError where `workdir` is not to be written in.

    Attributes:
      arrays: of the last evaluation, `{name: array}`.
      rows: the step of the last evaluation, and the model's outputs then for each example of the split.
      show_groups: a table of the groups below the bar; on a pipe, their update ratios at each log point.
    """

    def __init__(
        self,
        workdir: Path | None,
        total_steps: int,
        steps_per_epoch: float,
        screen: Screen | None = None,
        hooks: Hooks = NO_HOOKS,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.total_steps = total_steps
        self.check = check
        self.steps_per_epoch = steps_per_epoch
        self.screen = screen or Screen()
        self._stop = False
        self.arrays: dict[str, Any] = {}
        self.rows: tuple[int, Mapping[str, Any]] = 0, {}
        self._warned: set[str] = set()
        self._hooks = hooks
        self.show_groups = False
        self._groups: list[str] = []
        self._records = Records(workdir)
        self._curves = Curves(workdir)
        self._said_wait = False

    @property
    def stop(self) -> bool:
        """Whether the run is to end: a hook has asked for it, or whoever read the output has gone."""
        return self._stop or self.screen.lost is not None

    def note(self, sentence: str) -> None:
        """As of the screen."""
        self.screen.note(sentence)

    def warn(self, sentence: str) -> None:
        """As of the screen."""
        self.screen.warn(sentence)

    def progress(
        self, step: int, loss: float, metrics: Mapping[str, float], examples_per_second: float
    ) -> None:
        """Moves the progress bar; on a pipe there is none."""
        epoch, done = self._place(step).split("  ")
        parts = [done, f"loss {loss:.4g}", f"{examples_per_second:,.0f} ex/s", epoch]
        parts += [f"{name} {value:.4g}" for name, value in metrics.items()]
        self.screen.progress(step, self.total_steps, parts, self._groups)

    def log(self, record: Mapping[str, Any]) -> None:
        """A log point of training: `{"step", "loss", metrics, "learning_rate": {group: rate}, ...}`."""
        self.check()
        record = self._records.append({"kind": "train", **record})
        self._curves.plot("train", record["step"], dict(_numbers(record)))
        self._say_wait(record.get("input_wait", 0.0))
        if not self.screen.terminal:
            shown = {k: v for k, v in record.items() if isinstance(v, float) and k not in _NOT_SHOWN}
            if shown.get("input_wait", 1) <= WAIT_SHOWN:
                del shown["input_wait"]
            rates = record.get("learning_rate")
            text = f"  rates: {_values(rates)}" if rates else ""
            ratios = record.get("update_ratio") if self.show_groups else None
            text += f"  updates over weights: {_values(ratios)}" if ratios else ""
            self.note(f"{self._place(record['step'])}  {_values(shown)}{text}")
        if self.show_groups:
            self._groups = _groups(record)
        self._call(self._hooks.on_log, "on_log", record)
        self._call_each(record)

    def evaluation(self, record: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> None:
        """The result of an evaluation; `weights` says "raw" (if absent) or "ema".

        Arrays, such as a confusion matrix, are kept in the record as `arrays`, {name: nested lists}; images
        (uint8 [height, width, 1 or 3]) as the `src` of an element of a page.
        """
        self.check()
        self.arrays = dict(arrays or {})
        pngs = {name: png(array) for name, array in self.arrays.items() if is_image(array)}
        kept = {"arrays": self._kept(pngs)} if self.arrays else {}
        record = self._records.append({"kind": "eval", "weights": "raw", **record, **kept})
        # Runs of TensorBoard, whose curves of one tag are on one chart: training, evaluation, of averages.
        run = "eval" if record["weights"] == "raw" else f"eval_{record['weights']}"
        self._curves.plot(run, record["step"], dict(_numbers(record)))
        shown = {k: v for k, v in record.items() if k not in _NOT_CURVES}
        examples = f" of {record['examples']:,} examples" if "examples" in record else ""
        weights = " with averaged weights" if record["weights"] == "ema" else ""
        where = self._place(record["step"])
        self.screen.note(f"{where}  evaluation{examples}{weights}: {_values(shown)}", "bold")
        for name, text in self.arrays.items():
            if text.dtype.kind == "U":
                self.note(f"{name}: {text}")
            elif name in pngs:
                self._curves.add(run, record["step"], summaries.image(name, pngs[name], text.shape[1::-1]))
        self._call(self._hooks.on_evaluation, "on_evaluation", record)
        self._call_each(record)

    def describe(self, step: int, texts: Mapping[str, str], flags: Mapping[str, Any]) -> None:
        """For TensorBoard: pages of Markdown by name, and the flags of the run."""
        if not self._curves.kept:
            return
        for name, markdown in texts.items():
            self._curves.add("", step, summaries.text(name, markdown))
        self._curves.add("", step, summaries.hparams(flags))

    def histograms(self, step: int, arrays: Mapping[str, Any]) -> None:
        """For TensorBoard: how the values of each array are spread."""
        self._curves.add("train", step, summaries.histograms(arrays))

    def text(self, step: int, name: str, markdown: str) -> None:
        """For TensorBoard: a page of Markdown on an evaluation."""
        self._curves.add("eval", step, summaries.text(name, markdown))

    def image(self, step: int, name: str, png: bytes, size: tuple[int, int]) -> None:
        """For TensorBoard: a picture, `size` its width and height in pixels."""
        self._curves.add("eval", step, summaries.image(name, png, size))

    def summary(self, rows: Iterable[Sequence[Any]]) -> None:
        """Ends the bar, and prints the table that ends a run: (what, value) rows."""
        self.screen.close()
        self.screen.table("Summary", ("what", "value"), rows)
        for title, columns, lines in tables(self.arrays):
            self.screen.table(title, columns, lines)

    def trim(self, step: int, evaluated: bool = True) -> int:
        """Takes back what was logged after `step`, where a run starts; returns the lines dropped.

        As `Records.trim`. TensorBoard's files are not touched: an event in the next one tells it to drop
        what is later than `step`.
        """
        self.check()
        self._curves.start = step + 1
        return self._records.trim(step, evaluated)

    @property
    def written(self) -> dict[str, Any]:
        """As of the records: what a checkpoint says of metrics.jsonl."""
        return self._records.written

    def sync(self) -> None:
        """Waits until metrics.jsonl is on the disk: before a checkpoint that its lines go with."""
        self._records.sync()

    def close(self) -> None:
        """Ends the bar and closes the files; a second call does nothing."""
        self.screen.close()
        self._curves.close()
        self._records.close()

    def __enter__(self) -> Self:
        """`with Reporter(...) as reporter:` leaves the terminal as it was, whatever happens."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    def _say_wait(self, share: float) -> None:
        """Says once that steps wait for their data."""
        if share > WAIT_SHOWN and not self._said_wait:
            self._said_wait = True
            self.note(
                f"{share:.0%} of the time steps wait for their data (input_wait in metrics.jsonl). "
                "--data_residency=host decodes them once, where they fit the memory."
            )

    def _kept(self, pngs: Mapping[str, bytes]) -> dict[str, Any]:
        """The images, and other arrays as nested lists; of one too large for a record the screen is told."""
        images = {name: source(file) for name, file in pngs.items()}
        others = {name: array for name, array in self.arrays.items() if name not in pngs}
        for name in [n for n, a in others.items() if a.size > MOST and n not in self._warned]:
            self._warned.add(name)
            size = self.arrays[name].size
            self.warn(f"{name} has {size:,} numbers and is not recorded: {MOST:,} are the most.")
        return images | {name: array.tolist() for name, array in others.items() if array.size <= MOST}

    def _call(self, hook: Hook | None, name: str, record: dict[str, Any]) -> None:
        """A hook that fails is told of, and never ends the run."""
        if hook is None:
            return
        try:
            self._stop = hook(dict(record)) is STOP or self._stop
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            self.warn(f"{name} raised {type(error).__name__} at step {record['step']}: {message_of(error)}")

    def _call_each(self, record: dict[str, Any]) -> None:
        for hook in self._hooks.on_record:
            name = f"{getattr(hook, '__module__', '')}.{getattr(hook, '__name__', type(hook).__name__)}"
            self._call(hook, f"--hook={name}", record)

    def _place(self, step: int) -> str:
        epochs = round(self.total_steps / self.steps_per_epoch, 1)
        return f"epoch {step / self.steps_per_epoch:.2f}/{epochs:g}  step {step}/{self.total_steps}"


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, number) of all in a record that makes a curve."""
    for name, value in record.items():
        parts = value if isinstance(value, Mapping) else {"": value}
        for part, number in parts.items():
            if name not in _NOT_CURVES and isinstance(number, int | float):
                yield (f"{name}/{part}" if part else name), float(number)


def _groups(record: Mapping[str, Any]) -> list[str]:
    """Lines on what trains at a log point: group, rate, norm of the update over that of the weights."""
    rates, ratios = record.get("learning_rate", {}), record.get("update_ratio", {})
    rows = [
        [name, f"{rate:.3g}", f"{ratios[name]:.2g}" if name in ratios else "-"]
        for name, rate in rates.items()
    ]
    return aligned([["group", "rate", "update/weights"], *rows]) if rows else []


def _values(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {cell(value)}" for name, value in values.items())
