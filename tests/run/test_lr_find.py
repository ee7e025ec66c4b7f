"""The range test of a learning rate: what it finds, and that the run is put back to the bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import run as program
import trainer
from tests.support import harness
from trainer.errors import UserError
from trainer.flags.config import Config
from trainer.groups.rules import parse_rules
from trainer.run.lr_find import Sweep, lr_find, suggestions, with_rate

SWEEP = Sweep(rates=24, batches=2)


def build():
    return keras.Sequential(
        [
            keras.Input([6]),
            keras.layers.Dense(8, activation="relu", name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.2, name="drop"),
            keras.layers.Dense(1, name="last"),
        ]
    )


def loss(model, batch, training):
    predicted = model(batch["x"], training=training)[:, 0]
    return (predicted - tf.cast(batch["y"], predicted.dtype)) ** 2, {}


def data():
    x = np.random.default_rng(0).normal(size=[256, 6])
    return {"x": x, "y": 3 * x[:, 0] - 2 * x[:, 1] + 1}


RULES = [
    "first/.*  adam  cosine(1e-3)  name=first from=6",
    "norm/.*  frozen",
    "last/kernel  sgd(momentum=0.9)  1e-3  name=kernel until=10",
    ".*  nadam  1e-3  name=rest",
]


def a_run(**flags):
    return trainer.Run(
        model=trainer.ModelModule(build=build, loss=loss), dataset=data(), group=RULES, eval_split="train",
        batch_size=16, train_for=20, ema=0.9, precision="float64", **flags
    )  # fmt: skip


def bits(run):
    return {name: v.numpy().tobytes() for name, v in run._live.program.state.named().items()}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("precision", ["float64", "mixed_float16"])
def test_every_bit_is_put_back(replicas, precision):
    strategy = harness.mirrored() if replicas == 2 else None
    made = harness.make(
        build, loss, RULES, data(), 20, strategy, batch=16, ema=0.9, precision=precision, accumulate=2
    )
    made.train(0, 3)
    state = made.program.state.named()
    copies = lambda v: made.program.strategy.experimental_local_results(v)  # noqa: E731
    before = {name: [c.numpy().tobytes() for c in copies(v)] for name, v in state.items()}
    found = lr_find(made.run, made.program, Sweep(rates=10, batches=1))
    assert list(found) == ["first", "kernel", "rest"]
    for name, v in state.items():
        assert [c.numpy().tobytes() for c in copies(v)] == before[name], name


@pytest.mark.slow
def test_a_run_goes_on_as_if_nothing_had_been():
    one, other = a_run(), a_run()
    np.random.seed(3)
    tf.random.set_seed(3)
    one.train(on_log=lambda _: trainer.STOP)
    other.train(on_log=lambda _: trainer.STOP)
    before, drawn = bits(other), np.random.get_state()[1].tolist()
    trainable = [layer.trainable for layer in other.model.layers]
    other.lr_find(rates=10, batches=1)
    assert bits(other) == before and np.random.get_state()[1].tolist() == drawn
    assert [layer.trainable for layer in other.model.layers] == trainable
    one.train(), other.train()
    assert bits(one) == bits(other)


@pytest.mark.slow
def test_before_training_it_costs_no_bit_either():
    one, other = a_run(), a_run()
    other.lr_find(rates=10, batches=1)
    one.train(), other.train()
    assert bits(one) == bits(other)


def test_it_finds_the_edge_of_stability_of_a_quadratic():
    """Gradient descent on w^2 / 2 diverges above a rate of 2; halves and better lie between 0.5 and 2."""

    class Weight(tf.Module):
        def __init__(self):
            self.w = tf.Variable(tf.ones([1], tf.float64))

    def quadratic(model, batch, training):
        return 0.5 * model.w[0] ** 2 + 0 * batch["x"], {}

    rules = [".*  sgd  0.1  name=all"]
    made = harness.make(Weight, quadratic, rules, {"x": np.zeros([8])}, 50, precision="float64")
    test = lr_find(made.run, made.program, Sweep(1e-4, 1e3, rates=60, batches=2))["all"]
    assert 2 < test.rates[-1] < 40, "diverged, and was stopped soon after"
    assert 0.05 < test.tenth < 0.25 and 0.01 < test.steepest < 1
    assert test.line == f"--group=.*  sgd  {test.tenth:.2g}  name=all"
    # By hand: the loss before each update, with w <- w (1 - rate) twice per rate.
    w, expected = 1.0, []
    for rate in np.geomspace(1e-4, 1e3, 60)[: len(test.losses)]:
        expected.append((0.5 * w**2 + 0.5 * (w * (1 - rate)) ** 2) / 2)
        w *= (1 - rate) ** 2
    assert test.losses == pytest.approx(expected, rel=1e-9)


def test_what_others_learn_is_no_merit_of_a_group_that_does_nothing():
    def two(model, batch, training):
        return (model(batch["x"], training=training)[:, 0] - batch["y"]) ** 2, {}

    def model():
        inputs = keras.Input([6])
        idle = keras.layers.Dense(1, name="idle")(inputs)
        return keras.Model(inputs, keras.layers.Dense(1, name="busy")(inputs) + 0.0 * idle)

    rules = ["idle/.*  sgd  0.1  name=idle", ".*  adam  0.05  name=busy"]
    found = lr_find(*_made(model, two, rules), SWEEP)
    idle, busy = found["idle"], found["busy"]
    assert idle.losses[-1] < 0.9 * idle.losses[0], "the other group learnt"
    assert (idle.steepest, idle.tenth, idle.line) == (None, None, None)
    assert busy.tenth is not None


def _made(*arguments):
    made = harness.make(*arguments, data(), 100, batch=16, precision="float64")
    return made.run, made.program


def test_the_two_rules_on_a_curve_by_hand():
    rates = np.geomspace(1e-4, 1.0, 41)
    steepest, tenth = suggestions(rates, np.cos(np.linspace(0, 2 * np.pi, 41)) - 1)
    assert (steepest, tenth) == (pytest.approx(1e-3), pytest.approx(1e-3))
    assert suggestions(rates, np.linspace(0, 1, 41)) == (None, None)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("1e-3", "0.5"),
        ("constant(rate=1e-3, warmup=3)", "constant(rate=0.5, warmup=3)"),
        ("cosine(1e-3, warmup=5%)", "cosine(0.5, warmup=5%)"),
        ("one_cycle(6e-3)", "one_cycle(0.5)"),
        ("piecewise([2], [0.1, 0.01])", None),
    ],
)
def test_the_line_has_the_rate_in_its_place(schedule, expected):
    (rule,) = parse_rules([f".*1e-3.*  adam(epsilon=1e-3)  {schedule}  name=a from=5%"])
    line = expected and f"--group=.*1e-3.*  adam(epsilon=1e-3)  {expected}  name=a from=5%"
    assert with_rate(rule, 0.5) == line
    if line:
        parse_rules([line.removeprefix("--group=")])


@pytest.mark.parametrize(
    "sweep", [(0.0, 1.0, 30, 3), (1.0, 1.0, 30, 3), (1e-3, 1.0, 5, 3), (1e-3, 1.0, 30, 0)]
)
def test_what_is_no_sweep_is_refused(sweep):
    with pytest.raises(UserError, match="lr_find: low="):
        Sweep(*sweep)


def test_the_mode_writes_charts_and_lines_and_no_checkpoint(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    flags = ["--model=mnist_mlp(hidden=16)", "--dataset=digits", "--group=.* adam one_cycle(1e-4) name=all"]
    where = [f"--workdir={tmp_path / 'run'}", "--train_for=100", "--batch_size=32"]
    assert program.main(["run.py", "--mode=lr_find", *flags, *where]) == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lr_find-all.png"]
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("--group=.* adam one_cycle(")]
    assert "S  steepest descent" in shown and "T  minimum over ten" in shown
    chart = [line for line in shown.splitlines() if " |" in line or " +" in line]
    assert len(chart) == 12 and max(map(len, chart)) <= 80
    (rule,) = parse_rules([line.removeprefix("--group=")])
    assert 1e-4 < float(rule.schedule.text.removeprefix("one_cycle(").removesuffix(")")) < 1


def test_several_workers_are_refused():
    made = harness.make(build, loss, [".* sgd 0.1"], data(), 20)
    object.__setattr__(made.run.config, "strategy", "multi_worker")
    with pytest.raises(UserError, match="--strategy=multi_worker"):
        lr_find(made.run, made.program, SWEEP)
    assert Config().strategy == "auto"
