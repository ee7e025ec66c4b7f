"""Strategies and devices: where the replicas of a run live.

`prepare` comes first, before TensorFlow starts; `strategy_for` then chooses, and says in a sentence
what it chose and why. A device, a list of workers or a batch that does not fit is refused here,
before a model is built. Nothing happens at import.
"""

import functools
import re
from collections.abc import Sequence

import tensorflow as tf

from trainer.devices import cluster
from trainer.devices.replicas import local_replicas, replicas
from trainer.errors import UserError, listing, near

_COMMUNICATION = ("auto", "ring", "nccl")


def prepare(virtual_devices: int = 0) -> None:
    """Let GPU memory grow as needed, and split the CPU into `virtual_devices` (0: leave it whole).

    Call it before any other use of TensorFlow. Where TensorFlow has started already, memory growth
    stays as it is, and logical CPUs must have been configured, at least as many.

    Raises:
      UserError: a negative number, or TensorFlow has started with fewer logical CPUs.
    """
    if virtual_devices < 0:
        raise UserError(f"--virtual_devices={virtual_devices}: must be 0 or more.")
    for gpu in tf.config.list_physical_devices("GPU"):
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except (RuntimeError, ValueError):
            continue  # Started already, or split into logical GPUs of fixed size: both keep theirs.
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) >= virtual_devices:
        return
    try:
        logical = [tf.config.LogicalDeviceConfiguration()] * virtual_devices
        tf.config.set_logical_device_configuration(cpu, logical)
    except RuntimeError:
        available = _names("CPU")
        if len(available) < virtual_devices:
            raise UserError(
                f"--virtual_devices={virtual_devices}: TensorFlow has started with "
                f"{listing(available)}. Prepare the devices before anything else uses TensorFlow."
            ) from None


def strategy_for(
    strategy: str = "auto",
    devices: str = "",
    batch_size: int = 1,
    communication: str = "auto",
    virtual_devices: int = 0,
) -> tuple[tf.distribute.Strategy, str]:
    """The strategy of a run, and a sentence that says what was chosen and why.

    Args:
      strategy: "auto", "one", "mirrored" or "multi_worker".
      devices: names such as "GPU:0,GPU:1"; "" leaves the choice to us.
      batch_size: examples in a global batch, to be divided by the replicas.
      communication: "auto", "ring" or "nccl"; between workers only.
      virtual_devices: as given to `prepare`; so many logical CPUs stand in for GPUs.

    Raises:
      UserError: naming the flag, its value and what there is instead.
    """
    _check_flags(strategy, batch_size, communication)
    if strategy == "multi_worker":
        return _multi_worker(devices, batch_size, communication, virtual_devices)
    named = _chosen(devices)
    if strategy == "one" or (strategy == "auto" and len(named) == 1):
        return _one(named)
    available = named or _replica_devices(virtual_devices)
    if strategy == "auto" and not named:
        return _auto(available, batch_size)
    if not available:
        raise UserError(
            f"--strategy=mirrored: no GPU is there, only {listing(_names())}. Give "
            "--virtual_devices=2 to try it on the CPU, or --strategy=one."
        )
    _check_batch(batch_size, len(available), listing(available))
    return mirrored(available), f"{_count(available)}, mirrored"


def mirrored(devices: Sequence[str]) -> tf.distribute.MirroredStrategy:
    """The one MirroredStrategy of this process over these devices.

    TensorFlow numbers the collectives of every strategy from the same start, so that two strategies in one
    process could take each other's; each gets a range of numbers of its own here.
    """
    return _mirrored(tuple(devices))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    own = {"_collective_key_base": 100_000 * (1 + _mirrored.cache_info().currsize)}
    return type("MirroredStrategy", (tf.distribute.MirroredStrategy,), own)(list(devices))


def _check_flags(strategy: str, batch_size: int, communication: str) -> None:
    """Refuses what no devices could mend."""
    kinds = ("auto", "one", "mirrored", "multi_worker")
    if strategy not in kinds:
        raise UserError(f"--strategy={strategy}: no such strategy. {near(strategy, kinds)}")
    if batch_size < 1:
        raise UserError(f"--batch_size={batch_size}: must be at least 1.")
    if strategy == "multi_worker":
        return
    if communication != "auto":
        raise UserError(
            f"--communication={communication}: only between workers; leave it out, or give "
            "--strategy=multi_worker."
        )
    workers = cluster.tf_config_workers()
    if strategy == "auto" and workers > 1:
        raise UserError(
            f"--strategy=auto: TF_CONFIG names {workers} workers. Give --strategy=multi_worker to "
            "train together, or --strategy=one, or unset TF_CONFIG."
        )


# --- one process ---


def _default() -> str:
    """The device that TensorFlow itself would choose."""
    return (_names("GPU") or _names("CPU"))[0]


def _one(named: Sequence[str]) -> tuple[tf.distribute.Strategy, str]:
    if len(named) > 1:
        raise UserError(
            f"--devices={','.join(named)}: --strategy=one takes one device. Name one, or give "
            "--strategy=mirrored."
        )
    if named:
        return tf.distribute.OneDeviceStrategy(named[0]), f"one replica on {named[0]}"
    # The default strategy: TensorFlow's own placement, and no overhead.
    return tf.distribute.get_strategy(), f"one replica on {_default()}"


def _auto(available: Sequence[str], batch_size: int) -> tuple[tf.distribute.Strategy, str]:
    """The most of the devices that divide the batch."""
    if not available:
        chosen, sentence = _one(())
        return chosen, f"{sentence}: TensorFlow sees no GPU"
    most = max(n for n in range(1, len(available) + 1) if batch_size % n == 0)
    why = "all there are"
    if most < len(available):
        why = f"the most of {len(available)} that divide --batch_size={batch_size}"
    if most > 1:
        used = list(available[:most])
        return mirrored(used), f"{_count(used)}: {why}"
    chosen, sentence = _one(() if available[0] == _default() else available[:1])
    return chosen, f"{sentence}: {why}"


def _replica_devices(virtual_devices: int) -> list[str]:
    """The logical CPUs that were asked for as stand-ins, else the GPUs."""
    return _names("CPU")[:virtual_devices] if virtual_devices else _names("GPU")


def _names(kind: str | None = None) -> list[str]:
    """`CPU:0`, `GPU:0`, ...: the logical devices; this starts TensorFlow."""
    devices = tf.config.list_logical_devices(kind)
    return [device.name.removeprefix("/device:") for device in devices]


def _chosen(devices: str) -> list[str]:
    """The devices named in the flag, each of them there and named once."""
    available = _names()
    chosen: list[str] = []
    for text in filter(None, (part.strip() for part in devices.split(","))):
        name = re.sub(r"^/?(device:)?", "", text, flags=re.IGNORECASE).upper()
        if name not in available:
            raise UserError(f"--devices={devices}: no {text} here. There is: {listing(available)}.")
        if name in chosen:
            raise UserError(f"--devices={devices}: {text} is named twice.")
        chosen.append(name)
    if devices and not chosen:
        raise UserError(f"--devices={devices}: no device named. There is: {listing(available)}.")
    return chosen


def _check_batch(batch_size: int, count: int, where: str) -> None:
    if batch_size % count:
        below = batch_size // count * count
        sizes = [str(size) for size in (below, below + count) if size]
        raise UserError(
            f"--batch_size={batch_size}: does not divide into {count} replicas ({where}). Nearest "
            f"that do: {' and '.join(sizes)}."
        )


def _count(devices: Sequence[str]) -> str:
    count = "one replica" if len(devices) == 1 else f"{len(devices)} replicas"
    return f"{count} on {listing(devices)}"


# --- several workers: all is checked before the strategy is made, which waits for its peers ---


def _multi_worker(
    devices: str, batch_size: int, communication: str, virtual_devices: int
) -> tuple[tf.distribute.Strategy, str]:
    if communication not in _COMMUNICATION:
        hint = near(communication, _COMMUNICATION)
        raise UserError(f"--communication={communication}: no such way. {hint}")
    for flag, value in (("devices", devices), ("virtual_devices", virtual_devices)):
        if value:
            raise UserError(
                f"--{flag}={value}: each worker of --strategy=multi_worker uses all GPUs that it "
                "sees, else its CPU. Leave it out; CUDA_VISIBLE_DEVICES limits what a worker sees."
            )
    # Physical, because listing logical devices starts TensorFlow, too early for collectives.
    gpus = len(tf.config.list_physical_devices("GPU"))
    if communication == "nccl" and not gpus:
        raise UserError("--communication=nccl: NCCL needs GPUs and none is there; give ring.")
    resolver = cluster.resolver(gpus)
    workers = len(cluster.tasks(resolver))
    here = f"{resolver.task_type} {resolver.task_id} of {workers} in the cluster"
    _check_batch(batch_size, workers * max(gpus, 1), f"{workers} workers, {max(gpus, 1)} on each")
    implementation = tf.distribute.experimental.CommunicationImplementation[communication.upper()]
    options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
    try:
        with cluster.awaiting(resolver):
            chosen = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise UserError(
            "--strategy=multi_worker: TensorFlow has already started in this process; choose the "
            "strategy before anything else uses TensorFlow."
        ) from error
    count = f"{replicas(chosen)} replicas, {local_replicas(chosen)} of them in this process"
    return chosen, f"{count} ({here}), communication {communication}"
