"""Going on from a checkpoint: whether the plan still is the one it was saved under, and what if not."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.checkpoints import checkpoint
from trainer.checkpoints.manifest import Entry
from trainer.data.choice import order_of, with_order
from trainer.devices.replicas import assign
from trainer.errors import UserError
from trainer.flags.calls import parse_call
from trainer.groups import optimizers, plan
from trainer.groups.group_optimizer import GroupOptimizer
from trainer.model.blocks import MOST_ROWS, folded
from trainer.model.finalize import finalize
from trainer.run.assemble import Assembled
from trainer.training.program import Program


@dataclass(frozen=True)
class Resume:
    """A run that goes on from `entry`.

    Attributes:
      entry: a whole checkpoint.
      assembled: the run, with an optimizer for each number of updates that a group's variables have behind
        them.
      changed: how the plan differs from the saved one, a line each; empty where it is the same.
      anew: variables whose optimizer is another one than before.
    """

    entry: Entry
    assembled: Assembled
    changed: tuple[str, ...] = ()
    anew: frozenset[str] = frozenset()

    @property
    def unevaluated(self) -> bool:
        """Whether an evaluation was due at the checkpoint's step, and a signal came before it."""
        events, step = self.assembled.events, self.entry.step
        wanted = self.assembled.config.eval_split != "none" and events.due(events.evaluate, step)
        return wanted and not self.entry.meta.get("metrics")

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: its last step is done, or a condition of `--stop_when` ended it."""
        return (
            self.entry.step >= self.assembled.total or bool(self.assembled.judge.ended)
        ) and not self.unevaluated

    def restore(self, program: Program) -> list[str]:
        """Loads the checkpoint into a program's state; sentences on what could not come from it.

        Raises:
          UserError: the checkpoint cannot be read, or does not fit although the plan is the same.
        """
        state = program.state.named()
        notes: list[str] = []
        if self.changed:
            notes = _load_what_fits(self.entry, program, state, self.anew)
        else:
            checkpoint.load(self.entry, state)
        finalize(program.state.variables)
        return notes


def resume(assembled: Assembled, entry: Entry, accept: bool) -> Resume:
    """How a run goes on from `entry`. Changes nothing.

    Raises:
      UserError: the plan differs and `accept` is false (the message has the diff), or the
        checkpoint tells no plan.
    """
    saved: Any = entry.meta.get("plan")
    try:
        assembled = _in_the_order_of(assembled, saved)
        now = assembled.plan()
        changed = plan.differences(saved, now, entry.step)
        before = {row["name"]: str(row["optimizer"] or "") for row in saved["rows"]}
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        raise UserError(
            f"--workdir: the checkpoint {entry.path} tells no plan of this program, so that a run cannot go "
            f"on from it. To start from its weights: --init_from={entry.path} and another --workdir."
        ) from None
    if changed and not accept:
        raise UserError(
            f"--workdir: {entry.path} was saved by a run of another plan ( - as saved, + as now):\n"
            + "\n".join(changed)
            + "\nGo back to the flags it was started with (flags.txt in the workdir), name another "
            "--workdir, or give --accept_plan_change to go on with the new plan."
        )
    owner = assembled.parts.owner
    anew = frozenset(name for name, text in before.items() if name in owner and _another(text, owner[name]))
    counts = {name: n for name, n in _counts(entry).items() if name not in anew}
    parts = assembled.parts.cohorts(counts, assembled.built.strategy)
    assembled.judge.restore(entry.meta.get("stopping"))
    return Resume(entry, replace(assembled, parts=parts), tuple(changed), anew)


def _in_the_order_of(assembled: Assembled, saved: Any) -> Assembled:
    """The run that draws its data as before where the flag leaves that open: the two ways have two orders.

    Raises:
      UserError: that way cannot be had here.
    """
    before = saved.get("order") if isinstance(saved, dict) else None
    if assembled.config.data_residency != "auto" or before not in ("resident", "streaming"):
        return assembled
    if before == order_of(assembled.residency, assembled.split):
        return assembled
    return replace(assembled, residency=with_order(before, assembled.split, assembled.built.share))


def _another(text: str, optimizer: GroupOptimizer) -> bool:
    """Whether state of the optimizer that `text` calls means nothing to `optimizer`."""
    try:
        kind = optimizers.names().get(parse_call(text, "--group").name) if text else None
    except UserError:  # a manifest may say anything
        return True
    # Adam and AdamW share their step, so that the state of one is the state of the other.
    return kind is not None and kind.update_step is not type(optimizer.keras).update_step


def _counts(entry: Entry) -> dict[str, int]:
    """Updates so far of each variable that an optimizer has trained."""
    prefix, suffix = "optimizer/", "/iterations"
    names = [n for n in entry.variables if n.startswith(prefix) and n.endswith(suffix)]
    values = checkpoint.read(entry, names)
    return {n.removeprefix(prefix).removesuffix(suffix): int(value) for n, value in values.items()}


def _load_what_fits(
    entry: Entry, program: Program, state: Mapping[str, tf.Variable], anew: frozenset[str]
) -> list[str]:
    """Loads what the checkpoint has under the same name, shape and meaning; tells of the rest."""
    other = checkpoint.compare(entry, state)
    cast = [name for name, pair in other.changed.items() if _castable(*pair)]
    dropped = {
        n for n in state if n.startswith("optimizer/") and n.split("/", 1)[1].rpartition("/")[0] in anew
    }
    fresh = {*other.missing, *other.changed, *dropped} - set(cast)
    wider = checkpoint.read(entry, cast)
    checkpoint.load(entry, state, state.keys() - fresh - set(cast))
    for name, value in wider.items():
        assign(state[name], np.asarray(value).astype(state[name].dtype.as_numpy_dtype))
    for v in program.state.variables:
        if f"ema/{v.name}" in fresh:
            program.state.averages[v.name].assign(v.value.read_value())
    causes = (
        ("Not in the checkpoint in this form, so it starts fresh", sorted(fresh)),
        ("In the checkpoint and of no use now, so it is left there", other.extra),
        ("Of another float type in the checkpoint, so it is converted", cast),
    )
    return [f"{what}: {folded(names, MOST_ROWS)}." for what, names in causes if names]


def _castable(saved: Any, here: Any) -> bool:
    both = tf.as_dtype(saved[1]).is_floating and tf.as_dtype(here[1]).is_floating
    return saved[0] == here[0] and both


def note(resumed: Resume, program: Program, causes: list[str]) -> str:
    """Sentences on where the run goes on and what is other than before."""
    config, entry = resumed.assembled.config, resumed.entry
    notes = [f"Goes on from {entry.path}, step {entry.step} of {resumed.assembled.total}."]
    if config.init_from:
        notes.append(f"--init_from={config.init_from} is not used: this run has a checkpoint of its own.")
    saved = entry.meta.get("replicas", program.replicas)
    if saved != program.replicas:
        notes.append(
            f"It was saved on {saved} replicas and goes on with {program.replicas}: the same batches, but "
            "sums in another order, so that the last bits may differ, and dropout draws other masks."
        )
    if resumed.changed:
        notes += ["The plan has changed ( - as saved, + as now):", *resumed.changed, *causes]
    return "\n".join(notes)


def lost_records(resumed: Resume, written: Mapping[str, Any]) -> str:
    """A sentence where metrics.jsonl no longer holds what it held when the checkpoint was saved.

    Args:
      resumed: the run.
      written: what the file holds up to the checkpoint's step, as `Records.written` has it.
    """
    saved = resumed.entry.meta.get("records")
    if not isinstance(saved, dict) or not isinstance(saved.get("lines"), int) or saved == written:
        return ""
    lines, now = saved["lines"], written["lines"]
    what = f"{lines - now} of {lines} records" if now < lines else "records"
    how = "are gone" if now < lines else "are not those that were written"
    return (
        f"metrics.jsonl was deleted or changed since {resumed.entry.path.name}: {what} up to step "
        f"{resumed.entry.step} {how}. The weights and all that follows are not affected."
    )


def finished_note(resumed: Resume) -> str:
    """Sentences on a run of which nothing is left to do."""
    entry, metrics = resumed.entry, resumed.entry.meta.get("metrics")
    ended = ""
    if isinstance(metrics, dict) and metrics:
        ended = f" It ended with {', '.join(f'{k} {shown_metric(k, v)}' for k, v in metrics.items())}."
    if by := resumed.assembled.judge.ended:
        return (
            f"This run is finished: --stop_when={by!r} ended it at step {entry.step}, {entry.path}. Change "
            f"the condition or lengthen --train_for to go on, or start afresh in another --workdir.{ended}"
        )
    return (
        f"This run is finished: {entry.path} is its last step, {entry.step}. Lengthen --train_for to go on, "
        f"or start afresh in another --workdir.{ended}"
    )


def shown_metric(name: str, value: Any) -> str:
    """A metric as sentences and tables show it: accuracy in per cent."""
    if not isinstance(value, int | float):  # "NaN", as a manifest has it
        return str(value)
    return f"{100 * value:.2f}%" if name == "accuracy" else f"{value:,.6g}"
