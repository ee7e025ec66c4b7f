"""`--profile=100:120`: what the machine does in some of the steps, for TensorBoard's profile plugin."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf


@dataclass
class Profile:
    """Steps to be profiled; each process profiles its own devices.

    Attributes:
      steps: (steps done before the first, steps done after the last); None for none.
      directory: the profile goes into `plugins/profile` below it.
      warn: told where the profiler cannot be started or stopped; the run goes on without.
    """

    steps: tuple[int, int] | None = None
    directory: Path = Path()
    warn: Callable[[str], None] = print
    _running: bool = False

    @property
    def marks(self) -> tuple[int, ...]:
        """Steps between which a call of the compiled loop must not go on."""
        return self.steps or ()

    def at(self, step: int) -> None:
        """Starts or stops where it is time to; `step` are done."""
        if self.steps and not self._running and self.steps[0] <= step < self.steps[1]:
            self._running = self._guarded(lambda: tf.profiler.experimental.start(str(self.directory)))
        elif self.steps and self._running and step >= self.steps[1]:
            self.close()

    def close(self) -> None:
        """Stops, if it runs; a second call does nothing."""
        if self._running:
            self._running = False
            self._guarded(tf.profiler.experimental.stop)

    def _guarded(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except (tf.errors.OpError, OSError, RuntimeError) as error:
            self.warn(f"--profile: {getattr(error, 'message', None) or error} The run goes on without.")
            return False
        return True
