"""Seconds that `--mode=plan` takes for a model of many variables, imports aside.

`python -m benchmarks.plan [--layers 500] [--rounds 3]`. Each round is a process of its own. A layer has two
variables. `build` is the model's own construction, `loss` the tracing of its loss and gradient (both are
work of Keras and TensorFlow on the model's own code), `rest` is everything else.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.noise import quiet_start

with quiet_start():
    import keras
    import tensorflow as tf

from models import mnist_mlp

loss, preprocess = mnist_mlp.loss, mnist_mlp.preprocess
RULES = [
    "--group=dense0/.*  frozen",
    "--group=.*/(bias|b)  sgd(momentum=0.9)  linear(0.02)  name=biases",
    "--group=.*  adamw(weight_decay=1e-3)  cosine(1e-3, warmup=5%)  name=rest from=10%",
]


class Deep(tf.Module):
    """Images [B, 28, 28, 1] to logits [B, 10] through many plain layers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.dense0 = mnist_mlp.Linear(28 * 28, 16)
        self.middle = [mnist_mlp.Linear(16, 16) for _ in range(layers - 2)]
        self.logits = mnist_mlp.Linear(16, 10)

    def __call__(self, image: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.dense0(tf.reshape(image, [-1, 28 * 28]))
        for layer in self.middle:
            x = layer(x)
        return self.logits(x)


def build(kind: str, layers: int) -> Any:
    if kind == "module":
        return Deep(layers)
    x = image = keras.Input((28, 28, 1), name="image")
    x = keras.layers.Flatten(name="flatten")(x)
    for index in range(layers - 1):
        x = keras.layers.Dense(16, name=f"dense{index}")(x)
    return keras.Model(image, keras.layers.Dense(10, name="logits")(x))


def once(kind: str, layers: int) -> dict[str, float]:
    """One plan in this process: seconds by part."""
    from trainer.__main__ import main as program
    from trainer.model import module
    from trainer.model.checks import LossTrace
    from trainer.modes import plan  # noqa: F401

    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] = time.perf_counter() - began

        return call

    module.build = timed("build", module.build)
    LossTrace.check = timed("loss", LossTrace.check)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--mode=plan", f"--model=benchmarks.plan(kind='{kind}', layers={layers})"]
        flags += ["--dataset=digits", f"--data_dir={folder}", "--train_for=1000", *RULES]
        flags += [f"--plan_out={Path(folder) / 'plan.json'}"]
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            status = program(["run.py", *flags])
        total = time.perf_counter() - began
        assert status == 0 and len(json.loads((Path(folder) / "plan.json").read_text())["rows"]) == 2 * layers
    return {**spent, "rest": total - sum(spent.values()), "total": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.once, options.layers)))
        return
    print(f"{2 * options.layers} variables, median of {options.rounds} rounds (least to greatest), seconds")
    for kind in ("keras", "module"):
        command = [sys.executable, "-m", "benchmarks.plan", "--once", kind, "--layers", str(options.layers)]
        rounds = [
            json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            for _ in range(options.rounds)
        ]
        for part in ("build", "loss", "rest", "total"):
            values = [r[part] for r in rounds]
            middle = statistics.median(values)
            print(f"{kind:8} {part:6} {middle:6.2f}  ({min(values):.2f} to {max(values):.2f})", flush=True)


if __name__ == "__main__":
    main()
