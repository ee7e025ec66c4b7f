"""`--mode=verify_distribution`: whether the user's own model learns the same on one replica and on several.

A few steps are taken on one replica and on N, each from the same state, so that rounding does not
add up. Dropout and batch statistics differ between replicas by their nature: a model that has such
layers is compared as it runs in evaluation. A `preprocess` that draws from its `seed` even there is given
each example by itself, with a seed made of what the example holds.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.devices.replicas import assign
from trainer.errors import UserError, listing
from trainer.flags.config import Config
from trainer.groups.phases import Phase
from trainer.model.finalize import finalize
from trainer.model.returns import some_losses
from trainer.report.screen import Screen
from trainer.run.assemble import Assembled, assemble
from trainer.run.build import Engine, engine
from trainer.run.comparable import comparable, draws_always, unlike
from trainer.run.start import initialise
from trainer.signals import stopping
from trainer.training.program import Program

Values = dict[str, np.ndarray]


class Compared(NamedTuple):
    """One value of a step on both sides: its relative difference, the limit of it, and a remark."""

    kind: str
    name: str
    difference: float
    limit: float
    remark: str


# Largest differences, relative to the norm, by the type that the loss is computed in. What Adam makes of
# a gradient of nothing but rounding is larger than that rounding.
LIMITS = {
    "example": {tf.float64: 1e-9, tf.float32: 1e-4},
    "gradient": {tf.float64: 1e-8, tf.float32: 1e-3},
    "update": {tf.float64: 1e-5, tf.float32: 5e-2},
}
CAUSES = (
    "Usual causes: a reduce_mean, a normalisation or a contrast over the batch inside `loss` (return one "
    "value per example, from that example alone: the trainer sums them and divides by the global batch); "
    "random numbers other than from `seed`; a variable that `loss` writes."
)


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two runs that are compared."""

    assembled: Assembled
    program: Program
    feed: Any
    draws: bool

    def gradients(self, phase: Phase) -> Callable[[int], tuple[Values, tf.Tensor]]:
        """step -> ({variable: gradient}, sums), applied to nothing."""
        compute = self.program.gradients(phase, self.feed)

        def at(step: int) -> tuple[Values, tf.Tensor]:
            slopes, sums = compute(self.feed.chunk(step, 1))
            return {name: tf.convert_to_tensor(slope).numpy() for name, slope in slopes.items()}, sums

        return at

    def update(self, phase: Phase) -> Callable[[int], Values]:
        """step -> by how much each variable of the phase moves in it; the step is taken."""
        train = self.program.trainer(phase, self.feed)
        moved = {v.name: v.value for v in self.assembled.built.variables if v.name in phase.names}

        def at(step: int) -> Values:
            before = {name: variable.numpy() for name, variable in moved.items()}
            train(self.feed.chunk(step, 1), tf.constant(1))
            if self.program.halted.numpy():
                raise UserError(
                    f"--on_nonfinite=halt: step {step + 1} is not finite, so that nothing can be compared. "
                    "--mode=train names what is not."
                )
            return {name: variable.numpy() - before[name] for name, variable in moved.items()}

        return at


def run(config: Config) -> int:
    """Trains `--verify_steps` steps on one replica and on N: on `--devices`, else on `--virtual_devices`
    logical CPUs, else on two. In float64 if the model can. Exit status 1 where anything differs.

    Raises:
      UserError: such a run cannot start.
    """
    if config.strategy == "multi_worker":
        raise UserError(
            "--strategy=multi_worker: --mode=verify_distribution compares within one process. Leave it out."
        )
    with stopping():
        virtual = config.virtual_devices or (0 if config.devices else 2)
        config = dataclasses.replace(config, strategy="mirrored", virtual_devices=virtual)
        many = engine(config)
        first = config.devices.split(",")[0] or "CPU:0"
        alone = engine(dataclasses.replace(config, strategy="one", devices=first))
        screen = Screen()
        one, other = _sides(config, alone, many, screen)
        if one.assembled.total < config.verify_steps:
            raise UserError(
                f"--verify_steps={config.verify_steps}: the run has {one.assembled.total} steps. Give fewer "
                "(2 or more), or a longer --train_for."
            )
        return _verdict(config, list(_steps(config, one, other)), one, other, screen)


def _sides(config: Config, alone: Engine, many: Engine, screen: Screen) -> tuple[Side, Side]:
    """Both runs, in float64 where the model can be built so."""
    try:
        wide = dataclasses.replace(config, precision="float64")
        sides = _side(wide, alone), _side(wide, many)
    except UserError as error:
        if config.precision == "float64":
            raise
        narrow = dataclasses.replace(config, precision="float32")
        sides = _side(narrow, alone), _side(narrow, many)  # refuses what is wrong in any precision
        screen.note(f"Compared in float32, to a few digits only. In float64: {error}")
    screen.note(f"One replica against {sides[1].program.replicas}: {many[1]}.")
    special = unlike(sides[0].assembled.built)
    if special:
        screen.note(
            f"Each replica has its own batch statistics or random masks in {listing(special)}: that is as it "
            "should be. For the comparison they run as in evaluation."
        )
    if any(side.draws for side in sides):
        screen.note(
            "preprocess draws from its seed in evaluation, too, and each replica draws its own numbers: that "
            "is as it should be. For the comparison an example's numbers are the same wherever it lies."
        )
    return sides


def _side(config: Config, on: Engine) -> Side:
    assembled = assemble(config, on=on)
    if config.init_from:
        initialise(config, assembled.built, Screen(quiet=True), None)
    draws = draws_always(assembled)
    built = dataclasses.replace(assembled.built, module=comparable(assembled.built, draws))
    assembled = dataclasses.replace(assembled, built=built)
    return Side(assembled, assembled.program(), assembled.training_feed(), draws)


def _steps(config: Config, one: Side, other: Side) -> Iterator[tuple[int, list[Compared]]]:
    """(step, what was compared in it)"""
    whole, parts = _examples(one, 1), _examples(one, other.program.replicas)
    for phase in one.assembled.parts.phases:
        if phase.start >= config.verify_steps:
            return
        slopes = [side.gradients(phase) for side in (one, other)]
        updates = [side.update(phase) for side in (one, other)]
        for step in range(phase.start, min(phase.stop, config.verify_steps)):
            _copy(one.program, other.program)
            (gradient, sums), (gradients, sums_there) = (at(step) for at in slopes)
            kind = sums.dtype
            chunk = one.feed.chunk(step, 1)
            examples, apart = whole(chunk), parts(one.feed.chunk(step, 1))
            moved, moved_there = (at(step) for at in updates)
            yield (
                step,
                [
                    *_compare("example", kind, examples, apart),
                    *_compare("example", kind, {"sums": sums.numpy()}, {"sums": sums_there.numpy()}),
                    *_compare("gradient", kind, gradient, gradients),
                    *_compare("update", kind, moved, moved_there),
                ],
            )


def _examples(side: Side, parts: int) -> Callable[[Any], Values]:
    """chunk -> {"loss", metric: value per example} of a batch that the model sees in `parts` parts."""
    network, feed, count = side.program.network, side.feed, side.assembled.config.accumulate

    @tf.function(input_signature=[feed.spec])
    def compute(chunk: Any) -> dict[str, list[tf.Tensor]]:
        drawn = feed.draw(chunk, tf.constant(0))

        def values(drawn: Any) -> dict[str, list[tf.Tensor]]:
            found: dict[str, list[tf.Tensor]] = {}
            for part in range(parts):
                batch = network.preprocess(
                    feed.take(drawn, part, parts * count), True, tf.zeros([2], tf.int32)
                )
                with keras.StatelessScope(collect_losses=True):
                    terms, metrics = network.loss(batch, True)
                values = {f"loss/{name}".rstrip("/"): value for name, value in terms.items()} | dict(metrics)
                dtype = some_losses(terms).dtype
                for name, value in values.items():
                    pair = [x for x in (value if isinstance(value, tuple) else (value,)) if x is not None]
                    found.setdefault(name, []).append(tf.stack([tf.cast(x, dtype) for x in pair], 1))
            return found

        return side.program.strategy.run(values, args=(drawn,))

    return lambda chunk: {n: np.concatenate([x.numpy() for x in v]) for n, v in compute(chunk).items()}


def _copy(source: Program, to: Program) -> None:
    """The state of one program into another, on each of its replicas."""
    theirs = to.state.named()
    for name, variable in source.state.named().items():
        assign(theirs[name], variable.read_value())
    finalize(to.state.variables)


def _compare(kind: str, dtype: tf.DType, one: Values, other: Values) -> Iterator[Compared]:
    """Differences relative to the norm; a variable far below the others in size is measured by theirs."""
    sizes = [np.sqrt(np.mean(np.square(value))) if value.size else 0.0 for value in one.values()]
    least = 1e-6 * max(sizes, default=0.0)
    for name, value in one.items():
        gap = float(np.linalg.norm(other[name] - value))
        size = max(float(np.linalg.norm(value)), least * np.sqrt(value.size))
        difference = 0.0 if gap == 0 else gap / size if size else float("inf")
        yield Compared(kind, name, difference, LIMITS[kind][dtype], _ratio(value, other[name]))


def _ratio(one: np.ndarray, other: np.ndarray) -> str:
    """`, 2 times as large`, where the difference is a factor."""
    square = float(np.vdot(one, one))
    factor = float(np.vdot(one, other)) / square if square else 1.0
    rest = float(np.linalg.norm(other - factor * one))
    if abs(factor - 1) < 1e-6 or rest > 1e-3 * abs(factor) * np.sqrt(square):
        return ""
    return f", {factor:.6g} times as large"


def _verdict(
    config: Config, steps: list[tuple[int, list[Compared]]], one: Side, other: Side, screen: Screen
) -> int:
    worst: dict[tuple[str, str], float] = {}
    for _, compared in steps:
        for found in compared:
            key = found.kind, found.name
            worst[key] = max(worst.get(key, 0.0), found.difference)
    names = [v.name for v in one.assembled.built.variables if ("gradient", v.name) in worst]
    rows = [(n, *(_shown(worst, kind, n) for kind in ("gradient", "update"))) for n in names]
    rows += [
        (n, f"{value:.1e}", "-") for (kind, n), value in worst.items() if kind == "example" and n != "sums"
    ]
    title = f"Largest relative difference in {config.verify_steps} steps"
    screen.table(title, ("variable or value", "gradient or value", "update"), rows)
    for step, compared in steps:
        for found in compared:
            if not found.difference <= found.limit:
                screen.note(_difference(found, step, other.program.replicas))
                return 1
    screen.note(f"OK: losses, gradients and updates of {len(names)} variables are equal.")
    return 0


def _shown(worst: Mapping[tuple[str, str], float], kind: str, name: str) -> str:
    return f"{worst[kind, name]:.1e}" if (kind, name) in worst else "-"


def _difference(found: Compared, step: int, count: int) -> str:
    what, alone = f"the {found.kind} of {found.name}", ""
    if found.kind == "example":
        what = "the sum of losses and metrics"
        if found.name != "sums":
            what = f"the {found.name} of an example"
            alone = (
                f" It depends on the other examples of the batch: in {count} parts it comes out different."
            )
    return (
        f"DIFFERENT: first in step {step + 1}, {what}: relative difference {found.difference:.2g}, above "
        f"{found.limit:.0e}{found.remark}.{alone} {CAUSES}"
    )
