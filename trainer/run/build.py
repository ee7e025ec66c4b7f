"""A model and the data it is to see: devices, strategy, seeds, the model itself, the data set.

All of it is checked here against each other, and no example is read.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from trainer.data.opening import Places, open_data, open_object
from trainer.data.padding import parse_pads
from trainer.data.source import Source, Split
from trainer.devices.agreement import check_same
from trainer.devices.memory import room
from trainer.devices.replicas import Share
from trainer.devices.strategy import prepare, strategy_for
from trainer.errors import UserError, listing
from trainer.flags.calls import Call, check_call
from trainer.flags.config import Config
from trainer.model import module as modules
from trainer.model import outputs
from trainer.model.checks import LossTrace, check_features, check_precision
from trainer.model.module import ModelModule
from trainer.model.names import ModelVariable, walk
from trainer.model.outputs import Outputs
from trainer.model.returns import Means
from trainer.training.network import Network

Engine = tuple[tf.distribute.Strategy, str]  # and a sentence on it

# Paths, which workers may have at other places; what lies there is compared.
OF_THE_MACHINE = (
    *("data_dir", "manual_dir", "init_from", "workdir"),
    *("plan_out", "propose_out", "export_to", "report_to"),
)


@dataclasses.dataclass(frozen=True)
class Built:
    """A model, its names, and where it lives.

    Attributes:
      module: what the user brought.
      model: what its `build` returned.
      variables: of the model, named.
      share: how a batch is shared out over the replicas.
      engine: a sentence on devices and strategy.
      classes: by feature that the loss takes for numbers of classes, how many the model has.
      notes: sentences on the model, for the log.
    """

    module: ModelModule
    model: Any
    variables: tuple[ModelVariable, ...]
    share: Share
    engine: str
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """In whose scope everything of the run is made."""
        return self.share.strategy

    def network(self, outputs: Outputs | None) -> Network:
        """The model and its functions as a step calls them."""
        return Network.of(self.module, self.model, self.variables, outputs)


def engine(config: Config) -> Engine:
    """Devices and strategy.

    Raises:
      UserError: devices that are not there, a batch that they cannot share, or other workers that
        were started with other flags.
    """
    prepare(config.virtual_devices)
    chosen, sentence = strategy_for(
        config.strategy,
        config.devices,
        config.batch_size,
        config.communication,
        config.virtual_devices,
    )
    flags = {name: str(value) for name, value in vars(config).items() if name not in OF_THE_MACHINE}
    check_same(chosen, flags, "flags", "Start all workers with the same command.")
    return chosen, sentence


def build_model(config: Config, on: Engine | None = None) -> Built:
    """Devices, strategy, seeds and the model, in the strategy's scope.

    Args:
      config: the flags.
      on: a strategy that is there already, instead of one of its own.

    Raises:
      UserError: devices that are not there, settings of Keras that cannot be used, or a model that cannot be
        built or named.
    """
    _check_keras()
    if on is None:
        prepare(config.virtual_devices)  # before the module's code, which may start TensorFlow at import
    module, call = module_of(config)
    strategy, sentence = on or engine(config)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    # Names that Keras makes up count what the process built before. This forgets the dtype policy, too.
    keras.backend.clear_session()
    use_precision(config.precision)
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        model = modules.build(module, call)
    with modules.naming(config.model_name):
        variables = tuple(walk(model))
    check_precision(model, variables, config.precision)
    return Built(module, model, variables, Share(strategy, config.accumulate), sentence)


def _check_keras() -> None:
    """Refuses settings of Keras from the environment or `~/.keras/keras.json` that no run here can use."""
    if keras.config.backend() != "tensorflow":
        raise UserError(f"KERAS_BACKEND={keras.config.backend()}: this trains TensorFlow models. Unset it.")
    if keras.config.image_data_format() != "channels_last":
        raise UserError(
            "Keras's image_data_format is channels_first (as ~/.keras/keras.json may say), and images are "
            "channels_last here. Set it so, and give layers of your own that differ data_format=."
        )


def use_precision(precision: str) -> None:
    """Keras's float type and dtype policy, as `--precision` has them."""
    keras.config.set_floatx("float64" if precision == "float64" else "float32")
    keras.config.set_dtype_policy(precision if precision.startswith("mixed") else keras.config.floatx())


def module_of(config: Config) -> tuple[ModelModule, Call]:
    """The model module that `--model` names, or is, and the call of its `build`.

    Raises:
      UserError: as `modules.load`.
    """
    if isinstance(config.model, str):
        return modules.load(config.model)
    flag = f"--model={config.model_name}"
    module = ModelModule.of(config.model, flag, config.model_name)
    call = Call(config.model_name, text=config.model_name)
    check_call(call, module.build, "model", flag)
    return module, call


def check_dataset(config: Config) -> None:
    """Refuses flags that name no data set, before anything is built."""
    if isinstance(config.dataset, str) and not config.dataset:
        raise UserError(
            "--dataset: not given. Name one of TFDS or of datasets/, such as mnist or digits, or data of "
            "your own: "
            "a file, a folder, a function (docs/data.md)."
        )
    for pad in parse_pads(config.pad).values():
        if config.jit_compile and pad.most is None:
            raise UserError(
                f"--pad={pad.text}: --jit_compile compiles every length by itself, and without max= there "
                "is no end "
                "of lengths. Give max= and multiple=, such as 'multiple=64 max=256' for four."
            )


def open_source(config: Config) -> Source:
    """The data set that `--dataset` names, or is; not prepared.

    Raises:
      UserError: data that cannot be had.
    """
    given = config.dataset
    places = Places(config.data_dir, config.manual_dir, config.fallback_dataset)
    if isinstance(given, str):
        return open_data(given, places, config.bad_examples)
    places.refuse(config.dataset_name)
    return open_object(given, config.dataset_name, config.bad_examples)


def training_split(config: Config, built: Built, source: Source) -> Split:
    """The split to train on, as the model sees it."""
    pads, bad = parse_pads(config.pad), config.bad_examples
    return Split(source, config.train_split, built.module.decode, "--train_split", pads, bad, built.classes)


def evaluation_split(config: Config, built: Built, source: Source) -> Split | None:
    """The split to evaluate on, as the model sees it; None with `--eval_split=none`."""
    if config.eval_split == "none":
        return None
    split = training_split(config, built, source)
    return dataclasses.replace(split, name=config.eval_split, flag="--eval_split")


def check_model(
    config: Config, built: Built, split: Split, trained: Mapping[str, str]
) -> tuple[Built, Means]:
    """The model, with what its forward pass writes marked, and what its loss yields on the data.

    Args:
      config: the flags.
      built: the model.
      split: of the data.
      trained: as of `LossTrace`.

    Raises:
      UserError: data that do not go with the model.
    """
    what = f"--dataset={split.source.name} with --model={config.model_name}"
    check_features(built.module, built.model, split.source.features, what)
    nested = f"--accumulate={config.accumulate}" if config.accumulate > 1 else ""
    nested = "--jit_compile" if config.jit_compile else nested
    evaluates = config.eval_split != "none"
    with modules.naming(config.model_name):
        trace = LossTrace(built.module, built.model, built.variables, trained, nested)
        found = trace.check(
            split.spec(), config.batch_size // built.share.replicas, built.strategy, evaluates
        )
    marked = tuple(dataclasses.replace(v, assigned=v.name in found.assigned) for v in built.variables)
    unseen = (
        f"The model's loss or preprocess calls Python ({listing(found.hosts, 3)}). What is drawn or kept "
        "there cannot be seen, and would be other numbers after a restart: --mode=verify_resume tells."
    )
    notes = (unseen,) if found.hosts else ()
    return dataclasses.replace(built, variables=marked, classes=found.classes, notes=notes), found.means


def check_outputs(config: Config, built: Built, split: Split, means: Means) -> Outputs | None:
    """The model's `outputs` and `metrics`, traced on the data's shapes; None where it has none.

    Raises:
      UserError: as `outputs.check`.
    """
    batch = config.batch_size // built.share.replicas
    with modules.naming(config.model_name):
        return outputs.check(built.module, built.model, split.spec(), batch, means.names)


def check_room(found: Outputs | None, split: Split | None, built: Built) -> None:
    """Refuses rows of a whole evaluation split that would not fit into a quarter of the host's memory.

    Raises:
      UserError: with the numbers.
    """
    if found is None or split is None:
        return
    need, free = found.bytes * split.examples, room(("CPU:0",))
    if need > free:
        raise UserError(
            f"--eval_split={split.name}: the model's outputs take {need / 2**20:,.0f} MiB "
            f"({split.examples:,} examples of {found.bytes:,} bytes) and {free / 2**20:,.0f} MiB are to "
            f"spare. Cut the split, such as --eval_split={split.name.partition('[')[0]}[:10%], or return "
            "less from outputs."
        )
