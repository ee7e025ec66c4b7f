"""A model and the data it is to see: devices, strategy, seeds, the model itself, source and data set.

All of it is checked here against each other, and no example is read.
"""

import dataclasses
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf

from trainer.data.sources.tfds import Dataset, open_dataset
from trainer.devices.agreement import check_same
from trainer.devices.strategy import prepare, strategy_for
from trainer.errors import UserError
from trainer.flags.calls import Call
from trainer.flags.config import Config
from trainer.model.module import build, check_features, check_loss, check_precision, load, naming
from trainer.model.names import ModelVariable, walk
from trainer.readers import open_source
from trainer.restore.match import Matched, match
from trainer.restore.rules import of

Engine = tuple[tf.distribute.Strategy, str]  # and a sentence on it

# Paths, which workers may have at other places; what lies there is compared.
OF_THE_MACHINE = ("data_dir", "manual_dir", "init_from", "workdir", "plan_out", "propose_out", "export_to")


@dataclasses.dataclass(frozen=True)
class Built:
    """A model, its names, and where it lives."""

    module: ModuleType
    call: Call
    model: Any
    variables: tuple[ModelVariable, ...]
    strategy: tf.distribute.Strategy
    engine: str


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
      UserError: devices that are not there, or a model that cannot be built or named.
    """
    module, call = load(config.model)
    strategy, sentence = on or engine(config)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    # Names that Keras makes up count what the process built before. This forgets the dtype policy, too.
    keras.backend.clear_session()
    keras.config.set_floatx("float64" if config.precision == "float64" else "float32")
    keras.config.set_dtype_policy(
        config.precision if config.precision.startswith("mixed") else keras.config.floatx()
    )
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        model = build(module, call)
    with naming(config.model):
        variables = tuple(walk(model))
    check_precision(model, variables, config.precision)
    return Built(module, call, model, variables, strategy, sentence)


def match_source(config: Config, built: Built) -> Matched:
    """Which weights of `--init_from` the variables start from. Reads none of them.

    Raises:
      UserError: all that does not fit, in one message.
    """
    source = open_source(config.init_from, config.init_weights)
    matched = match(built.variables, source, of(config), built.model)
    matched.check()
    return matched


def check_dataset(config: Config) -> None:
    """Refuses flags that name no data set, before anything is built."""
    if not config.dataset:
        raise UserError("--dataset: not given. Name one of TFDS or of datasets/, such as mnist or digits.")


def open_data(config: Config, built: Built, trained: frozenset[str]) -> tuple[Dataset, tuple[str, ...]]:
    """The data set, not prepared, and the names of the metrics that the model's loss yields on it.

    Raises:
      UserError: data that cannot be had, or that do not go with the model.
    """
    dataset = open_dataset(config.dataset, config.data_dir, config.manual_dir, config.fallback_dataset)
    check_features(
        built.module, built.model, dataset.features, f"--dataset={dataset.name} with --model={config.model}"
    )
    with naming(config.model):
        metrics = check_loss(
            built.module,
            built.model,
            built.variables,
            trained,
            dataset.element_spec(getattr(built.module, "decode", None)),
            config.batch_size // built.strategy.num_replicas_in_sync,
            built.strategy,
        )
    return dataset, metrics
