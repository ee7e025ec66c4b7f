"""Training steps per second on two logical CPUs, against Keras `fit` and loops over a distributed data set.

A perceptron 784-64-64-10 with batches of 32 is bound by overhead, not by arithmetic: it shows what a step
costs besides its sums. Every contender trains it under the same `MirroredStrategy` on the same arrays with
Adam, in turns, round after round; a ratio compares two contenders within one round.
`python -m benchmarks.replicas [--rounds N]`, on a machine that does nothing else.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.throughput import RATE, data, keras, loss, mlp, steps_of, tf
from trainer import ModelModule
from trainer.devices.strategy import prepare, strategy_for

BATCH = 32
Trainer = Callable[[int], None]


def ours(arrays: tuple[np.ndarray, np.ndarray]) -> Trainer:
    """The framework as `run.py` sets it up: resident data, and a halt at what is not finite."""
    return steps_of(
        model=ModelModule(build=mlp, loss=loss),
        dataset=dict(zip(("image", "label"), arrays, strict=True)),
        group=[f".* adam constant({RATE})"],
        batch_size=BATCH,
        strategy="mirrored",
        virtual_devices=2,
    )


def by_fit(strategy: tf.distribute.Strategy, arrays: tuple[np.ndarray, np.ndarray], at_once: int) -> Trainer:
    with strategy.scope():
        model = mlp()
        model.compile(
            keras.optimizers.Adam(RATE),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=at_once,
        )
    x, y = arrays

    def run(steps: int) -> None:
        model.fit(x[: steps * BATCH], y[: steps * BATCH], BATCH, verbose=0)

    return run


def by_loop(
    strategy: tf.distribute.Strategy, arrays: tuple[np.ndarray, np.ndarray], compiled: bool
) -> Trainer:
    """A loop over `experimental_distribute_dataset`: a call a step, or one call for all of them."""
    rows = tf.data.Dataset.from_tensor_slices(arrays).cache().shuffle(len(arrays[0])).repeat()
    batches: Iterator[Any] = iter(
        strategy.experimental_distribute_dataset(rows.batch(BATCH, drop_remainder=True).prefetch(8))
    )
    with strategy.scope():
        model = mlp()
        mover = keras.optimizers.Adam(RATE)
        mover.build(model.trainable_variables)
        hits, mean = keras.metrics.SparseCategoricalAccuracy(), keras.metrics.Mean()

    def replica(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_sum(losses) / BATCH
        mover.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        hits.update_state(labels, logits)
        mean.update_state(losses)

    @tf.function
    def step(batch: Any) -> None:
        strategy.run(replica, args=batch)

    @tf.function
    def many(iterator: Any, steps: tf.Tensor) -> None:
        for _ in tf.range(steps):
            strategy.run(replica, args=next(iterator))

    def run(steps: int) -> None:
        if compiled:
            many(batches, tf.constant(steps))
        else:
            for _ in range(steps):
                step(next(batches))
        float(mean.result())

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    prepare(2)
    # One strategy for all: TensorFlow numbers collectives by strategy.
    strategy, sentence = strategy_for("mirrored", "", BATCH, "auto", 2)
    arrays = data(28)
    contenders: dict[str, tuple[Callable[[], Trainer], int]] = {
        "this loop, resident": (lambda: ours(arrays), 1000),
        **{
            f"Keras fit, {n} steps per execution": (lambda n=n: by_fit(strategy, arrays, n), 400)
            for n in (1, 10, 50)
        },
        "loop over the data set, a call a step": (lambda: by_loop(strategy, arrays, False), 200),
        "loop over the data set, compiled": (lambda: by_loop(strategy, arrays, True), 500),
    }
    running: dict[str, tuple[Trainer, int]] = {}
    for name, (make, steps) in contenders.items():
        try:
            running[name] = make(), steps
            running[name][0](steps)
        except tf.errors.OpError as error:
            print(f"{name}: cannot: {type(error).__name__}")
            del running[name]
    print(f"784-64-64-10, batch {BATCH}, {sentence}; {rounds} rounds")
    report(measure(running, rounds))


def measure(running: dict[str, tuple[Trainer, int]], rounds: int) -> dict[str, list[float]]:
    """Steps per second of each contender in each round."""
    speeds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, (train, steps) in running.items():
            began = time.perf_counter()
            train(steps)
            speeds[name].append(steps / (time.perf_counter() - began))
    return speeds


def report(speeds: dict[str, list[float]]) -> None:
    """A line a contender. Where the machine is not quiet, the best rounds tell more than the medians."""
    first = next(iter(speeds.values()))
    print(f"{'':40}{'steps/s':>9}{'ratio':>8}{'range':>14}{'best':>9}{'ratio':>8}")
    for name, own in speeds.items():
        ratios = [a / b for a, b in zip(first, own, strict=True)]
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(
            f"{name:40}{statistics.median(own):9.0f}{statistics.median(ratios):8.2f}{spread:>14}"
            f"{max(own):9.0f}{max(first) / max(own):8.2f}"
        )


if __name__ == "__main__":
    main()
