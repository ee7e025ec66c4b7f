"""The Python door: a run out of keywords that are the flags, or things in the place of names."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from trainer.checkpoints import checkpoint
from trainer.errors import UserError, near
from trainer.flags.config import Config, defaults
from trainer.groups.phases import phase_at
from trainer.groups.plan import Plan
from trainer.report.reporter import Hook, Hooks
from trainer.report.screen import Screen
from trainer.run import resume
from trainer.run.assemble import Assembled, assemble, evaluation
from trainer.run.build import evaluation_split, use_precision
from trainer.run.lr_find import RangeTest, Sweep, lr_find
from trainer.run.planning import planned
from trainer.run.predictions import Predictions, opened, split_of
from trainer.run.start import initialise
from trainer.run.surroundings import as_before
from trainer.run.train import Live, train
from trainer.run.workdir import Workdir
from trainer.signals import stopping
from trainer.training.evaluation import evaluate
from trainer.training.failures import explained
from trainer.training.program import Program
from trainer.training.result import Result

P = ParamSpec("P")
S = TypeVar("S")


def _with_flags_of(
    schema: Callable[P, Config],
) -> Callable[[Callable[[S, Config], None]], Callable[Concatenate[S, P], None]]:
    """Gives `__init__` the keywords of the schema, for people, editors and type checkers alike."""

    def decorate(init: Callable[[S, Config], None]) -> Callable[Concatenate[S, P], None]:
        @functools.wraps(init)
        def with_flags(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
            for name in kwargs:
                if name not in defaults():
                    raise UserError(f"--{name}: no such flag. {near(name, defaults())}")
            init(self, schema(*args, **kwargs))

        own = next(iter(inspect.signature(init).parameters.values()))
        flags = inspect.signature(schema).parameters.values()
        with_flags.__signature__ = inspect.Signature([own, *flags])  # type: ignore[attr-defined]
        return with_flags

    return decorate


class Run:
    """A run: the flags as keywords, and what can be done with it.

    Every flag of `python run.py --help` is a keyword of the same name and meaning (but for those of other
    modes). `model` may be a module, a `trainer.ModelModule` or anything with `build` and `loss`; `dataset`
    a `trainer.Arrays` or a dictionary of arrays. A flag that repeats takes a list.

    Without a `workdir` nothing is written. With one, `train` goes on from its newest checkpoint. The
    surroundings (Keras's name counters, policies and float type, all random generators) are after each call
    what they were before; logical devices, determinism and memory growth hold for the process, and are set
    when they are first needed.

    Raises:
      UserError: from any method, and from the constructor for a value that no run can use; names the flag.

    Example:
      >>> import keras, numpy as np, trainer
      >>> def build():
      ...     return keras.Sequential([keras.Input([4]), keras.layers.Dense(1, name="head")])
      >>> def loss(model, batch, training):
      ...     return (model(batch["x"], training=training)[:, 0] - batch["y"]) ** 2, {}
      >>> x = np.random.default_rng(0).normal(size=[64, 4])
      >>> run = trainer.Run(
      ...     model=trainer.ModelModule(build=build, loss=loss),
      ...     dataset={"x": x, "y": x.sum(1)},
      ...     eval_split="train",
      ...     group=[".*/bias frozen", ".* adam cosine(1e-1)"],
      ...     batch_size=16,
      ...     train_for="50epochs",
      ... )
      >>> result = run.train()
      >>> result.step, run.evaluate()["loss"] < 1e-3, sorted(run.weights())
      (200, True, ['head/bias', 'head/kernel'])
    """

    @_with_flags_of(Config)
    def __init__(self, config: Config) -> None:
        config.check()
        if config.mode != "train":
            raise UserError(f"--mode={config.mode}: a Run has methods in the place of modes. Leave it out.")
        self._config = config
        self._live = Live()
        self._result: Result | None = None

    def plan(self) -> Plan:
        """Who trains what, how and when: prints as a table. Prepares, reads and writes nothing."""
        with as_before():
            return Plan(planned(self._config, Screen(quiet=True)))

    def train(
        self,
        *,
        progress: bool = False,
        signals: bool = False,
        on_log: Hook | None = None,
        on_evaluation: Hook | None = None,
    ) -> Result:
        """Trains to the end, or to a stop, and goes on from there when it is called again.

        Args:
          progress: print what `python run.py` prints, with a progress bar.
          signals: stop within a step and save at SIGTERM and SIGINT, as `python run.py` does; only in
            the main thread. Without it a KeyboardInterrupt is raised within about a second.
          on_log: called with the record of each log point, a dictionary. What it raises is a warning.
          on_evaluation: called with the record of each evaluation.
            Either may return `trainer.STOP`, which ends the run as a signal would.

        Raises:
          KeyboardInterrupt: the state was saved, where there is a workdir.
        """
        screen = Screen() if progress else Screen(quiet=True, raises=True)
        if self._config.workdir:  # another process may have gone on from it
            self._live = Live()
        with as_before(), contextlib.ExitStack() as stack:
            stop = stack.enter_context(stopping()) if signals else None
            self._resume_precision()
            result = train(self._config, screen, Hooks(on_log, on_evaluation), stop, self._live)
            if not result.steps and self._result and result.step == self._result.step:
                return self._result  # it was at its end already
            self._result = result
            return result

    def evaluate(self, weights: str = "raw") -> dict[str, float]:
        """Mean loss and metrics over the evaluation split; `examples` counts them.

        Args:
          weights: `raw`, those that `train` left, else those that it would start from; `ema`, their averages.
        """
        with as_before(), self._standing(weights) as (assembled, program):
            split = evaluation_split(assembled.config, assembled.built, assembled.split.source)
            if split is None:
                raise UserError("--eval_split=none: name a split to evaluate on.")
            feed = evaluation(assembled.config, assembled.built, split)
            program.stop.assign(False)
            phase = phase_at(assembled.parts.phases, int(program.state.step.numpy()))
            with explained(program, "the evaluation"):
                return evaluate(program, program.evaluator(feed, phase.names), feed).numbers

    def predict(self, dataset: Any = None) -> dict[str, np.ndarray]:
        """What the model gives for each example, in order: `{output: array [N, ...]}`.

        The outputs are those of `serve(model, batch)` of the model module, or of the model itself, with the
        weights as of `evaluate`; beside them stands what names the examples (`id`, `file`).

        Args:
          dataset: what `dataset` of the run may be; features that the outputs do not depend on, such as a
            label, may be missing. None: the evaluation split of the run's own data.

        Raises:
          UserError: the data lack what the model needs.
        """
        with as_before():
            assembled, _ = self._loaded()
            own, config = assembled.split.source, assembled.config
            source = own
            if dataset is not None:
                config = replace(config, dataset=dataset)
                source = opened(config, own.spec())
            split = split_of(config, assembled.built, source, named=dataset is None)
            predictions = Predictions(config, assembled.built, split, own.spec())
            predictions.check()
            source.prepare()
            parts = list(predictions.rows(predictions.feed()))
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def lr_find(
        self, *, low: float = 1e-6, high: float = 10.0, rates: int = 30, batches: int = 3
    ) -> dict[str, RangeTest]:
        """A learning-rate range test of each group, the others at their planned rates; by group.

        The run is put back: weights, optimizers and all random state are afterwards the same bits.

        Args:
          low, high: the rates to try, exponentially from one to the other.
          rates: how many.
          batches: for how many batches each is held; the loss is their mean.

        Example:
          >>> import numpy as np, trainer
          >>> random = np.random.default_rng(0)
          >>> images = random.integers(0, 255, [256, 28, 28, 1]).astype("uint8")
          >>> data = {"image": images, "label": images[:, 0, 0, 0].astype("int64") % 2}
          >>> run = trainer.Run(
          ...     model="mnist_mlp(hidden=8)", dataset=data, eval_split="none", batch_size=64,
          ...     group=[".* adam 1e-3 name=all"], train_for=100,
          ... )
          >>> test = run.lr_find()["all"]
          >>> 1e-6 < test.steepest < 10, test.line.startswith("--group=.* adam ")
          (True, True)
        """
        sweep = Sweep(low, high, rates, batches)
        with as_before():
            assembled, program = self._loaded()
            return lr_find(assembled, program, sweep)

    def weights(self, weights: str = "raw") -> dict[str, np.ndarray]:
        """`{variable name: array}` of the model, copies; argument as of `evaluate`."""
        with as_before(), self._standing(weights) as (assembled, _):
            return {v.name: np.array(v.value.numpy()) for v in assembled.built.variables}

    @property
    def model(self) -> Any:
        """What `build` returned, with the weights as of `evaluate("raw")`."""
        with as_before():
            return self._loaded()[0].built.model

    @contextlib.contextmanager
    def _standing(self, weights: str) -> Iterator[tuple[Assembled, Program]]:
        """The run, for as long as the context lasts with its averages in the place of its weights."""
        if weights not in ("raw", "ema"):
            raise UserError(f"--weights={weights}: not one of raw, ema.")
        assembled, program = self._loaded()
        if weights == "raw":
            yield assembled, program
            return
        if not program.state.averages:
            raise UserError("--weights=ema: this run keeps no averages. Give --ema, such as ema=0.999.")
        program.state.swap_averages(program.strategy)
        try:
            yield assembled, program
        finally:
            program.state.swap_averages(program.strategy)

    def _loaded(self) -> tuple[Assembled, Program]:
        """The run with the state that it stands at."""
        live = self._live
        self._resume_precision()
        if live.assembled is None or live.program is None:
            quiet, workdir = Screen(quiet=True, raises=True), Workdir.of(self._config)
            assembled = assemble(self._config, resumes=bool(workdir and workdir.has_checkpoints))
            entry, warnings = (
                checkpoint.newest(workdir.checkpoints, set_aside=False) if workdir else (None, [])
            )
            for warning in warnings:
                quiet.warn(warning)
            resumed = resume.resume(assembled, entry, self._config.accept_plan_change) if entry else None
            live.assembled = resumed.assembled if resumed else assembled
            if self._config.init_from and not resumed:
                initialise(self._config, live.assembled.built, quiet, None)
            live.program = live.assembled.program()
            if resumed:
                resumed.restore(live.program)
        return live.assembled, live.program

    def _resume_precision(self) -> None:
        """What is traced from now on computes as the run does, whatever the surroundings do."""
        if self._live.assembled is not None:
            use_precision(self._config.precision)
