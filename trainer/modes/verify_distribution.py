"""`--mode=verify_distribution`: whether the user's own model learns the same on one replica and on several.

A few steps are taken on one replica and on N, each from the same state, so that rounding does not
add up. Dropout and batch statistics differ between replicas by their nature: a model that has such
layers is compared as it runs in evaluation.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.errors import UserError, listing
from trainer.flags.config import Config
from trainer.groups.rules import Phase
from trainer.report.screen import Reporter
from trainer.run.assemble import Run, assemble, make_program
from trainer.run.build import Built, Engine, engine
from trainer.run.session import initialise, training_feed
from trainer.signals import stopping
from trainer.training.program import Program

Values = dict[str, np.ndarray]
Compared = tuple[str, str, float, float, str]  # kind, name, difference, its limit, remark

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

    run: Run
    program: Program
    feed: Any

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
        moved = {v.name: v.value for v in self.run.built.variables if v.name in phase.names}

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
        reporter = Reporter(None, 1, 1)
        one, other = _sides(config, alone, many, reporter)
        if one.run.total < config.verify_steps:
            raise UserError(
                f"--verify_steps={config.verify_steps}: the run has {one.run.total} steps. Give fewer (2 or "
                "more), or a longer --train_for."
            )
        return _verdict(config, list(_steps(config, one, other)), one, other, reporter)


def _sides(config: Config, alone: Engine, many: Engine, reporter: Reporter) -> tuple[Side, Side]:
    """Both runs, in float64 where the model can be built so."""
    try:
        wide = dataclasses.replace(config, precision="float64")
        sides = _side(wide, alone), _side(wide, many)
    except UserError as error:
        if config.precision == "float64":
            raise
        narrow = dataclasses.replace(config, precision="float32")
        sides = _side(narrow, alone), _side(narrow, many)  # refuses what is wrong in any precision
        reporter.note(f"Compared in float32, to a few digits only. In float64: {error}")
    reporter.note(f"One replica against {sides[1].program.replicas}: {many[1]}.")
    special = unlike(sides[0].run.built)
    if special:
        reporter.note(
            f"Each replica has its own batch statistics or random masks in {listing(special)}: that is as it "
            "should be. For the comparison they run as in evaluation."
        )
    return sides


def _side(config: Config, on: Engine) -> Side:
    made = assemble(config, on=on)
    if config.init_from:
        initialise(config, made.built, Reporter(None, 1, 1, quiet=True), None)
    built = dataclasses.replace(made.built, module=_comparable(made.built))
    made = dataclasses.replace(made, built=built)
    return Side(made, make_program(made), training_feed(made))


def unlike(built: Built) -> list[str]:
    """Layers that differ from replica to replica by their nature, by name."""
    names = {v.name.rpartition("/")[0] for v in built.variables if v.random}
    normalised = (v for v in built.variables if isinstance(v.layer, keras.layers.BatchNormalization))
    return sorted(names | {v.name.rpartition("/")[0] for v in normalised})


def _comparable(built: Built) -> Any:
    """The model module without what differs from replica to replica by its nature."""
    module, still = built.module, bool(unlike(built))
    parts = {**vars(module), "loss": lambda m, b, training: module.loss(m, b, training and not still)}
    if hasattr(module, "preprocess"):  # its random numbers are each replica's own
        parts["preprocess"] = lambda b, training, seed: module.preprocess(b, False, seed)
    return SimpleNamespace(**parts)


def _steps(config: Config, one: Side, other: Side) -> Iterator[tuple[int, list[Compared]]]:
    """(step, what was compared in it)"""
    whole, parts = _examples(one, 1), _examples(one, other.program.replicas)
    for phase in one.run.phases:
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
    half, feed, count = side.program.half, side.feed, side.run.config.accumulate

    @tf.function(input_signature=[feed.spec])
    def compute(chunk: Any) -> dict[str, list[tf.Tensor]]:
        drawn = feed.draw(chunk, tf.constant(0))

        def values(drawn: Any) -> dict[str, list[tf.Tensor]]:
            found: dict[str, list[tf.Tensor]] = {}
            for part in range(parts):
                batch = half.preprocess(feed.take(drawn, part, parts * count), True, tf.zeros([2], tf.int32))
                with keras.StatelessScope(collect_losses=True):
                    losses, metrics = half.loss(batch, True)
                for name, value in {"loss": losses, **metrics}.items():
                    pair = value if isinstance(value, tuple) else (value,)
                    found.setdefault(name, []).append(tf.stack([tf.cast(x, losses.dtype) for x in pair], 1))
            return found

        return side.program.strategy.run(values, args=(drawn,))

    return lambda chunk: {n: np.concatenate([x.numpy() for x in v]) for n, v in compute(chunk).items()}


def _copy(source: Program, to: Program) -> None:
    """The state of one program into another, on each of its replicas."""
    there = to.state.named()
    for name, variable in source.state.named().items():
        for copy in to.strategy.experimental_local_results(there[name]):
            copy.assign(variable.read_value())


def _compare(kind: str, dtype: tf.DType, one: Values, other: Values) -> Iterator[Compared]:
    """Differences relative to the norm; a variable far below the others in size is measured by theirs."""
    sizes = [np.sqrt(np.mean(np.square(value))) if value.size else 0.0 for value in one.values()]
    least = 1e-6 * max(sizes, default=0.0)
    for name, value in one.items():
        gap = float(np.linalg.norm(other[name] - value))
        size = max(float(np.linalg.norm(value)), least * np.sqrt(value.size))
        difference = 0.0 if gap == 0 else gap / size if size else float("inf")
        yield kind, name, difference, LIMITS[kind][dtype], _ratio(value, other[name])


def _ratio(one: np.ndarray, other: np.ndarray) -> str:
    """`, 2 times as large`, where the difference is a factor."""
    square = float(np.vdot(one, one))
    factor = float(np.vdot(one, other)) / square if square else 1.0
    rest = float(np.linalg.norm(other - factor * one))
    if abs(factor - 1) < 1e-6 or rest > 1e-3 * abs(factor) * np.sqrt(square):
        return ""
    return f", {factor:.6g} times as large"


def _verdict(
    config: Config, steps: list[tuple[int, list[Compared]]], one: Side, other: Side, reporter: Reporter
) -> int:
    worst: dict[tuple[str, str], float] = {}
    for _, compared in steps:
        for kind, name, difference, _, _ in compared:
            worst[kind, name] = max(worst.get((kind, name), 0.0), difference)
    names = [v.name for v in one.run.built.variables if ("gradient", v.name) in worst]
    rows = [(n, *(_shown(worst, kind, n) for kind in ("gradient", "update"))) for n in names]
    rows += [
        (n, f"{value:.1e}", "-") for (kind, n), value in worst.items() if kind == "example" and n != "sums"
    ]
    title = f"Largest relative difference in {config.verify_steps} steps"
    reporter.table(title, ("variable or value", "gradient or value", "update"), rows)
    for step, compared in steps:
        for kind, name, difference, limit, factor in compared:
            if not difference <= limit:
                reporter.note(_difference(kind, name, difference, limit, factor, step, other))
                return 1
    reporter.note(f"OK: losses, gradients and updates of {len(names)} variables are equal.")
    return 0


def _shown(worst: Mapping[tuple[str, str], float], kind: str, name: str) -> str:
    return f"{worst[kind, name]:.1e}" if (kind, name) in worst else "-"


def _difference(
    kind: str, name: str, difference: float, limit: float, factor: str, step: int, other: Side
) -> str:
    count = other.program.replicas
    what = f"the {kind} of {name}"
    if kind == "example":
        what = f"the {name} of an example" if name != "sums" else "the sum of losses and metrics"
    alone = ""
    if kind == "example" and name != "sums":
        alone = f" It depends on the other examples of the batch: in {count} parts it comes out different."
    return (
        f"DIFFERENT: first in step {step + 1}, {what}: relative difference {difference:.2g}, above "
        f"{limit:.0e}{factor}.{alone} {CAUSES}"
    )
