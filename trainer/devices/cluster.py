"""The list of workers: from TF_CONFIG or from Slurm, checked before TensorFlow waits for any of them.

Also what a worker says of the others: which it still waits for, and which it has lost.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

import tensorflow as tf

from trainer.errors import UserError, listing

Resolver: TypeAlias = tf.distribute.cluster_resolver.ClusterResolver

REMIND = 30.0  # seconds between two reminders of the workers that are waited for
PATIENCE = 900.0  # seconds after which a worker that has not come will not


def resolver(gpus: int) -> Resolver:
    """The cluster from TF_CONFIG, else from Slurm; `gpus` are those of this process.

    Raises:
      UserError: there is no list of workers, or none that can be used.
    """
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


def tf_config_workers() -> int:
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


def _slurm(gpus: int) -> Resolver:
    """The cluster of a Slurm step: one worker per task, ports from 8888.

    TensorFlow's resolver lists the addresses. Two things it gets wrong are mended: it hands out
    GPUs (which Slurm did), counting one where there is none; and it sorts the hosts by name, so
    that n10 comes before n2 and ranks no longer match: a task finds itself by its own address.
    """
    try:
        found = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=1_000_000, gpus_per_task=1, auto_set_gpu=False
        )
        workers = found.cluster_spec().as_dict()["worker"]
        rank = found.task_id
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


def tasks(found: Resolver) -> dict[str, str]:
    """`{"worker 0": "host:port"}` of the whole cluster; the chief, if it has a name of its own, first."""
    cluster = found.cluster_spec().as_dict()
    return {
        f"{kind} {index}": address
        for kind in ("chief", "worker")
        for index, address in enumerate(cluster.get(kind, ()))
    }


@contextlib.contextmanager
def awaiting(found: Resolver) -> Iterator[None]:
    """While TensorFlow waits for all workers to come, says which have not; gives up after `PATIENCE`.

    TensorFlow itself waits in silence, and in C++, where no exception reaches it: giving up ends the
    process, with status 1.
    """
    here, come = f"{found.task_type} {found.task_id}", threading.Event()

    def remind() -> None:
        waited = 0.0
        while not come.wait(REMIND):
            waited += REMIND
            absent = [f"{n} ({a})" for n, a in tasks(found).items() if n != here and not _answers(a)]
            missing = f"no answer from {listing(absent)}" if absent else "all answer, not all are ready"
            sys.stderr.write(f"{here}: waiting for the others since {waited:.0f} s; {missing}.\n")
            if waited >= PATIENCE:
                sys.stderr.write(f"{here}: gives up. Start all workers with the same list of them.\n")
                os._exit(1)

    threading.Thread(target=remind, name="awaiting", daemon=True).start()
    try:
        yield
    finally:
        come.set()


def elsewhere(error: tf.errors.OpError) -> bool:
    """Whether an error tells of what another worker did, or that it is gone."""
    return bool(re.search(r"[Cc]ollective|heartbeat|RPC|[Cc]oordination", error.message))


def lost(error: tf.errors.OpError, found: Resolver) -> UserError | None:
    """What to tell of an error: which worker seems to be gone; None if it tells of other things."""
    if not elsewhere(error):
        return None
    here = f"{found.task_type} {found.task_id}"
    named = [f"{k} {i}" for k, i in re.findall(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", error.message)]
    gone = {name: a for name, a in tasks(found).items() if name != here and name in named}
    if not gone:
        gone = {name: a for name, a in tasks(found).items() if name != here and not _answers(a)}
    who = listing([f"{name} ({address})" for name, address in gone.items()]) or "another worker"
    reason = error.message.strip().splitlines()[0][:200]
    return UserError(
        f"--strategy=multi_worker: {here} cannot go on: {who} is gone, or out of reach ({reason}). Its "
        "own output says why. Start all workers again with the same command: they go on from the newest "
        "checkpoint."
    )


def _answers(address: str, seconds: float = 2.0) -> bool:
    """Whether something accepts connections at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), seconds):
            return True
    except OSError:
        return False
