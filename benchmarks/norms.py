"""What the norms by group cost: a run with them, as every run is, against the same without.

`python -m benchmarks.norms [--rounds N] [--only cnn]`, on a machine that does nothing else. Eight groups,
guarded as by default, a call of the compiled loop from one log point to the next, at the default
`--log_every`; the loop's other work at a log point (record, event files) is in neither side.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras

import trainer
from benchmarks.throughput import RATE, WORK, data, loss, parts, tf
from trainer.data.feed import Feed
from trainer.flags.config import Config
from trainer.groups.phases import Phase
from trainer.run.assemble import assemble
from trainer.training import packing
from trainer.training.program import Program

EVERY = int(Config().log_every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    for name, (build, side, batch, steps) in WORK.items():
        if arguments.only in ("", name):
            compare(name, build, data(side), batch, max(steps // EVERY, 2) * EVERY, arguments.rounds)


def compare(name: str, build: Any, arrays: Any, batch: int, steps: int, rounds: int) -> None:
    sides = {kind: side(build, arrays, batch, kind) for kind in ("without", "norms")}
    speeds: dict[str, list[float]] = {kind: [] for kind in sides}
    work: dict[str, list[float]] = {kind: [] for kind in sides}
    for run in sides.values():
        run(2 * EVERY)
    for number in range(rounds):
        for kind in sorted(sides, reverse=bool(number % 2)):  # neither is always the second
            began, worked = time.perf_counter(), time.process_time()
            sides[kind](steps)
            speeds[kind].append(steps / (time.perf_counter() - began))
            work[kind].append((time.process_time() - worked) / steps)
    for what, values in (("steps a second", speeds), ("processor time a step", work)):
        ratios = [a / b for a, b in zip(values["norms"], values["without"], strict=True)]
        print(f"{name}: {what}, with / without: {statistics.median(ratios):.3f}", end=" ")
        print(f"({min(ratios):.3f}-{max(ratios):.3f})", flush=True)


def side(build: Any, arrays: Any, batch: int, kind: str) -> Callable[[int], None]:
    """Trains so many steps, in calls of `EVERY`."""
    keras.backend.clear_session()
    names = [v.path.removeprefix("sequential/") for v in build().trainable_variables]
    x, y = arrays
    config = Config(
        model=trainer.ModelModule(build=build, loss=loss),
        group=[f"({'|'.join(part)}) adam constant({RATE})" for part in parts(names, 8)],
        batch_size=batch,
        dataset={"image": x, "label": y},
        train_for=1 << 30,
        eval_split="none",
    )
    config.check()
    made = assemble(config)
    program, feed, phase = made.program(), made.training_feed(), made.parts.phases[0]
    train = plain(program, phase, feed) if kind == "without" else program.trainer(phase, feed)

    def run(steps: int) -> None:
        for _ in range(steps // EVERY):
            train(feed.chunk(int(program.state.step.numpy()), EVERY), tf.constant(EVERY)).numpy()
            if kind == "norms":
                program.norms.numbers(phase)

    return run


def plain(program: Program, phase: Phase, feed: Feed) -> Any:
    """`Program.trainer` as it would be if nothing were measured: steps in one leg, and the guard's norm."""
    whole = lambda _, gradients: packing.square_sums([gradients])  # noqa: E731
    object.__setattr__(program.gradient_half, "squares", whole)

    @tf.function(input_signature=[feed.spec, tf.TensorSpec([], tf.int32)], autograph=False)
    def train(chunk: Any, n: tf.Tensor) -> tf.Tensor:
        def more(i: tf.Tensor, stopping: tf.Tensor) -> tf.Tensor:
            go = tf.logical_and(i < n, tf.logical_not(stopping))
            return tf.logical_and(go, tf.logical_not(program.halted))

        def step(i: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, program._step(phase, feed, feed.draw(chunk, i), tf.constant(False))[0]

        done, stopping = tf.while_loop(more, step, (tf.constant(0), tf.constant(False)))
        program.stopped.assign(stopping)
        return done

    return train


if __name__ == "__main__":
    main()
