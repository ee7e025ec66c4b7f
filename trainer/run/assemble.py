"""From flags to the objects of a run, each checked before the next and before data is read."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.data.choice import evaluation_feed, order_of, residency, training_feed
from trainer.data.feed import Feed
from trainer.data.records import check_examples
from trainer.data.source import Split, shared
from trainer.data.sources.arrays import ClassNames
from trainer.errors import UserError
from trainer.flags import criteria, layer_decay
from trainer.flags.config import Config
from trainer.flags.criteria import Criterion
from trainer.groups import optimizers, plan
from trainer.groups.depths import depths
from trainer.groups.partition import Partition, PerVariable, partition
from trainer.groups.phases import Events
from trainer.groups.rules import Owned, Rule, assign, parse_rules, select
from trainer.model.module import guarded
from trainer.model.outputs import Outputs
from trainer.model.returns import Means
from trainer.run import build, lengths, stopping
from trainer.run.build import Built, Engine
from trainer.run.start import match_source
from trainer.run.stopping import Judge
from trainer.training.gradients import Settings
from trainer.training.program import Program
from trainer.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Assembled:
    """All that a run is made of, before any example is read.

    Attributes:
      config: the flags.
      built: the model.
      split: the examples to train on, of the data that the run really uses.
      parts: who trains what, how and when.
      means: that the model's loss yields.
      residency: how training batches are drawn, one of `choice.WAYS`. Empty where the data are not
        prepared yet.
      starts: by variable name, the weight of `--init_from` that it starts from.
      judge: of its evaluations, for `--stop_when`; it has seen nothing yet.
      outputs: what the model says of a whole split; None where it has no `outputs`.
      criterion: what evaluations are compared by; None without `--keep_best`.
    """

    config: Config
    built: Built
    split: Split
    parts: Partition
    means: Means
    residency: str
    starts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    criterion: Criterion | None = None
    outputs: Outputs | None = None
    judge: Judge = dataclasses.field(default_factory=Judge)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.parts.total

    @property
    def epochs(self) -> float:
        """How many epochs the run is; 1 where the number of examples is not known."""
        clock = self.parts.clock
        return self.total * clock.batch / clock.examples if clock.examples else 1.0

    @property
    def events(self) -> Events:
        """At which steps the run logs, evaluates and saves."""
        log, evaluate, save = (
            lengths.duration(self.config, name, self.parts.clock) for name in lengths.PERIODS
        )
        return Events(log, evaluate, save, self.total)

    def plan(self, start_of: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The plan; `start_of` says by variable name where start values come from."""
        config = self.config
        settings = {
            "model": config.model_name,
            "data": self.split.source.full_name,
            "train_split": config.train_split,
            "order": order_of(self.residency, self.split) if self.residency else "",
            "batch_size": self.parts.clock.batch,
            "accumulate": config.accumulate,
            "seed": config.seed,
            "precision": config.precision,
            "clip_norm": config.clip_norm,
            "ema": config.ema,
            "layer_decay": layer_decay.parse(str(config.layer_decay)).factor,
            "no_decay": config.no_decay,
        }
        settings |= self._of_the_data()
        return plan.make(settings, self.built.variables, self.parts, start_of or {})

    def _of_the_data(self) -> dict[str, Any]:
        """What of the plan only some data have."""
        source, config = self.split.source, self.config
        facts: dict[str, Any] = {}
        if self.residency:
            facts["fingerprint"] = source.fingerprint()
        if config.pad:
            facts["pad"] = list(config.pad)
        if config.bad_examples != "refuse":
            facts["bad_examples"] = config.bad_examples
        classes = {
            n: list(f.names) for n, f in source.features.items() if isinstance(f, ClassNames) and f.names
        }
        return facts | ({"classes": classes} if classes else {})

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on the data, for the log."""
        source, config = self.split.source, self.config
        notes, sizes = (*source.notes, *self.built.notes), source.sizes()
        if sizes and config.eval_split != "none":
            both = shared(config.train_split, config.eval_split, sizes)
            if both:
                notes = (
                    *notes,
                    f"--eval_split={config.eval_split}: {both:,} of its examples are trained on, too "
                    f"(--train_split={config.train_split}). An evaluation of them says nothing about new "
                    "data.",
                )
        return notes

    def program(self) -> Program:
        """The state and the compiled functions of the run; compiles nothing yet."""
        config, built = self.config, self.built
        with built.strategy.scope():
            state = TrainState(
                built.variables,
                self.parts.optimizers,
                self.means,
                ema=config.ema is not None,
                loss_scale=config.precision == "mixed_float16",
            )
        settings = Settings(
            batch=self.parts.clock.batch,
            accumulate=config.accumulate,
            seed=config.seed,
            clip_norm=config.clip_norm,
            ema=config.ema,
            on_nonfinite=config.on_nonfinite,
            jit_compile=config.jit_compile,
        )
        network = built.network(self.outputs)
        return Program(built.strategy, network, state, self.parts.schedules, settings)

    def training_feed(self) -> Feed:
        """Batches of one update's examples, in the order of the run's seed."""
        batch = self.parts.clock.batch
        return training_feed(self.residency, self.split, self.built.share, batch, self.config.seed)

    @property
    def evaluation_split(self) -> Split | None:
        """As the model sees it; None with `--eval_split=none`."""
        return build.evaluation_split(self.config, self.built, self.split.source)

    def evaluation_feed(self) -> Feed | None:
        """Every example of the evaluation split once; None with `--eval_split=none`."""
        split = self.evaluation_split
        return evaluation(self.config, self.built, split) if split else None


def assemble(
    config: Config, only_plan: bool = False, on: Engine | None = None, resumes: bool = False
) -> Assembled:
    """Everything of a run up to where data is read.

    Args:
      config: the flags.
      only_plan: count examples from metadata, prepare no data set.
      on: as for `build_model`.
      resumes: the run has a checkpoint of its own, so that `--init_from` is not used.

    Raises:
      UserError: the first refusal, in this order: flags, model, groups, source, data, schedules.
    """
    build.check_dataset(config)
    rules = parse_rules(config.group)
    lengths.check(config)
    built = build.build_model(config, on)
    owned = _owned(rules, built)
    trained = [v for rule, own in owned if rule.optimizer for v in own]
    no_decay = select(config.no_decay, trained, "--no_decay")
    starts = {} if resumes or not config.init_from else match_source(config, built).starts()
    split = build.training_split(config, built, build.open_source(config))
    built, means = build.check_model(
        config, built, split, {v.name: rule.loss for rule, own in owned if rule.optimizer for v in own}
    )
    split = build.training_split(config, built, split.source)  # whose labels the model is known to take
    outputs = build.check_outputs(config, built, split, means)
    criterion = _criterion(config, built, means, outputs)
    judge = stopping.judge(config.stop_when, *evaluated(means, outputs), built.module.better)
    clock = lengths.clock(config, built, split, only_plan)
    if not only_plan or clock.examples is not None:
        for name in lengths.PERIODS:
            lengths.duration(config, name, clock)
    factor, deep = _depths(config, built)
    per_variable = PerVariable({name: factor**depth for name, depth in deep.items()}, no_decay, deep)
    judge.total = clock.total or 0
    parts = partition(owned, clock, built.strategy, per_variable, only_plan, built.variables)
    _check_no_decay(config, parts)
    others = build.evaluation_split(config, built, split.source)
    if not only_plan:
        split.source.prepare()
        build.check_room(outputs, others, built)
    drawn = residency(config.data_residency, split, built.share) if split.source.prepared else ""
    for one in filter(None, (split, others) if drawn else ()):
        check_examples(one, drawn != "streaming")
    return Assembled(config, built, split, parts, means, drawn, starts, criterion, outputs, judge)


def evaluation(config: Config, built: Built, split: Split) -> Feed:
    """Every example of a prepared split once."""
    chosen = residency(config.data_residency, split, built.share)
    return evaluation_feed(chosen, split, built.share, config.batch_size)


def evaluation_program(config: Config, built: Built, means: Means, outputs: Outputs | None = None) -> Program:
    """What evaluates the model's weights and cannot train them."""
    with built.strategy.scope():
        state = TrainState(built.variables, (), means, ema=False, loss_scale=False)
    settings = Settings(batch=config.batch_size, seed=config.seed)
    return Program(built.strategy, built.network(outputs), state, {}, settings)


def _owned(rules: Sequence[Rule], built: Built) -> list[Owned]:
    """Each rule with its variables; refuses optimizers that Keras itself does, and that nothing trains."""
    for rule in rules:
        if rule.optimizer is not None:
            optimizers.make(rule.optimizer, rule.flag)
    owned = assign(rules, built.variables)
    if not any(rule.optimizer and own for rule, own in owned):
        raise UserError("--group: every rule says frozen, so there is nothing to train.")
    return owned


def _criterion(config: Config, built: Built, means: Means, outputs: Outputs | None) -> Criterion | None:
    """What `--keep_best` compares evaluations by; refuses one that no evaluation yields."""
    names, sure = evaluated(means, outputs)
    better = built.module.better
    if sure or not isinstance(better, Mapping):
        criteria.check_stated(better, names, f"--model={config.model_name}")
    if not config.keep_best:
        return None
    if sure and criteria.split(config.keep_best)[0] not in names:
        raise UserError(
            f"--keep_best={config.keep_best}: the model has no such metric. It has: {', '.join(names)}."
        )
    return criteria.criterion(config.keep_best, better)


def evaluated(means: Means, outputs: Outputs | None) -> tuple[tuple[str, ...], bool]:
    """Names of the numbers that an evaluation yields, and whether there can be no others."""
    own = outputs.names if outputs else ()
    return (*means.names, *(own or ())), own is not None


def _depths(config: Config, built: Built) -> tuple[float, dict[str, int]]:
    """The factor of `--layer_decay`, and each variable's depth; {} where it is 1."""
    decay = layer_decay.parse(str(config.layer_decay))
    if decay.factor == 1:
        return 1.0, {}
    flag, own = f"--layer_decay={decay.text}", built.module.depth
    found = guarded(lambda: depths(built.variables, own, decay.by, flag), f"{flag}: the model's depth")
    return decay.factor, found


def _check_no_decay(config: Config, parts: Partition) -> None:
    if config.no_decay and not any(o.keras.weight_decay for o in parts.optimizers):
        raise UserError(
            f"--no_decay={config.no_decay[0]}: no group's optimizer has a weight decay to keep off. "
            "Give one, such as adamw(weight_decay=1e-4), or remove the flag."
        )
