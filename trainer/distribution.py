"""Strategies and devices: where the replicas of a run live.

`prepare` comes first, before TensorFlow starts; `strategy_for` then chooses, and says in a sentence
what it chose and why. A device, a list of workers or a batch that does not fit is refused here,
before a model is built. Nothing happens at import.
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

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
        there = _names("CPU")
        if len(there) < virtual_devices:
            raise UserError(
                f"--virtual_devices={virtual_devices}: TensorFlow has started with "
                f"{listing(there)}. Prepare the devices before anything else uses TensorFlow."
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
    kinds = ("auto", "one", "mirrored", "multi_worker")
    if strategy not in kinds:
        raise UserError(f"--strategy={strategy}: no such strategy. {near(strategy, kinds)}")
    if batch_size < 1:
        raise UserError(f"--batch_size={batch_size}: must be at least 1.")
    if strategy == "multi_worker":
        return _multi_worker(devices, batch_size, communication, virtual_devices)
    if communication != "auto":
        raise UserError(
            f"--communication={communication}: only between workers; leave it out, or give "
            "--strategy=multi_worker."
        )
    workers = _tf_config_workers()
    if strategy == "auto" and workers > 1:
        raise UserError(
            f"--strategy=auto: TF_CONFIG names {workers} workers. Give --strategy=multi_worker to "
            "train together, or --strategy=one, or unset TF_CONFIG."
        )
    named = _chosen(devices)
    if strategy == "one" or (strategy == "auto" and len(named) == 1):
        return _one(named)
    there = named or _replica_devices(virtual_devices)
    if strategy == "auto" and not named:
        return _auto(there, batch_size)
    if not there:
        raise UserError(
            f"--strategy=mirrored: no GPU is there, only {listing(_names())}. Give "
            "--virtual_devices=2 to try it on the CPU, or --strategy=one."
        )
    _check_batch(batch_size, len(there), listing(there))
    return tf.distribute.MirroredStrategy(there), f"{_count(there)}, mirrored"


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes checkpoints, logs and event files; alone, it does."""
    if not _is_multi_worker(strategy):
        return True
    resolver = strategy.cluster_resolver
    first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return (resolver.task_type, resolver.task_id) == (first, 0)


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """(index of this process, how many there are): (0, 1) for a strategy of one process."""
    resolver = strategy.cluster_resolver
    if resolver is None or not _is_multi_worker(strategy):
        return 0, 1
    cluster = resolver.cluster_spec().as_dict()
    workers = [f"{kind}/{i}" for kind in ("chief", "worker") for i in range(len(cluster.get(kind, ())))]
    return workers.index(f"{resolver.task_type}/{resolver.task_id}"), len(workers)


def replicas(strategy: tf.distribute.Strategy) -> int:
    """How many replicas share a batch, over all workers."""
    return int(strategy.num_replicas_in_sync)


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """How many of the replicas run in this process."""
    if _is_multi_worker(strategy):
        return len(strategy.extended.worker_devices)
    return replicas(strategy)


def _is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


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


def _auto(there: Sequence[str], batch_size: int) -> tuple[tf.distribute.Strategy, str]:
    """The most of the devices that divide the batch."""
    if not there:
        chosen, sentence = _one(())
        return chosen, f"{sentence}: TensorFlow sees no GPU"
    most = max(n for n in range(1, len(there) + 1) if batch_size % n == 0)
    why = "all there are"
    if most < len(there):
        why = f"the most of {len(there)} that divide --batch_size={batch_size}"
    if most > 1:
        used = list(there[:most])
        return tf.distribute.MirroredStrategy(used), f"{_count(used)}: {why}"
    chosen, sentence = _one(() if there[0] == _default() else there[:1])
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
    there = _names()
    chosen: list[str] = []
    for text in filter(None, (part.strip() for part in devices.split(","))):
        name = re.sub(r"^/?(device:)?", "", text, flags=re.IGNORECASE).upper()
        if name not in there:
            raise UserError(f"--devices={devices}: no {text} here. There is: {listing(there)}.")
        if name in chosen:
            raise UserError(f"--devices={devices}: {text} is named twice.")
        chosen.append(name)
    if devices and not chosen:
        raise UserError(f"--devices={devices}: no device named. There is: {listing(there)}.")
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
    resolver = _resolver(gpus)
    spec = resolver.cluster_spec()
    workers = sum(spec.num_tasks(job) for job in spec.jobs)
    here = f"{resolver.task_type} {resolver.task_id} of {workers} in the cluster"
    _check_batch(batch_size, workers * max(gpus, 1), f"{workers} workers, {max(gpus, 1)} on each")
    implementation = tf.distribute.experimental.CommunicationImplementation[communication.upper()]
    options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
    try:
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


def _resolver(gpus: int) -> tf.distribute.cluster_resolver.ClusterResolver:
    """The cluster from TF_CONFIG, else from Slurm."""
    if os.environ.get("TF_CONFIG"):
        _check_tf_config(os.environ["TF_CONFIG"])
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_STEP_NODELIST" in os.environ:
        return _slurm(gpus)
    raise UserError(
        "--strategy=multi_worker: neither TF_CONFIG nor a Slurm step (srun) is in the environment. "
        f"Set, for worker 0 of 2: TF_CONFIG='{_EXAMPLE}'."
    )


_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'


def _tf_config_workers() -> int:
    """How many addresses TF_CONFIG lists; 0 where it is missing or not readable."""
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")["cluster"]
        return sum(len(addresses) for addresses in cluster.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def _check_tf_config(text: str) -> None:
    """Refuses what the resolver would take and the strategy would hang or guess on."""
    where = f"--strategy=multi_worker: TF_CONFIG={text}:"
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} not JSON ({error}). It looks like {_EXAMPLE}.") from None
    cluster = config.get("cluster") if isinstance(config, dict) else None
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise UserError(f"{where} 'cluster' and 'task' must be there. It looks like {_EXAMPLE}.")
    addresses = _addresses(cluster, where)
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(f"{where} {address!r} is no address; write host:port.")
        if addresses.count(address) > 1:
            raise UserError(f"{where} {address} stands there twice; each task has its own.")
    kind, index = task.get("type"), task.get("index")
    if kind not in cluster:
        raise UserError(f"{where} the task's type is {kind!r}; the cluster has {listing(cluster)}.")
    count = len(cluster[kind])
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise UserError(
            f"{where} the task's index is {index!r}; the cluster has {count} of type {kind}: give "
            f"a whole number from 0 to {count - 1}."
        )


def _addresses(cluster: dict[str, Any], where: str) -> list[str]:
    """All addresses of a cluster of workers, with at most one chief."""
    for kind, addresses in cluster.items():
        if kind not in ("chief", "worker"):
            raise UserError(f"{where} tasks of type {kind!r} are not used; list workers only.")
        if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
            raise UserError(f"{where} {kind!r} must be a list of addresses host:port.")
        if not addresses or (kind == "chief" and len(addresses) > 1):
            needs = "exactly one address" if kind == "chief" else "at least one address"
            raise UserError(f"{where} {kind!r} has {len(addresses)}; it needs {needs}.")
    if not cluster:
        raise UserError(f"{where} the cluster is empty. It looks like {_EXAMPLE}.")
    return [address for addresses in cluster.values() for address in addresses]


def _slurm(gpus: int) -> tf.distribute.cluster_resolver.ClusterResolver:
    """The cluster of a Slurm step: one worker per task, ports from 8888.

    TensorFlow's resolver lists the addresses. Two things it gets wrong are mended: it hands out
    GPUs (which Slurm did), counting one where there is none; and it sorts the hosts by name, so
    that n10 comes before n2 and ranks no longer match: a task finds itself by its own address.
    """
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=1_000_000, gpus_per_task=1, auto_set_gpu=False
        )
        workers = resolver.cluster_spec().as_dict()["worker"]
        rank = resolver.task_id
        host, local = os.environ.get("SLURMD_NODENAME"), os.environ.get("SLURM_LOCALID", "0")
        if host:
            rank = workers.index(f"{host}:{8888 + int(local)}")
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"--strategy=multi_worker: the Slurm environment cannot be used ({error}). Start with "
            f"srun, or set TF_CONFIG='{_EXAMPLE}'."
        ) from error
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": workers}),
        task_type="worker",
        task_id=rank,
        rpc_layer="grpc",
        num_accelerators={"GPU": gpus},
    )
