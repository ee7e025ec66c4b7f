"""`--mode=train`: a run from its start, or from where it was, to its end."""

import signal

from trainer import signals
from trainer.flags.config import Config
from trainer.report.screen import Screen
from trainer.run.train import train
from trainer.run.workdir import Workdir
from trainer.signals import stopping


def run(config: Config) -> int:
    """Trains; exit status 0 at the end, be it that of a condition or a hook; 143, 130 or 129 where SIGTERM,
    SIGINT or SIGHUP stopped the run, 143 where another worker was sent one.

    Raises:
      UserError: the run cannot start or go on as asked.
      BrokenPipeError: whoever read the output has closed it; the state was saved.
    """
    Workdir.needed(config)
    screen = Screen()
    with stopping() as stop:
        result = train(config, screen, stop=stop)
    if not result.stopped:
        return 0
    if result.hooked and stop.status is None:
        screen.note(f"Stopped by a hook at step {result.step}, saved. The same command goes on from there.")
        return 0
    whom = "a signal" if stop.status else "a signal to another worker"
    screen.note(f"Stopped by {whom} at step {result.step}, saved. The same command goes on from there.")
    return stop.status or signals.EXIT[signal.SIGTERM]
