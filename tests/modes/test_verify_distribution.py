"""`--mode=verify_distribution` on two logical CPUs: what passes, what is caught and what it is called."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness, runs
from trainer.devices.strategy import strategy_for
from trainer.errors import UserError
from trainer.modes import verify_distribution

FLAGS = (
    "--mode=verify_distribution",
    "--dataset=digits",
    "--batch_size=8",
    "--train_for=6",
    "--verify_steps=2",
    "--group=.*  adam  1e-2",
)


@pytest.fixture(autouse=True)
def two_replicas(monkeypatch):
    """This process's one MirroredStrategy, wherever a mirrored one is asked for."""
    choose = strategy_for

    def chosen(strategy, *rest):
        mirrored = strategy == "mirrored" and "CPU" not in rest[0]
        return (harness.mirrored(), "CPU:0, CPU:1") if mirrored else choose(strategy, *rest)

    monkeypatch.setattr("trainer.run.build.strategy_for", chosen)


def verify(*flags):
    return runs.main(None, *FLAGS, *flags)


@pytest.mark.slow
def test_a_right_model_passes_with_every_setting_of_a_step(data, capsys):
    flags = (
        "--clip_norm=0.1",
        "--ema=0.9",
        "--accumulate=2",
        "--layer_decay=0.5",
        "--precision=mixed_bfloat16",
    )
    late = ("--group=conv1/.*  adamw(weight_decay=0.1)  cosine(1e-2)  from=1",)
    assert runs.main(None, *FLAGS[:-1], *late, FLAGS[-1], data, "--model=mnist_cnn(filters=2)", *flags) == 0
    said = capsys.readouterr().out
    assert "OK: losses, gradients and updates of 8 variables are equal." in said
    rows = re.findall(r"^(\w+/\w+) +(\S+) +(\S+)$", said, re.MULTILINE)
    assert len(rows) == 8 and all(float(x) < 1e-12 for _, *both in rows for x in both)
    assert all(float(slope) > 0 for name, slope, _ in rows if name == "conv2/kernel")


@pytest.mark.slow
def test_layers_that_differ_between_replicas_by_nature_are_named_and_held_still(data, capsys):
    assert verify(data, "--model=tests.support.noisy", "--data_residency=streaming") == 0
    said = capsys.readouterr().out
    assert "random masks in bn, drop/" in said or "random masks in bn, drop:" in said
    assert "OK:" in said


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("coupling", "what"),
    [
        ("mean", "the loss of an example: relative difference"),
        ("variance", "the loss of an example: relative difference"),
        ("gradient", "the gradient of hidden1/w: relative difference"),
    ],
)
def test_a_mean_over_the_replicas_batch_is_caught(data, capsys, coupling, what):
    assert verify(data, f"--model=tests.support.coupled(coupling={coupling!r})") == 1
    said = capsys.readouterr().out
    assert f"DIFFERENT: first in step 1, {what}" in said and "Usual causes: a reduce_mean" in said
    assert ("It depends on the other examples" in said) == (coupling != "gradient")


@pytest.mark.slow
def test_a_model_of_float32_is_compared_in_float32(data, capsys):
    assert verify(data, "--model=tests.support.coupled(narrow=True)") == 0
    said = capsys.readouterr().out
    assert "Compared in float32" in said and "hidden1/w is float32" in said and "OK:" in said
    assert verify(data, "--model=tests.support.coupled('variance', narrow=True)") == 1


def test_refusals(data):
    cases = {
        "--strategy=multi_worker": "compares within one process",
        "--verify_steps=7": "the run has 6 steps",
        "--batch_size=7": "--batch_size=7",
    }
    for flag, words in cases.items():
        with pytest.raises(UserError, match=words):
            refused(data, flag)


def refused(*flags):
    from trainer.flags.command_line import parse

    config = parse(["run.py", *runs.last(*FLAGS, "--model=mnist_mlp", *flags)])
    if config.batch_size == 7:  # the strategy that the fixture hands out checks no batch
        strategy_for("mirrored", "CPU:0,CPU:1", 7)
    verify_distribution.run(config)


def test_differences_are_relative_and_a_factor_is_told():
    one = {"a": np.array([3.0, 4.0]), "b": np.array([1e-30]), "c": np.zeros(2)}
    other = {"a": np.array([6.0, 8.0]), "b": np.array([2e-30]), "c": np.zeros(2)}
    found = {n: (d, r) for _, n, d, _, r in verify_distribution._compare("gradient", tf.float64, one, other)}
    assert found["a"] == (1.0, ", 2 times as large")
    assert found["b"][0] < 1e-20 and found["c"] == (0.0, "")
