"""What a person sees of a run and what the run leaves behind: the screen, metrics.jsonl, TensorBoard.

A record is a flat dictionary with a `step`; its numbers, and the numbers in dictionaries in it
(`learning_rate: {group: rate}`), are what is logged.
"""

import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from trainer.errors import UserError

_NOT_CURVES = {"kind", "step", "epoch", "weights", "examples"}


class Reporter:
    """Everything that a run says. Nothing is opened or written before the first call that needs it.

    On a terminal: colours, and one progress bar. On a pipe: plain lines with no control character, not cut
    to a width. In `workdir`: `metrics.jsonl`, one JSON object a line, handed to the system whole and at
    once; NaN and infinities are the strings "NaN", "Infinity" and "-Infinity". And TensorBoard event files
    under `tensorboard/train` and `tensorboard/eval`.

    Call `trim` at every start. Raises UserError where a file cannot be written.

    Args:
      workdir: None writes no files.
      total_steps: of the whole run, for the bar.
      steps_per_epoch: may be a fraction.
      interactive: whether to draw for a terminal; None asks the stream.
      quiet: say and write nothing at all: for all workers but the first.
      stream: standard output if None.
    """

    def __init__(
        self,
        workdir: Path | None,
        total_steps: int,
        steps_per_epoch: float,
        interactive: bool | None = None,
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty() if interactive is None else interactive
        self._quiet = quiet
        self._workdir = None if quiet else workdir
        self._console = Console(file=self._stream, force_terminal=self._terminal)
        self._bar: tuple[Progress, TaskID] | None = None
        self._lines: int | None = None  # the open metrics.jsonl
        self._curves: dict[str, tf.io.TFRecordWriter] = {}
        self._start = 0

    # For people

    def note(self, sentence: str) -> None:
        """Says something worth knowing."""
        self._say(sentence)

    def warn(self, sentence: str) -> None:
        """Says something that should not be overlooked."""
        self._say(f"warning: {sentence}", "bold yellow")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Prints a table; cells are shown by `str`, floats with up to six digits."""
        cells = [[_cell(cell) for cell in row] for row in rows]
        if self._quiet:
            return
        if not self._terminal:
            self._say("\n".join([title, *_aligned([list(columns), *cells])]))
            return
        # Blanks part the columns, not lines: a plan is to fit into a terminal.
        table = Table(
            title=Text(_clean(title)), title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False
        )
        for column in columns:
            table.add_column(Text(column), overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        self._console.print(table)

    def summary(self, rows: Iterable[Sequence[Any]]) -> None:
        """The table that ends a run: (what, value) rows."""
        self._drop_bar()
        self.table("Summary", ("what", "value"), rows)

    def progress(
        self, step: int, loss: float, metrics: Mapping[str, float], examples_per_second: float
    ) -> None:
        """Moves the progress bar; on a pipe there is none."""
        if self._quiet or not self._terminal:
            return
        if self._bar is None:
            text = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1))
            # Drawn at each visit of the host, and not by a thread beside the training one.
            bar = Progress(
                BarColumn(20),
                TimeRemainingColumn(),
                text,
                console=self._console,
                auto_refresh=False,
                expand=True,
            )
            bar.start()
            # From here on, not from 0: the time left of a resumed run is that of its own pace.
            self._bar = bar, bar.add_task("", total=self.total_steps, completed=step)
        values = _values({"loss": loss, **metrics})
        shown = f"{self._place(step)}  {values}  {examples_per_second:,.0f} examples/s"
        bar, task = self._bar
        bar.update(task, completed=step, description=shown, refresh=True)

    # For files

    def log(self, record: Mapping[str, Any]) -> None:
        """A log point of training: `{"step", "loss", metrics, "learning_rate": {group: rate}, ...}`."""
        record = self._append({"kind": "train", **record})
        self._plot("train", record, "")
        if not self._terminal:
            shown = {k: v for k, v in record.items() if isinstance(v, float) and k not in _NOT_CURVES}
            rates = record.get("learning_rate")
            text = f"  rates: {_values(rates)}" if rates else ""
            self._say(f"{self._place(record['step'])}  {_values(shown)}{text}")

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """The result of an evaluation; `weights` says "raw" (if absent) or "ema"."""
        record = self._append({"kind": "eval", "weights": "raw", **record})
        self._plot("eval", record, "ema/" if record["weights"] == "ema" else "")
        shown = {k: v for k, v in record.items() if k not in _NOT_CURVES}
        examples = f" of {record['examples']:,} examples" if "examples" in record else ""
        weights = " with averaged weights" if record["weights"] == "ema" else ""
        where = self._place(record["step"])
        self._say(f"{where}  evaluation{examples}{weights}: {_values(shown)}", "bold")

    def trim(self, step: int, evaluated: bool = True) -> int:
        """Takes back what was logged after `step`, where a run starts; returns the lines dropped.

        Where `step` itself is still to be evaluated, `evaluated` is false, and its evaluations go too.
        `metrics.jsonl` is written anew aside and renamed; a line that a kill has torn goes too. TensorBoard's
        files are not touched: an event in the next one tells it to drop what is later than `step`.
        """
        self._start = step + 1
        if self._workdir is None:
            return 0
        path, aside = self._workdir / "metrics.jsonl", self._workdir / ".tmp-metrics.jsonl"
        try:
            aside.unlink(missing_ok=True)
            if not os.path.lexists(path):
                return 0
            lines = path.read_bytes().splitlines() if path.is_file() else []
            kept = [x for x in lines if _step_of(x) < step + (evaluated or not _is_evaluation(x))]
            with open(aside, "xb") as file:
                file.writelines(line + b"\n" for line in kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError as error:
            raise self._unwritable(error) from error
        return len(lines) - len(kept)

    def sync(self) -> None:
        """Waits until metrics.jsonl is on the disk: before a checkpoint that its lines go with."""
        if self._lines is not None:
            os.fsync(self._lines)

    def close(self) -> None:
        """Ends the bar and closes the files; a second call does nothing."""
        self._drop_bar()
        while self._curves:
            self._curves.popitem()[1].close()
        if self._lines is not None:
            os.close(self._lines)
            self._lines = None

    def __enter__(self) -> Self:
        """`with Reporter(...) as reporter:` leaves the terminal as it was, whatever happens."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    # How

    def _say(self, text: str, style: str = "") -> None:
        if self._quiet:
            return
        text = _clean(text)
        if self._terminal:
            self._console.print(Text(text, style))
            return
        encoding = self._stream.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=self._stream, flush=True)

    def _place(self, step: int) -> str:
        epochs = round(self.total_steps / self.steps_per_epoch, 1)
        return f"epoch {step / self.steps_per_epoch:.2f}/{epochs:g}  step {step}/{self.total_steps}"

    def _drop_bar(self) -> None:
        if self._bar:
            self._bar[0].stop()
            self._bar = None

    def _append(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a line of metrics.jsonl; returns the record with Python's own numbers."""
        text = json.dumps(record, default=lambda value: value.item())
        plain = json.loads(text)
        if self._workdir is None:
            return plain
        data = json.dumps(json.loads(text, parse_constant=str)).encode() + b"\n"
        try:
            if self._lines is None:
                self._workdir.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
                self._lines = os.open(self._workdir / "metrics.jsonl", flags, 0o644)
            while data:  # once, but for a disk that is full half-way
                data = data[os.write(self._lines, data) :]
        except OSError as error:
            raise self._unwritable(error) from error
        return plain

    def _plot(self, run: str, record: Mapping[str, Any], prefix: str) -> None:
        """Writes the record's numbers to the event file of `run`, on the host, beside the compiled step."""
        if self._workdir is None:
            return
        curves = tf.compat.v1.Summary()
        for name, value in record.items():
            parts = value if isinstance(value, Mapping) else {"": value}
            for part, number in parts.items():
                if name not in _NOT_CURVES and isinstance(number, int | float):
                    tag = f"{prefix}{name}/{part}" if part else prefix + name
                    curves.value.add(tag=tag, simple_value=float(number))
        try:
            if run not in self._curves:
                self._curves[run] = _event_file(self._workdir / "tensorboard" / run, self._start)
            _write_event(self._curves[run], step=record["step"], summary=curves)
            self._curves[run].flush()
        except (OSError, tf.errors.OpError) as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
        return UserError(
            f"The records of the run in {self._workdir} cannot be written: {reason}. Free some space "
            "or make it writable, then run the same command again: it goes on from the newest checkpoint."
        )


def _event_file(directory: Path, start: int) -> tf.io.TFRecordWriter:
    """A new event file, whose name sorts after the older ones.

    TensorBoard drops the events of older files from `start` on at the second session start that it reads,
    so every file begins with one (its `event_accumulator.py`; `tf.summary` writes none).
    """
    directory.mkdir(parents=True, exist_ok=True)
    seconds, rest = divmod(time.time_ns(), 10**9)
    name = f"events.out.tfevents.{seconds:010d}.{rest:09d}.{socket.gethostname()}.{os.getpid()}"
    writer = tf.io.TFRecordWriter(str(directory / name))
    _write_event(writer, file_version="brain.Event:2")
    session = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    _write_event(writer, step=start, session_log=session)
    return writer


def _write_event(writer: tf.io.TFRecordWriter, **fields: Any) -> None:
    writer.write(tf.compat.v1.Event(wall_time=time.time(), **fields).SerializeToString())


def _step_of(line: bytes) -> float:
    """The step of a line of metrics.jsonl; infinity where it is not a record."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf
    return step if type(step) is int else math.inf


def _is_evaluation(line: bytes) -> bool:
    """Whether a line of metrics.jsonl that has a step is the result of an evaluation."""
    return _step_of(line) < math.inf and json.loads(line).get("kind") == "eval"


def _values(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {_cell(value)}" for name, value in values.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < math.inf else f"{value:.6g}"
    return _clean(str(value))


def _clean(text: str) -> str:
    """The text with control characters spelt out: a name in a file must not drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _aligned(rows: list[list[str]]) -> list[str]:
    rows = [[cell.replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
