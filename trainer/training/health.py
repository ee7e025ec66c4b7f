"""Whether an update has left weights and optimizer state finite, seen once a call and traced to its step.

The guard of a step looks at loss and gradients. An optimizer can make something of finite gradients that is
not finite (an overflow of their squares, a division of nothing by nothing). That is looked for after each
call of the compiled loop, which costs the step nothing: the graph of a step has no op more. Where it is
found, the call's steps are done again from a copy of the state, one by one, up to the one that did it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.feed import Feed
from trainer.devices.memory import room
from trainer.devices.replicas import Share, copies
from trainer.errors import listing
from trainer.groups.phases import Phase
from trainer.training import window
from trainer.training.program import Program

# Of the room that a device has for data, the part that a copy of the state may take while a call runs.
PART = 4
TOO_LARGE = "the state is too large to keep a copy of. Nothing of it is saved: the newest checkpoint stands."
REMEDY = (
    "Lower the learning rate, give --clip_norm or another optimizer, or pass over such steps with "
    "--on_nonfinite=skip."
)


@dataclass
class Health:
    """The weights and the optimizer state of a run, under watch.

    Attributes:
      program: of the run.
    """

    program: Program
    _watched: dict[str, tf.Variable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Compiles nothing yet, and looks at the state once."""
        if self.program.settings.on_nonfinite == "off":
            return
        state = self.program.state
        trained = {f"model/{v.name}" for o in state.optimizers for v in o.group.variables}
        own = {n: v for n, v in state.named().items() if n in trained or n.startswith("optimizer/")}
        floats = {n: v for n, v in own.items() if v.dtype.is_floating}
        self._every = list(state.named().values())
        devices = Share(self.program.strategy).devices
        self._fits = PART * sum(_bytes(v) for v in self._every) <= room(devices)
        self._copy = tf.function(lambda: [[c.read_value() for c in copies(v)] for v in self._every])
        self._watched = floats
        self._scan = tf.function(lambda: tf.stack([_finite(v) for v in self._watched.values()]))
        # What starts that way (a bound that is infinite) is the user's own.
        sick = set(self.sick())
        self._watched = {n: v for n, v in floats.items() if n not in sick}
        self._scan = tf.function(lambda: tf.stack([_finite(v) for v in self._watched.values()]))

    @property
    def can_go_back(self) -> bool:
        """Whether a copy of the state may be kept."""
        return bool(self._watched) and self._fits

    def copy(self) -> list[list[tf.Tensor]]:
        """The whole state as it stands, every replica's; [] where it is not to be kept."""
        return self._copy() if self.can_go_back else []

    def back(self, copy: Sequence[Sequence[tf.Tensor]]) -> None:
        """The state as it stood."""
        for variable, values in zip(self._every, copy, strict=True):
            for replica, value in zip(copies(variable), values, strict=True):
                replica.assign(value)

    def again(
        self, take: Callable[[int], Any], copy: list[list[tf.Tensor]], steps: range
    ) -> Iterator[tuple[int, str]]:
        """Takes steps again, one by one: (steps done before, a sentence) of each whose update is not finite.

        The state then is that before the step, and the step is to be counted before the next is asked for.

        Args:
          take: takes the step after so many.
          copy: of the state before the first.
          steps: to be taken.
        """
        program = self.program
        self.back(copy)
        program.halted.assign(False)
        for at in steps:
            before = self.copy()
            take(at)
            if sick := self.sick():
                self.back(before)
                yield at, f"step {at + 1} is finite and its update is not: {self.blamed(sick)}."
            if program.halted.numpy() or program.stopped.numpy():
                return

    def blamed(self, sick: Sequence[str]) -> str:
        """Which optimizers made what: a sentence's end."""
        owner = {v.name: o.group for o in self.program.state.optimizers for v in o.group.variables}
        blame: dict[str, list[str]] = {}
        for name in sick:
            kind, _, rest = name.partition("/")
            group = owner[rest if kind == "model" else rest.rpartition("/")[0]]
            optimizer = group.rule.optimizer.text if group.rule.optimizer else ""
            blame.setdefault(f"{optimizer} (group {group.name})", []).append(name)
        return "; ".join(
            f"{optimizer} made {listing(names, 4)} not finite" for optimizer, names in blame.items()
        )

    def sick(self) -> list[str]:
        """Names, as in a checkpoint, of the weights and optimizer state that are not finite."""
        if not self._watched:
            return []
        return [name for name, fine in zip(self._watched, self._scan().numpy(), strict=True) if not fine]


def diagnosis(program: Program, phase: Phase, feed: Feed, step: int) -> str:
    """Names what was not finite in the step after `step`: the same batch again, applied to nothing."""
    gradients, sums = program.gradients(phase.at(step), feed)(feed.chunk(step, 1))
    bad = [name for name, g in gradients.items() if not np.all(np.isfinite(_dense(g)))]
    where = f"the gradients of {listing(bad, 5)}" if bad else "the gradient's norm"
    finite = np.isfinite(window.loss_sum(sums.numpy(), program.state.means))
    loss = "" if finite else ", and so is the loss"
    return f"--on_nonfinite=halt: step {step + 1} is not finite: {where}{loss}."


def _dense(gradient: Any) -> np.ndarray:
    return (gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient).numpy()


def _finite(variable: tf.Variable) -> tf.Tensor:
    return tf.reduce_all(tf.math.is_finite(copies(variable)[0].read_value()))


def _bytes(variable: tf.Variable) -> int:
    return variable.shape.num_elements() * tf.as_dtype(variable.dtype).size
