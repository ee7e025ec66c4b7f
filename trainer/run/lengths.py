"""How long a run is, and after how many of its steps what is due."""

from trainer.data.source import Split
from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.flags.durations import Clock, parse_duration
from trainer.run import build
from trainer.run.build import Built

PERIODS = ("log_every", "eval_every", "save_every")


def check(config: Config) -> None:
    """Refuses a duration that cannot be read before anything is built."""
    if not config.train_for:
        raise UserError("--train_for: not given. Say how long, such as 3epochs or 500steps.")
    for name in ("train_for", *PERIODS):
        parse_duration(getattr(config, name), f"--{name}")


def clock(config: Config, built: Built, split: Split, only_plan: bool) -> Clock:
    """Examples per epoch and steps of the run; prepares a data set of unknown size unless `only_plan`."""
    if not only_plan and split.size() is None:
        split.source.prepare()
    examples = split.size()
    if others := build.evaluation_split(config, built, split.source):
        others.size()
    batch = config.batch_size * config.accumulate
    length = parse_duration(str(config.train_for), "--train_for")
    if examples is None and length.unit == "epochs":
        raise UserError(
            f"--train_for={config.train_for}: how many examples an epoch of {split.source.name} has is known "
            "once it is prepared. Run --mode=train once, give --manual_dir, or give the length in steps."
        )
    total = Clock(examples, batch, None).steps(length, "--train_for")
    if total < 1:
        raise UserError(f"--train_for={config.train_for}: is no step at all.")
    return Clock(examples, batch, total)


def duration(config: Config, name: str, clock: Clock) -> int:
    """Steps of the duration in flag `name`."""
    steps = clock.steps(parse_duration(getattr(config, name), f"--{name}"), f"--{name}")
    if steps < 1:
        raise UserError(f"--{name}={getattr(config, name)}: must be at least one step.")
    return steps
