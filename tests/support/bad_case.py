"""One input with something wrong in it, and the run it is a change of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BASE = {
    "model": "mnist_mlp(hidden=4)",
    "dataset": "digits",
    "train_split": "train[:64]",
    "eval_split": "test[:32]",
    "batch_size": "32",
    "train_for": "2",
    "workdir": "work",
}
ALL = "--group=.* sgd 0.1"


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
      kind: what is wrong with it.
      flags: of the program.
      trains: whether an exit status of 0 says that it trained.
      alone: whether it needs a process of its own, which a shell starts with `before` and `after` around it.
      heard: whether what it says can be read.
      statuses: that are right besides 0 and 1.
    """

    kind: str
    flags: list[str]
    trains: bool = True
    alone: bool = False
    before: str = ""
    after: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    heard: bool = True
    statuses: tuple[int, ...] = (130,)


def good(data_dir: Path) -> Case:
    """A run with nothing wrong."""
    return Case("good", [*flags(data_dir), ALL])


def flags(data_dir: Path, /, **values: str) -> list[str]:
    """Those of `BASE`, but for `values`; an empty value leaves one out."""
    given = {**BASE, "data_dir": str(data_dir), **values}
    return [f"--{name}={value}" for name, value in given.items() if value]
