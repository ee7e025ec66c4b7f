"""`--mode=verify_resume`: whether a run of these flags, stopped and gone on with, ends with the same bits."""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.checkpoints import checkpoint
from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.report.reporter import Reporter
from trainer.report.screen import Screen
from trainer.run import resume
from trainer.run.assemble import assemble
from trainer.run.build import Engine, engine
from trainer.run.saving import Checkpoints
from trainer.run.start import initialise
from trainer.signals import stopping

State = dict[str, np.ndarray]


def run(config: Config) -> int:
    """Trains `--verify_steps` steps twice, once without a break and once with a restart in the middle.

    The second time, everything is built again and the state comes out of a checkpoint. All is in a directory
    of its own that is gone afterwards; `--workdir` is not looked at. Exit status 1 where anything differs.

    Raises:
      UserError: such a run cannot start.
    """
    with stopping(), tempfile.TemporaryDirectory(prefix="verify_resume-") as folder:
        on = engine(config)
        screen = Screen()
        screen.note(on[1])
        steps, middle = config.verify_steps, config.verify_steps // 2
        whole = _train(config, on, Path(folder, "whole"), steps)
        _train(config, on, Path(folder, "halves"), middle)
        halves = _train(config, on, Path(folder, "halves"), steps)
        about = (
            f"{steps} steps without a break, and {middle} + {steps - middle} with everything built again "
            "between"
        )
        different = [name for name in whole if whole[name].tobytes() != halves[name].tobytes()]
        if not different:
            screen.note(f"OK: {about}: all {len(whole)} variables have the same bits.")
            return 0
        screen.note(_verdict(config, about, different, whole, halves))
        return 1


def _train(config: Config, on: Engine, directory: Path, stop: int) -> State:
    """Goes on from the newest checkpoint of `directory`, if any, up to step `stop` and saves; the state."""
    entry, _ = checkpoint.newest(directory)
    assembled = assemble(config, on=on, resumes=entry is not None)
    if assembled.total < stop:
        raise UserError(
            f"--verify_steps={stop}: the run has {assembled.total} steps. Give fewer (2 or more), or a "
            "longer --train_for."
        )
    resumed = resume.resume(assembled, entry, accept=False) if entry else None
    assembled = resumed.assembled if resumed else assembled
    if config.init_from and not resumed:
        initialise(config, assembled.built, Screen(quiet=True), None)
    program = assembled.program()
    if resumed:
        resumed.restore(program)
    feed, start = assembled.training_feed(), resumed.entry.step if resumed else 0
    for phase in assembled.parts.phases:
        first, last = max(start, phase.start), min(stop, phase.stop)
        if first < last:
            program.trainer(phase, feed)(feed.chunk(first, last - first), tf.constant(last - first))
            if program.halted.numpy():
                raise UserError(
                    f"--on_nonfinite=halt: a step after step {first} is not finite, so that nothing can be "
                    "compared. --mode=train names what is not."
                )
    reporter = Reporter(None, assembled.total, 1, Screen(quiet=True))
    Checkpoints(directory, program, assembled, reporter, assembled.plan()).save(stop, {})
    return {name: variable.numpy() for name, variable in program.state.named().items()}


def _verdict(config: Config, about: str, different: list[str], whole: State, halves: State) -> str:
    first = different[0]
    one, other = whole[first].astype(np.float64), halves[first].astype(np.float64)
    gap = float(np.max(np.abs(one - other), initial=0.0))
    reason = (
        "On a GPU many operations add up in any order; give --deterministic to compare."
        if tf.config.list_logical_devices("GPU") and not config.deterministic
        else "Something in the model or its preprocess remembers what is no variable of the model, or draws "
        "random numbers other than by stateless operations and `seed`."
    )
    return (
        f"DIFFERENT: {about}: {len(different)} of {len(whole)} variables differ. The first is {first}, by up "
        f"to {gap:.3g}. {reason}"
    )
