"""TensorBoard's event files: the numbers of records as curves, written beside the training."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.report.records import unwritable


class Curves:
    """Event files under `tensorboard/train` and `tensorboard/eval` of a working directory.

    Args:
      workdir: None writes none.
    """

    def __init__(self, workdir: Path | None) -> None:
        self.start = 0  # what older files hold from this step on is dropped by TensorBoard
        self._workdir = workdir
        self._writers: dict[str, tf.io.TFRecordWriter] = {}

    @property
    def kept(self) -> bool:
        """Whether anything is written."""
        return self._workdir is not None

    def plot(self, run: str, step: int, numbers: Mapping[str, float]) -> None:
        """Adds a point to each curve of `run` ("train" or "eval"), by tag.

        Raises:
          UserError: the file cannot be written.
        """
        curves = tf.compat.v1.Summary()
        for tag, number in numbers.items():
            curves.value.add(tag=tag, simple_value=float(number))
        self.add(run, step, curves)

    def add(self, run: str, step: int, summary: Any) -> None:
        """Adds any summary to `run`; "" is the run of what belongs to neither of the two.

        Raises:
          UserError: the file cannot be written.
        """
        if self._workdir is None:
            return
        try:
            if run not in self._writers:
                self._writers[run] = _event_file(self._workdir / "tensorboard" / run, self.start)
            _write_event(self._writers[run], step=step, summary=summary)
            self._writers[run].flush()
        except (OSError, tf.errors.OpError) as error:
            raise unwritable(self._workdir, error) from error

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        while self._writers:
            with contextlib.suppress(tf.errors.OpError):  # each point was flushed, or said not to be
                self._writers.popitem()[1].close()


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
