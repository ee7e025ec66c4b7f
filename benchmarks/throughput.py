"""Training steps per second against Keras `fit`, Keras `MultiOptimizer` and a hand-written step.

Every contender trains the same network on the same arrays in memory with the same optimizers, in turns, round
after round; a ratio compares two contenders within one round. `python -m benchmarks.throughput [--rounds N]
[--only cnn] [--guarded]`. With `--guarded` every contender clips the global norm and skips a step that is
not finite; without it none does. Run it on a machine that does nothing else.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from trainer.noise import quiet_start

with quiet_start():
    import keras
    import tensorflow as tf

    import trainer
    from trainer.flags.config import Config
    from trainer.run.assemble import assemble

RATE = 1e-3
CLIP = 1.0
Trainer = Callable[[int], None]


def cnn() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def mlp() -> keras.Model:
    layers = keras.layers
    hidden = [layers.Dense(64, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), *hidden, layers.Dense(10)])


def deep() -> keras.Model:
    layers = keras.layers
    hidden = [layers.Dense(64, activation="relu") for _ in range(40)]
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), *hidden, layers.Dense(10)])


# name: (network, side of an image, batch, steps a round: whole epochs, which is what `fit` trains)
WORK = {
    "cnn": (cnn, 28, 128, 100),
    "mlp": (mlp, 28, 32, 2800),
    "deep": (deep, 8, 32, 800),
}


def data(side: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.random((12800, side, side, 1)).astype("float32"), random.integers(0, 10, 12800)


def parts(variables: list[Any], count: int) -> list[list[Any]]:
    """`variables` cut into `count` runs of neighbours, or into single ones where there are fewer."""
    return [list(p) for p in np.array_split(np.array(variables, object), min(count, len(variables)))]


def ours(build: Any, x: np.ndarray, y: np.ndarray, batch: int, count: int, guarded: bool) -> Trainer:
    keras.backend.clear_session()
    names = [v.path for v in build().trainable_variables]  # of a sequential model, the framework's own too
    names = [name.removeprefix("sequential/") for name in names]
    rules = [f"({'|'.join(part)}) adam constant({RATE})" for part in parts(names, count)]
    guard = {"clip_norm": CLIP, "on_nonfinite": "skip"} if guarded else {"on_nonfinite": "off"}
    return steps_of(
        model=trainer.ModelModule(build=build, loss=loss), group=rules, batch_size=batch,
        dataset={"image": x, "label": y}, **guard
    )  # fmt: skip


def steps_of(**flags: Any) -> Trainer:
    """A function that trains so many steps of a run without end; its `train` is the compiled loop."""
    config = Config(train_for=1 << 30, eval_split="none", **flags)
    config.check()
    made = assemble(config)
    program, feed = made.program(), made.training_feed()
    train = program.trainer(made.parts.phases[0], feed)

    def run(steps: int) -> None:
        train(feed.chunk(int(program.state.step.numpy()), steps), tf.constant(steps)).numpy()

    run.train = train  # type: ignore[attr-defined]
    return run


def loss(model: Any, batch: Any, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Softmax cross entropy, and accuracy."""
    logits = model(batch["image"], training=training)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
    return losses, {"accuracy": tf.cast(tf.argmax(logits, -1) == batch["label"], tf.float32)}


def optimizer_for(variables: list[Any], count: int) -> keras.optimizers.Optimizer:
    if count == 1:
        return keras.optimizers.Adam(RATE)
    split = parts(variables, count)
    chosen = keras.optimizers.OptimizerMap(keras.optimizers.Adam(RATE))
    for part in split:
        chosen["(" + "|".join(v.path for v in part) + ")"] = keras.optimizers.Adam(RATE)
    return keras.optimizers.MultiOptimizer(chosen)


class Guarded(keras.Sequential):
    """`fit` with a clip of the global norm and a skip of what is not finite."""

    def train_step(self, inputs: Any) -> dict[str, tf.Tensor]:
        x, y = inputs
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = self.compute_loss(x, y, predicted)
        gradients = tape.gradient(loss, self.trainable_variables)
        gradients, norm = tf.clip_by_global_norm(gradients, CLIP)
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        tf.cond(finite, lambda: self._move(gradients), lambda: tf.constant(0))
        self._loss_tracker.update_state(loss)
        return self.compute_metrics(x, y, predicted)

    def _move(self, gradients: Any) -> tf.Tensor:
        self.optimizer.apply(gradients, self.trainable_variables)
        return tf.constant(0)


def by_fit(
    build: Any, x: np.ndarray, y: np.ndarray, batch: int, count: int, guarded: bool, at_once: int, jit: Any
) -> Trainer:
    model = build()
    if guarded:
        model = Guarded(model.layers)
        model.build((None, *x.shape[1:]))
    model.compile(
        optimizer_for(model.trainable_variables, count),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=at_once,
        jit_compile=jit,
    )
    epoch = len(x) // batch

    def run(steps: int) -> None:
        model.fit(x, y, batch, epochs=-(-steps // epoch), verbose=0)

    return run


def by_hand(build: Any, x: np.ndarray, y: np.ndarray, batch: int, count: int, guarded: bool) -> Trainer:
    """A tf.function of one step with one optimizer per part, called from Python."""
    model = build()
    split = parts(model.trainable_variables, count)
    movers = [keras.optimizers.Adam(RATE) for _ in split]
    for mover, part in zip(movers, split, strict=True):
        mover.build(part)
    variables = [v for part in split for v in part]
    rows = tf.data.Dataset.from_tensor_slices((x, y)).cache().shuffle(len(x)).repeat()
    batches = iter(rows.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE))
    hits = keras.metrics.SparseCategoricalAccuracy()
    mean = keras.metrics.Mean()

    def move(gradients: list[tf.Tensor]) -> None:
        left = list(gradients)
        for mover, part in zip(movers, split, strict=True):
            mover.apply(left[: len(part)], part)
            left = left[len(part) :]

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [v.value for v in variables])
        if guarded:
            gradients, norm = tf.clip_by_global_norm(gradients, CLIP)
            if tf.math.is_finite(norm) & tf.math.is_finite(loss):
                move(gradients)
        else:
            move(gradients)
        mean.update_state(loss)
        hits.update_state(labels, logits)

    def run(steps: int) -> None:
        for _ in range(steps):
            step(*next(batches))
        mean.result().numpy()

    return run


def contenders(name: str, count: int, guarded: bool) -> dict[str, Trainer]:
    build, side, batch, _ = WORK[name]
    x, y = data(side)
    common = (build, x, y, batch, count, guarded)
    fit = "keras fit" if count == 1 else "keras MultiOptimizer"
    made: dict[str, Trainer] = {"this": ours(*common), "by hand": by_hand(*common)}
    for at_once in (1, 10, 50):
        made[f"{fit}, {at_once} a call"] = by_fit(*common, at_once, False)
    made[f"{fit}, XLA"] = by_fit(*common, 1, True)
    return made


def measure(made: dict[str, Trainer], steps: int, rounds: int) -> dict[str, list[float]]:
    """Steps per second, per round; a first turn of each compiles and is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in made}
    broken = set()
    for name, run in made.items():
        try:
            run(50)
        except Exception as error:  # such as XLA without a compiler: say so and go on
            print(f"  {name}: left out: {str(error).splitlines()[0][:100]}")
            broken.add(name)
    for _ in range(rounds):
        for name, run in made.items():
            if name not in broken:
                began = time.perf_counter()
                run(steps)
                speeds[name].append(steps / (time.perf_counter() - began))
    return {name: values for name, values in speeds.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=WORK)
    parser.add_argument("--guarded", action="store_true")
    arguments = parser.parse_args()
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {arguments.rounds} rounds, "
          f"clip and finite check: {'all' if arguments.guarded else 'none'}")  # fmt: skip
    for name in [arguments.only] if arguments.only else WORK:
        for count in (1, 8):
            report(name, count, arguments)


def report(name: str, count: int, arguments: argparse.Namespace) -> None:
    keras.backend.clear_session()
    *_, batch, steps = WORK[name]
    made = contenders(name, count, arguments.guarded)
    speeds = measure(made, steps, arguments.rounds)
    print(
        f"\n{name}, batch {batch}, {count} group(s): median steps/s; this / other by round: median (min-max)"
    )
    for other, values in speeds.items():
        ratios = [a / b for a, b in zip(speeds["this"], values, strict=True)]
        print(
            f"  {other:34} {statistics.median(values):8.1f}   {statistics.median(ratios):5.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
