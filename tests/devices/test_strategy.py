"""Which strategy is chosen for which devices, and what is refused, on four logical CPUs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer.devices import cluster
from trainer.devices.replicas import is_chief, local_replicas, replicas
from trainer.devices.strategy import prepare, strategy_for
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        strategy_for(*args, **kwargs)
    return str(caught.value)


def used(strategy):
    return [name.rpartition("device:")[2] for name in strategy.extended.worker_devices]


def test_auto_without_a_gpu_is_the_default_strategy():
    strategy, sentence = strategy_for("auto", batch_size=128)
    assert strategy is tf.distribute.get_strategy()
    assert sentence == "one replica on CPU:0: TensorFlow sees no GPU"


@pytest.mark.parametrize(
    ("virtual", "batch", "expected"), [(2, 128, 2), (4, 128, 4), (4, 96, 4), (4, 126, 3), (3, 8, 2)]
)
def test_auto_takes_the_most_devices_that_divide_the_batch(virtual, batch, expected):
    strategy, sentence = strategy_for("auto", batch_size=batch, virtual_devices=virtual)
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert used(strategy) == [f"CPU:{i}" for i in range(expected)]
    assert sentence.startswith(f"{expected} replicas on CPU:0, CPU:1")
    assert (f"the most of {virtual} that divide --batch_size={batch}" in sentence) == (expected < virtual)


def test_auto_with_a_batch_that_nothing_divides_is_one_replica():
    strategy, sentence = strategy_for("auto", batch_size=127, virtual_devices=4)
    assert strategy is tf.distribute.get_strategy()
    assert sentence == "one replica on CPU:0: the most of 4 that divide --batch_size=127"


def test_auto_uses_exactly_the_devices_named():
    strategy, _ = strategy_for("auto", "CPU:1,CPU:3", batch_size=4)
    assert used(strategy) == ["CPU:1", "CPU:3"]
    strategy, _ = strategy_for("auto", "CPU:2", batch_size=4)
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert used(strategy) == ["CPU:2"]
    assert "--batch_size=5" in refusal("auto", "CPU:1,CPU:3", 5)


def test_one():
    assert strategy_for("one", batch_size=7)[0] is tf.distribute.get_strategy()
    strategy, sentence = strategy_for("one", "CPU:1", 7)
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert used(strategy) == ["CPU:1"] and sentence == "one replica on CPU:1"
    with strategy.scope():
        assert tf.Variable(1.0).device.endswith("CPU:1")
    assert "CPU:0,CPU:1" in refusal("one", "CPU:0,CPU:1", 8)


@pytest.mark.parametrize("written", ["CPU:0,CPU:1", " cpu:0 , /device:cpu:1", "/CPU:0,/cpu:1"])
def test_mirrored_on_two_logical_cpus_trains_on_both(written):
    strategy, sentence = strategy_for("mirrored", written, 8)
    assert sentence == "2 replicas on CPU:0, CPU:1, mirrored"
    assert (replicas(strategy), local_replicas(strategy), is_chief(strategy)) == (2, 2, True)
    with strategy.scope():
        weight = tf.Variable(2.0)

    @tf.function
    def total():
        def replica():
            context = tf.distribute.get_replica_context()
            here = tf.cast(context.replica_id_in_sync_group, tf.float32) + 1.0
            return context.all_reduce("sum", weight * here)

        return strategy.run(replica)

    per_replica = strategy.experimental_local_results(total())
    np.testing.assert_array_equal([value.numpy() for value in per_replica], [6, 6])  # 2 * (1 + 2)
    assert [v.device[-5:] for v in strategy.experimental_local_results(weight)] == [
        "CPU:0",
        "CPU:1",
    ]


def test_mirrored_takes_the_virtual_devices():
    assert used(strategy_for("mirrored", batch_size=9, virtual_devices=3)[0]) == [
        "CPU:0",
        "CPU:1",
        "CPU:2",
    ]


def test_helpers_on_one_replica():
    for strategy in (tf.distribute.get_strategy(), tf.distribute.OneDeviceStrategy("CPU:1")):
        assert (replicas(strategy), local_replicas(strategy), is_chief(strategy)) == (1, 1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mirored",), ["--strategy=mirored", "Did you mean mirrored"]),
        (("mirrored",), ["no GPU is there", "CPU:0, CPU:1, CPU:2, CPU:3", "--virtual_devices=2"]),
        (("mirrored", "GPU:0,GPU:1", 8), ["--devices=GPU:0,GPU:1", "CPU:0, CPU:1, CPU:2, CPU:3"]),
        (("one", "GPU:0"), ["no GPU:0 here"]),
        (("auto", "CPU:4"), ["no CPU:4 here"]),
        (("auto", "CPU"), ["no CPU here"]),
        (("auto", "CPU:0,cpu:0", 8), ["cpu:0 is named twice"]),
        (("auto", ","), ["no device named"]),
        (("mirrored", "CPU:0,CPU:1", 127), ["--batch_size=127", "126 and 128"]),
        (("mirrored", "CPU:0,CPU:1,CPU:2", 2), ["--batch_size=2", "do: 3."]),
        (("auto", "", 0), ["--batch_size=0"]),
        (("auto", "", 8, "ring"), ["--communication=ring", "--strategy=multi_worker"]),
        (("multi_worker", "", 8, "rign"), ["--communication=rign", "Did you mean ring?"]),
        (("multi_worker", "", 8, "nccl"), ["--communication=nccl", "give ring"]),
        (("multi_worker", "CPU:0", 8), ["--devices=CPU:0", "CUDA_VISIBLE_DEVICES"]),
        (("multi_worker", "", 8, "auto", 2), ["--virtual_devices=2"]),
        (("multi_worker", "", 8), ["neither TF_CONFIG nor a Slurm step", '"cluster"']),
    ],
)
def test_refusals(arguments, words):
    message = refusal(*arguments)
    for word in words:
        assert word in message


def config(cluster=None, task=None):
    cluster = {"worker": ["a:1", "b:1"]} if cluster is None else cluster
    return json.dumps({"cluster": cluster, "task": task or {"type": "worker", "index": 0}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "'cluster' and 'task' must be there"),
        ('{"cluster": {"worker": ["a:1"]}}', "'cluster' and 'task' must be there"),
        (config({}), "the cluster is empty"),
        (config({"worker": []}), "'worker' has 0; it needs at least one"),
        (config({"worker": "a:1"}), "must be a list of addresses"),
        (config({"worker": [1]}), "must be a list of addresses"),
        (config({"worker": ["a"]}), "'a' is no address"),
        (config({"worker": ["a:0"]}), "'a:0' is no address"),
        (config({"worker": ["a:http"]}), "'a:http' is no address"),
        (config({"worker": ["a:70000"]}), "'a:70000' is no address"),
        (config({"worker": ["a:1", "a:1"]}), "a:1 stands there twice"),
        (config({"worker": ["a:1"], "chief": ["a:1"]}), "a:1 stands there twice"),
        (config({"worker": ["a:1"], "chief": ["b:1", "c:1"]}), "exactly one"),
        (config({"worker": ["a:1"], "ps": ["b:1"]}), "type 'ps' are not used"),
        (config(task={"type": "worker", "index": 2}), "index is 2; the cluster has 2"),
        (config(task={"type": "worker", "index": -1}), "index is -1"),
        (config(task={"type": "worker", "index": "0"}), "index is '0'"),
        (config(task={"type": "worker"}), "index is None"),
        (config(task={"type": "chief", "index": 0}), "type is 'chief'; the cluster has worker"),
    ],
)
def test_a_wrong_tf_config_is_refused_before_any_peer_is_awaited(monkeypatch, text, words):
    monkeypatch.setenv("TF_CONFIG", text)
    message = refusal("multi_worker", batch_size=8)
    assert words in message and "TF_CONFIG" in message


def test_a_batch_that_the_workers_cannot_share(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config())
    assert "2 workers" in refusal("multi_worker", batch_size=9)


def test_several_workers_in_a_started_process_are_refused(monkeypatch):
    tf.constant(1)
    monkeypatch.setenv("TF_CONFIG", config())
    assert "already started" in refusal("multi_worker", batch_size=8)


def test_auto_does_not_pass_over_a_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config())
    assert "TF_CONFIG names 2 workers" in refusal("auto", batch_size=8)
    assert strategy_for("one", batch_size=8)[0] is tf.distribute.get_strategy()
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert strategy_for("auto", batch_size=8)[0] is tf.distribute.get_strategy()


def slurm(monkeypatch, **variables):
    step = {
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "n[2,10]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    for name, value in (step | variables).items():
        monkeypatch.setenv(name, value)
    return cluster.resolver(0)


def test_slurm_lists_a_worker_per_task(monkeypatch):
    resolver = slurm(monkeypatch, SLURM_PROCID="3")
    assert resolver.cluster_spec().as_dict() == {"worker": ["n10:8888", "n10:8889", "n2:8888", "n2:8889"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", 3)
    assert resolver.num_accelerators() == {"GPU": 0}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ or os.environ["CUDA_VISIBLE_DEVICES"] == "-1"


def test_a_slurm_task_finds_itself_by_its_address(monkeypatch):
    # Slurm counts n2 before n10; the resolver sorts n10 before n2.
    at = {"SLURMD_NODENAME": "n2", "SLURM_LOCALID": "1", "SLURM_PROCID": "1"}
    assert slurm(monkeypatch, **at).task_id == 3


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_PROCID": "x"},
        {"SLURM_STEP_TASKS_PER_NODE": "2"},
        {"SLURM_STEP_NODELIST": "n[2"},
        {"SLURMD_NODENAME": "elsewhere"},
    ],
)
def test_a_slurm_step_that_does_not_fit_is_refused(monkeypatch, variables):
    with pytest.raises(UserError, match="the Slurm environment cannot be used"):
        slurm(monkeypatch, **variables)


def test_prepare_where_tensorflow_has_started():
    tf.constant(1)
    for count in (0, 2, 4):
        prepare(count)
    with pytest.raises(UserError, match=r"--virtual_devices=8: .*CPU:3"):
        prepare(8)
    with pytest.raises(UserError, match="--virtual_devices=-1"):
        prepare(-1)
    assert len(tf.config.list_logical_devices("CPU")) == 4


def start(code, **environment):
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=variables | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    return out.strip()


@pytest.mark.slow
def test_prepare_makes_logical_cpus_in_a_fresh_process():
    code = """
import tensorflow as tf
from trainer.devices.strategy import prepare, strategy_for
prepare(2)
strategy, sentence = strategy_for("auto", batch_size=8, virtual_devices=2)
print(len(tf.config.list_logical_devices("CPU")), sentence)
"""
    assert finish(start(code)) == "2 2 replicas on CPU:0, CPU:1: all there are"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.mark.slow
def test_two_workers_reduce_over_both():
    code = """
import tensorflow as tf
from trainer.devices.replicas import is_chief, local_replicas, replicas
from trainer.devices.strategy import prepare, strategy_for
prepare()
strategy, sentence = strategy_for("multi_worker", batch_size=8, communication="ring")
index = strategy.cluster_resolver.task_id
context = tf.distribute.get_replica_context
total = strategy.run(lambda: context().all_reduce("sum", tf.constant(index + 1.0)))
print(replicas(strategy), local_replicas(strategy), is_chief(strategy), float(total), sentence)
"""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    workers = [
        start(code, TF_CONFIG=config(cluster, {"type": "worker", "index": index})) for index in range(2)
    ]
    try:
        found = [finish(worker) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for index, line in enumerate(found):
        assert line == (
            f"2 1 {index == 0} 3.0 2 replicas, 1 of them in this process (worker {index} of 2 in "
            "the cluster), communication ring"
        )


@pytest.mark.slow
def test_import_starts_nothing():
    code = """
import trainer.devices.strategy
from tensorflow.python.eager import context
print(context.context()._context_handle)
"""
    assert finish(start(code)) == "None"
