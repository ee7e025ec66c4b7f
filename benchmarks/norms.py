"""What the norms by group cost: training with them at every 100th step against training without.

`python -m benchmarks.norms [--rounds N] [--only cnn]`, on a machine that does nothing else. Eight
groups, guarded as by default; the loop's own work at a log point (record, event files) is in neither side.
"""

import argparse
import statistics
import time
from typing import Any

import keras

import trainer
from benchmarks.throughput import RATE, WORK, data, loss, parts, tf
from trainer.flags.config import Config
from trainer.run.assemble import assemble
from trainer.training.norms import Norms
from trainer.training.program import Program

EVERY = 100


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
    for _ in range(rounds):
        for kind, run in sides.items():
            began, worked = time.perf_counter(), time.process_time()
            run(steps)
            speeds[kind].append(steps / (time.perf_counter() - began))
            work[kind].append((time.process_time() - worked) / steps)
    for what, values in (("steps a second", speeds), ("processor time a step", work)):
        ratios = [a / b for a, b in zip(values["norms"], values["without"], strict=True)]
        print(f"{name}: {what}, with / without: {statistics.median(ratios):.3f}", end=" ")
        print(f"({min(ratios):.3f}-{max(ratios):.3f})")


def side(build: Any, arrays: Any, batch: int, kind: str) -> Any:
    """Trains so many steps, in calls of at most `EVERY`."""
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
    norms = Norms(program.gradient_norms)
    if kind == "without":
        program.gradient_norms.see = lambda *_: None  # type: ignore[method-assign]
    train = program.trainer(phase, feed)

    def call(program: Program, n: int) -> int:
        return int(train(feed.chunk(int(program.state.step.numpy()), n), tf.constant(n)).numpy())

    def run(steps: int) -> None:
        for _ in range(steps // EVERY):
            if kind == "without":
                call(program, EVERY)
            else:
                call(program, EVERY - 1)
                norms.measured(phase, lambda: call(program, 1))

    return run


if __name__ == "__main__":
    main()
