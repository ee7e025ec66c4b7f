"""What a person sees: sentences, tables, and one progress bar on a terminal."""

import contextlib
import functools
import importlib.util
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from trainer.errors import UserError
from trainer.text import aligned, cell, printable

BAR = 10  # columns of the bar; it, the time left and two gaps leave the rest to the text
LEFT = 7


class _Bar(Progress):
    """A bar with lines below it."""

    below: Sequence[str] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for line in self.below:
            yield Text(line, no_wrap=True, overflow="ellipsis")


def _draws(stream: TextIO) -> bool:
    """Whether a bar can be drawn: on a terminal, or in a notebook that has widgets."""
    if stream is sys.stdout and Console().is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


class Screen:
    """A stream that people read.

    On a terminal: colours, and one progress bar. On a pipe: plain lines with no control character, not cut
    to a width. Nothing is written before the first call that needs it.

    Args:
      interactive: whether to draw for a terminal; None asks the stream.
      quiet: writes nothing: for all workers but the first, and where nobody asked to see.
      raises: a quiet screen hands warnings to Python's `warnings`, so that they are not lost.
      stream: standard output if None.

    Attributes:
      lost: why the stream takes nothing more, its reader gone or its disk full; None while it does.
      patient: whether to be silent then, for a run that has its state to save first; else `lost` is raised.
    """

    def __init__(
        self,
        interactive: bool | None = None,
        quiet: bool = False,
        raises: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._stream = stream or sys.stdout or io.StringIO()  # a program without a terminal has none
        self.terminal = _draws(self._stream) if interactive is None else interactive
        self.quiet = quiet
        self._raises = raises
        self._console = Console(file=self._stream, force_terminal=self.terminal)
        self._bar: tuple[_Bar, TaskID] | None = None
        self.lost: Exception | None = None
        self.patient = False

    def note(self, sentence: str, style: str = "") -> None:
        """Says something worth knowing."""
        if self.quiet:
            return
        text = printable(sentence)
        if self.terminal:
            self._write(lambda: self._console.print(Text(text, style)))
            return
        encoding = self._stream.encoding or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        self._write(lambda: print(shown, file=self._stream, flush=True))

    def verbatim(self, lines: Iterable[str]) -> None:
        """Prints lines that are to be copied: broken by the terminal alone, of which a copy shows nothing."""
        for line in lines:
            if self.terminal and not self.quiet:
                self._write(functools.partial(self._console.print, Text(printable(line)), soft_wrap=True))
            else:
                self.note(line)

    def warn(self, sentence: str) -> None:
        """Says something that should not be overlooked."""
        if self.quiet and self._raises:
            warnings.warn(printable(sentence), RuntimeWarning, stacklevel=2)
        self.note(f"warning: {sentence}", "bold yellow")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Prints a table; cells are shown by `str`, floats with up to six digits."""
        cells = [[cell(value) for value in row] for row in rows]
        if self.quiet:
            return
        if not self.terminal:
            self.note("\n".join([title, *aligned([list(columns), *cells])]))
            return
        # Blanks part the columns, not lines: a plan is to fit into a terminal.
        table = Table(
            title=Text(printable(title)), title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False
        )
        for column in columns:
            table.add_column(Text(column), overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        self._write(lambda: self._console.print(table))

    def progress(self, step: int, total: int, parts: Sequence[str], below: Sequence[str] = ()) -> None:
        """Moves the progress bar; on a pipe there is none.

        Args:
          step: of `total`.
          parts: shown beside it, as many of the first as fit into the line.
          below: lines under it.
        """
        if self.quiet or not self.terminal:
            return
        if self._bar is None:
            column = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            text = TextColumn("{task.description}", markup=False, table_column=column)
            # Drawn at each visit of the host, and not by a thread beside the training one.
            bar = _Bar(
                BarColumn(BAR),
                TimeRemainingColumn(),
                text,
                console=self._console,
                auto_refresh=False,
                expand=True,
            )
            self._write(bar.start)
            # From here on, not from 0: the time left of a resumed run is that of its own pace.
            self._bar = bar, bar.add_task("", total=total, completed=step)
        bar, task = self._bar
        shown, room = "", self._console.width - BAR - LEFT - 2
        for part in map(printable, parts):
            longer = f"{shown}  {part}" if shown else part
            shown = longer if len(longer) <= room else shown
        bar.below = [printable(line) for line in below]
        self._write(lambda: bar.update(task, completed=step, description=shown, refresh=True))

    def close(self) -> None:
        """Ends the bar; a second call does nothing."""
        if self._bar:
            bar, self._bar = self._bar[0], None
            with contextlib.suppress(OSError, SystemExit):
                bar.stop()

    def _write(self, write: Callable[[], object]) -> None:
        """Writes; where the stream takes nothing more, is silent from then on.

        Raises:
          BrokenPipeError: its reader is gone, and the screen is not patient.
          UserError: as before, its disk is full, or the like.
        """
        try:
            write()
            return
        except BrokenPipeError as error:
            self.lost = error
        except SystemExit:  # what rich makes of it
            self.lost = BrokenPipeError()
        except OSError as error:
            self.lost = UserError(
                f"Standard output cannot be written: {error.strerror}. Send it where there is room. A run "
                "that was training has saved its state, and the same command goes on from there."
            )
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):  # what is still buffered goes nowhere, at the end too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if not self.patient:
            raise self.lost
