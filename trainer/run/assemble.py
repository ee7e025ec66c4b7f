"""From flags to the objects of a run, each checked before the next and before data is read."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.sources.tfds import Dataset
from trainer.data.streaming import residency
from trainer.errors import UserError
from trainer.flags.calls import Clock, Duration, parse_duration
from trainer.flags.config import Config
from trainer.groups import optimizers, plan, schedules
from trainer.groups.optimizers import GroupOptimizer
from trainer.groups.rules import Group, Phase, Rule, assign, depths, parse_rules, phases, resolve, select
from trainer.groups.schedules import Schedule
from trainer.model.module import guarded
from trainer.model.names import ModelVariable
from trainer.run.build import Built, Engine, build_model, check_dataset, match_source, open_data
from trainer.training.gradients import Settings
from trainer.training.loop import Events
from trainer.training.program import Program
from trainer.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a run is made of, before any example is read.

    Attributes:
      built: the model.
      dataset: the data that the run really uses.
      clock: examples and steps of the whole run.
      owned: each rule with its variables.
      optimizers: built, one for each group (or more, see `cohorts`).
      schedules: by group name, of the step since the group's start.
      phases: of the run.
      metrics: names of the model's metrics.
      residency: how training batches are drawn, `resident` or `streaming`: their orders differ. Empty
        where the data are not prepared yet.
      starts: by variable name, the weight of `--init_from` that it starts from.
    """

    config: Config
    built: Built
    dataset: Dataset
    clock: Clock
    owned: tuple[tuple[Rule, tuple[ModelVariable, ...]], ...]
    optimizers: tuple[GroupOptimizer, ...]
    schedules: Mapping[str, Schedule]
    phases: tuple[Phase, ...]
    metrics: tuple[str, ...]
    residency: str
    starts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        assert self.clock.total is not None
        return self.clock.total

    @property
    def events(self) -> Events:
        """At which steps the run logs, evaluates and saves."""
        names = ("log_every", "eval_every", "save_every")
        log, evaluate, save = (duration(self.config, name, self.clock) for name in names)
        return Events(log, evaluate, save, self.total)

    def plan(self, start_of: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The plan; `start_of` says by variable name where start values come from."""
        config = self.config
        decides = {v.name: f"--group={rule.text}" for rule, own in self.owned for v in own}
        settings = {
            "model": config.model,
            "data": self.dataset.full_name,
            "train_split": config.train_split,
            "order": self.residency,
            "batch_size": config.batch_size * config.accumulate,
            "accumulate": config.accumulate,
            "seed": config.seed,
            "precision": config.precision,
            "clip_norm": config.clip_norm,
            "ema": config.ema,
            "layer_decay": config.layer_decay,
            "no_decay": config.no_decay,
        }
        return plan.make(
            settings,
            self.clock,
            self.built.variables,
            self.optimizers,
            self.schedules,
            self.phases,
            decides,
            start_of or {},
        )


def assemble(config: Config, only_plan: bool = False, on: Engine | None = None, resumes: bool = False) -> Run:
    """Everything of a run up to where data is read.

    Args:
      config: the flags.
      only_plan: count examples from metadata, prepare no data set.
      on: as for `build_model`.
      resumes: the run has a checkpoint of its own, so that `--init_from` is not used.

    Raises:
      UserError: the first refusal, in this order: flags, model, groups, source, data, schedules.
    """
    check_dataset(config)
    rules = parse_rules(config.group)
    for rule in rules:
        if rule.optimizer is not None and rule.schedule is not None:
            optimizers.check(rule.optimizer, rule.flag)
            schedules.check(rule.schedule, rule.flag)
    _durations(config)
    built = build_model(config, on)
    for rule in rules:
        if rule.optimizer is not None:
            optimizers.make(rule.optimizer, rule.flag)  # what Keras itself refuses, before data are prepared
    owned = assign(rules, built.variables)
    trained = [v for rule, own in owned if rule.optimizer for v in own]
    if not trained:
        raise UserError("--group: every rule says frozen, so there is nothing to train.")
    no_decay = select(config.no_decay, trained, "--no_decay")
    matched = None if resumes or not config.init_from else match_source(config, built)
    dataset, metrics = open_data(config, built, frozenset(v.name for v in trained))
    check_keep_best(config, metrics)
    clock = run_clock(config, dataset, only_plan)
    resolved = resolve(owned, clock, clock.total or 0)
    run_phases = phases(resolved, clock.total or 0)
    built_schedules = {g.name: _schedule(g, clock) for g in resolved}
    if not only_plan or clock.examples is not None:
        for name in ("log_every", "eval_every", "save_every"):
            duration(config, name, clock)
    made = build_optimizers(config, built, resolved, no_decay, only_shapes=only_plan)
    if not only_plan:
        dataset.prepare()
    decode = getattr(built.module, "decode", None)
    way = config.data_residency, dataset, config.train_split, decode, built.strategy
    drawn = residency(*way) if dataset.prepared else ""
    parts = tuple(owned), tuple(made), built_schedules, tuple(run_phases)
    starts = matched.starts() if matched else {}
    return Run(config, built, dataset, clock, *parts, metrics, drawn, starts)


def check_keep_best(config: Config, metrics: Sequence[str]) -> None:
    """Refuses a `--keep_best` that no evaluation yields."""
    if config.keep_best and config.keep_best not in ("loss", *metrics):
        raise UserError(
            f"--keep_best={config.keep_best}: the model has no such metric. It has: "
            f"{', '.join(('loss', *metrics))}."
        )


def run_clock(config: Config, dataset: Dataset, only_plan: bool) -> Clock:
    """Examples per epoch and steps of the run; prepares a data set of unknown size unless `only_plan`."""
    if not only_plan and dataset.size(config.train_split, "--train_split") is None:
        dataset.prepare()
    examples = dataset.size(config.train_split, "--train_split")
    if config.eval_split != "none":
        dataset.size(config.eval_split, "--eval_split")
    batch = config.batch_size * config.accumulate
    length = parse_duration(config.train_for, "--train_for")
    if examples is None and length.unit == "epochs":
        raise UserError(
            f"--train_for={config.train_for}: how many examples an epoch of {dataset.name} has is known once "
            "it is prepared. Run --mode=train once, give --manual_dir, or give the length in steps."
        )
    total = Clock(examples, batch, None).steps(length, "--train_for")
    if total < 1:
        raise UserError(f"--train_for={config.train_for}: is no step at all.")
    return Clock(examples, batch, total)


def duration(config: Config, name: str, clock: Clock) -> int:
    """Steps of the duration in flag `name`."""
    steps = clock.steps(parse_duration(getattr(config, name), f"--{name}"), f"--{name}")
    if steps < 1:
        raise UserError(f"--{name}={getattr(config, name)}: must be at least one step.")
    return steps


def _durations(config: Config) -> dict[str, Duration]:
    """Refuses a duration that cannot be read before anything is built."""
    if not config.train_for:
        raise UserError("--train_for: not given. Say how long, such as 3epochs or 500steps.")
    names = ("train_for", "log_every", "eval_every", "save_every")
    return {name: parse_duration(getattr(config, name), f"--{name}") for name in names}


def cohorts(run: Run, counts: Mapping[str, int]) -> Run:
    """The run with an optimizer for each number of updates that a group's variables have behind them.

    Adam and others correct their averages by that number, which Keras keeps once per optimizer: variables
    that come from different groups of a checkpoint must not share it.

    Args:
      counts: updates so far by variable name; 0 for what is not named.
    """
    resolved = {group.name: group for phase in run.phases for group in phase.active}.values()
    parts = []
    for group in resolved:
        by_count: dict[int, list[ModelVariable]] = {}
        for v in group.variables:
            by_count.setdefault(counts.get(v.name, 0), []).append(v)
        parts += [dataclasses.replace(group, variables=tuple(own)) for own in by_count.values()]
    if len(parts) == len(resolved):
        return run
    trained = [v for group in resolved for v in group.variables]
    no_decay = select(run.config.no_decay, trained, "--no_decay")
    return dataclasses.replace(
        run, optimizers=tuple(build_optimizers(run.config, run.built, parts, no_decay))
    )


def _schedule(group: Group, clock: Clock) -> Schedule:
    assert group.rule.schedule is not None
    call = schedules.check(group.rule.schedule, group.rule.flag)
    return schedules.build(call, clock, group.stop - group.start, group.rule.flag)


def build_optimizers(
    config: Config,
    built: Built,
    resolved: Sequence[Group],
    no_decay: frozenset[str],
    only_shapes: bool = False,
) -> list[GroupOptimizer]:
    """One built Keras optimizer per group; `only_shapes` as `GroupOptimizer.build` has it.

    Raises:
      UserError: an optimizer that refuses its arguments or variables, or a `--no_decay` that no
        optimizer's weight decay could heed.
    """
    multipliers: dict[str, float] = {}
    if config.layer_decay != 1:
        found = guarded(
            lambda: depths(built.variables, getattr(built.module, "depth", None)),
            f"--layer_decay={config.layer_decay}: the model's depth",
        )
        multipliers = {name: config.layer_decay**depth for name, depth in found.items()}
    made = []
    for group in resolved:
        assert group.rule.optimizer is not None
        with built.strategy.scope():
            own = optimizers.make(group.rule.optimizer, group.rule.flag)
            made.append(GroupOptimizer(group, own, multipliers, no_decay))
            made[-1].build(only_shapes)
    if no_decay and not any(o.keras.weight_decay for o in made):
        raise UserError(
            f"--no_decay={config.no_decay[0]}: no group's optimizer has a weight decay to keep off. "
            "Give one, such as adamw(weight_decay=1e-4), or remove the flag."
        )
    return made


def make_program(run: Run) -> Program:
    """The state and the compiled functions of a run; compiles nothing yet."""
    config, built = run.config, run.built
    with built.strategy.scope():
        state = TrainState(
            built.variables,
            run.optimizers,
            run.metrics,
            ema=config.ema is not None,
            loss_scale=config.precision == "mixed_float16",
        )
    settings = Settings(
        batch=config.batch_size * config.accumulate,
        accumulate=config.accumulate,
        seed=config.seed,
        clip_norm=config.clip_norm,
        ema=config.ema,
        on_nonfinite=config.on_nonfinite,
        jit_compile=config.jit_compile,
    )
    return Program(built.strategy, built.module, built.model, state, run.schedules, settings)


def workdir_of(config: Config) -> Path:
    """The run's directory.

    Raises:
      UserError: `--workdir` is not given.
    """
    if not config.workdir:
        raise UserError(
            "--workdir: not given. Name a directory for checkpoints and metrics, such as runs/mnist."
        )
    return Path(config.workdir).expanduser()
