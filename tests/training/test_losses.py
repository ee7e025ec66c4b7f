"""Several losses, each for its own groups: against two tapes written by hand, to 1e-12 and to the bit."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from tests.training.test_health import loop
from tests.training.test_program import operations
from tests.training.test_replicas import assert_copies_equal, strategy
from trainer.errors import UserError
from trainer.flags.criteria import criterion
from trainer.groups.phases import TURNS, Group, Phase, phases
from trainer.groups.plan_table import table
from trainer.groups.rules import parse_rules
from trainer.run.lr_find import Sweep, lr_find
from trainer.training import window

BATCH, STEPS, CODE = 8, 20, 2
CLIP = 0.5
layers = keras.layers


@pytest.fixture(autouse=True)
def float32_again() -> Any:
    yield
    harness.use_precision("float32")


class Gan(keras.Model):
    """Points in the plane, made and judged; with a penalty on what is made."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.Sequential(
            [keras.Input([CODE]), layers.Dense(4, activation="tanh", name="g1"), layers.Dense(2, name="g2")]
        )
        self.discriminator = keras.Sequential(
            [keras.Input([2]), layers.Dense(4, activation="tanh", name="d1"), layers.Dense(1, name="d2")]
        )
        self(tf.zeros([1, CODE], keras.config.floatx()))  # makes the variables

    def call(self, code: tf.Tensor) -> tf.Tensor:
        made = self.generator(code)
        self.add_loss(0.01 * tf.reduce_mean(made**2))
        return made


def judged(model: Gan, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Losses of discriminator and generator (Goodfellow et al. 2014), [B] each, of one forward pass."""
    made = model(batch["code"])
    of_real, of_made = (model.discriminator(x)[:, 0] for x in (batch["real"], made))
    return tf.nn.softplus(-of_real) + tf.nn.softplus(of_made), tf.nn.softplus(-of_made)


def loss(model: Gan, batch: dict[str, tf.Tensor], training: bool) -> Any:
    judge, maker = judged(model, batch)
    return {"judge": judge, "maker": (maker, 1 + 0 * batch["real"][:, 0])}, {"fooled": maker}


def weighted(model: Gan, batch: dict[str, tf.Tensor], training: bool) -> Any:
    judge, maker = judged(model, batch)
    return {"judge": (judge, batch["weight"]), "maker": maker}, {"fooled": maker}


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(4)
    real = random.normal(1.0, 0.5, (STEPS * BATCH, 2))
    weight = random.integers(0, 3, STEPS * BATCH).astype("float64")
    return {"real": real, "code": random.normal(size=(STEPS * BATCH, CODE)), "weight": weight}


RULES = ("generator/.* sgd(momentum=0.5) 0.1 loss=maker name=maker", ".* sgd 0.2 loss=judge name=judge")


def make(rules: Any = RULES, loss: Callable[..., Any] = loss, **flags: Any) -> harness.Made:
    options = {"batch": BATCH, "precision": "float64", "on_nonfinite": "halt", **flags}
    return harness.make(Gan, loss, list(rules), arrays(), STEPS, **options)


def by_hand(start: dict[str, np.ndarray], of: Callable[..., Any], every: int, first: int) -> dict[str, Any]:
    """Two tapes, one for each network; the judge moves at steps `first`, `first` + `every`, ..."""
    model = Gan()
    names = [v.path for v in model.variables]
    for v, value in zip(model.variables, start.values(), strict=True):
        v.assign(value)
    maker, judge = model.generator.trainable_variables, model.discriminator.trainable_variables
    velocity = [tf.zeros_like(v) for v in maker]
    data = arrays()
    for step in range(STEPS):
        batch = {n: tf.constant(a[step * BATCH : (step + 1) * BATCH]) for n, a in data.items()}
        means = []
        with tf.GradientTape() as one, tf.GradientTape() as other:
            for part in of(model, batch, True)[0].values():
                value, weight = part if isinstance(part, tuple) else (part, tf.ones_like(part))
                means.append(tf.reduce_sum(value * weight) / tf.reduce_sum(weight))
            of_judge, of_maker = (mean + sum(model.losses) for mean in means)
        due = step >= first and (step - first) % every == 0
        slopes = one.gradient(of_maker, maker)
        slopes += other.gradient(of_judge, judge) if due else []
        slopes, _ = tf.clip_by_global_norm(slopes, tf.constant(CLIP, tf.float64))
        for k, (v, g) in enumerate(zip(maker, slopes, strict=False)):
            velocity[k] = 0.5 * velocity[k] - tf.constant(0.1, tf.float64) * g
            v.assign_add(velocity[k])
        for v, g in zip(judge if due else [], slopes[len(maker) :], strict=True):
            v.assign_sub(tf.constant(0.2, tf.float64) * g)
    return dict(zip(names, (v.numpy() for v in model.variables), strict=True))


@pytest.mark.slow(but=1)
@pytest.mark.parametrize(
    ("of", "suffix", "flags"),
    [
        (loss, "", {}),
        (weighted, " every=3 from=2", {"strategy": 2, "accumulate": 2}),
        (loss, "", {"strategy": 2, "accumulate": 2}),
        (weighted, "", {"strategy": 2, "accumulate": 2}),
        (loss, " every=3", {}),
    ],
)
def test_twenty_steps_equal_two_tapes_by_hand(
    of: Callable[..., Any], suffix: str, flags: dict[str, Any]
) -> None:
    flags = {**flags, "strategy": strategy(flags.get("strategy", 1))}
    made = make((RULES[0], RULES[1] + suffix), of, clip_norm=CLIP, **flags)
    start = made.values()
    made.train(0, STEPS)
    assert_copies_equal(made)
    every, first = 3 if "every" in suffix else 1, 2 if "from" in suffix else 0
    expected = by_hand(start, of, every, first)
    for (name, value), other in zip(made.values().items(), expected.values(), strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=1e-12, err_msg=name)
    updates = {o.group.name: int(o.keras.iterations.numpy()) for o in made.optimizers}
    assert updates == {"maker": STEPS, "judge": len(range(first, STEPS, every))}


def test_a_loss_moves_its_own_group_only_to_the_bit() -> None:
    """The other loss times a thousand, and the group moves as before; without a clip, which is over all."""

    def louder(judge: float, maker: float) -> dict[str, bytes]:
        def scaled(model: Gan, batch: dict[str, tf.Tensor], training: bool) -> Any:
            one, other = judged(model, batch)
            return {"judge": judge * one, "maker": maker * other}, {}

        made = make(loss=scaled)
        made.train(0, 1)
        return {name: value.tobytes() for name, value in made.values().items()}

    plain, judge, maker = louder(1, 1), louder(1000, 1), louder(1, 1000)
    for name, value in plain.items():
        own, other = (judge, maker) if name.startswith("discriminator") else (maker, judge)
        assert value == other[name] and value != own[name], name


def test_groups_without_a_loss_move_by_the_sum() -> None:
    def summed(model: Gan, batch: dict[str, tf.Tensor], training: bool) -> Any:
        return sum(judged(model, batch)), {}

    one, other = make((".* sgd 0.1",), loss), make((".* sgd 0.1",), summed)
    for made in (one, other):
        made.train(0, 3)
    for name, value in one.values().items():
        np.testing.assert_allclose(value, other.values()[name], rtol=0, atol=1e-14)
    logged = [window.means_of(m.program.state.sums.numpy(), m.program.state.means) for m in (one, other)]
    np.testing.assert_allclose(logged[0]["loss"], logged[1]["loss"], rtol=1e-14)
    added = logged[0]["loss"] - logged[0]["loss/judge"] - logged[0]["loss/maker"]
    assert list(logged[0]) == ["loss", "loss/judge", "loss/maker", "fooled"] and 0 < added < 0.1
    assert logged[0]["loss/maker"] == logged[0]["fooled"]


def test_one_forward_pass_however_many_losses() -> None:
    made = {n: make(rules) for n, rules in (("two", RULES), ("one", (".* sgd 0.1",)))}
    counted = {n: operations(m.program.trainer(m.phases[0], m.feed))["Tanh"] for n, m in made.items()}
    assert counted["two"] == counted["one"] == 3  # the generator's, and the discriminator's twice


def test_a_resting_group_is_not_touched_and_its_statistics_move() -> None:
    def build() -> keras.Model:
        x = keras.Input((2,))
        y = layers.BatchNormalization(name="norm")(layers.Dense(2, name="a")(x))
        return keras.Model(x, layers.Dense(1, name="head")(y))

    def squared(model: Any, batch: dict[str, tf.Tensor], training: bool) -> Any:
        return model(batch["real"], training=training)[:, 0] ** 2, {}

    rules = [
        "(a|norm)/.* adamw(weight_decay=0.1) linear(0.1) name=rare every=4 from=1",
        ".* sgd 0.1 name=rest",
    ]
    made = harness.make(build, squared, rules, arrays(), STEPS, batch=BATCH, ema=0.5, on_nonfinite="halt")
    for step in range(6):
        if step < 2:  # where a phase begins
            train = made.program.trainer(made.phases[step], made.feed)
        before = made.program.state.named()
        before = {name: v.numpy().tobytes() for name, v in before.items()}
        train(made.feed.chunk(step, 1), tf.constant(1))
        after = made.program.state.named()
        statistics = after["model/norm/moving_mean"].numpy().tobytes() != before["model/norm/moving_mean"]
        assert statistics == (step >= 1), step
        weights = [n for n in before if n.startswith(("model/a/", "optimizer/a/", "model/norm/gamma"))]
        changed = {n for n in weights if after[n].numpy().tobytes() != before[n]}
        assert bool(changed) == (step in (1, 5)), (step, changed)
    # The schedule counts steps: at step 5 the rate of a fall over 19 steps after 4 of them.
    group = next(g for g in made.run.parts.groups if g.name == "rare")
    assert made.run.parts.rates(group, [5])[0] == pytest.approx(0.1 * (1 - 4 / 19))


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_where_groups_take_turns() -> None:
    rules = (
        "generator/.* adam 0.01 loss=maker every=2",
        ".* adam 0.01 loss=judge every=2 from=1",
    )
    whole, parts = make(rules, strategy=strategy(2)), make(rules, strategy=strategy(2))
    whole.train(0, 10)
    parts.train(0, 4)
    other = make(rules, strategy=strategy(2))
    for name, variable in other.program.state.named().items():
        variable.assign(parts.program.state.named()[name].numpy())
    other.train(4, 10)
    for name, variable in whole.program.state.named().items():
        assert variable.numpy().tobytes() == other.program.state.named()[name].numpy().tobytes(), name


def test_norms_of_a_resting_group_are_left_out() -> None:
    made, records = make((RULES[0], RULES[1] + " every=2")), []
    run = loop(made, [], [])
    run.events.log = 1
    run.reporter.log = records.append  # type: ignore[method-assign]
    run.events.total = 2
    run.phases = (dataclasses.replace(made.phases[0], stop=2),)
    run.run()
    assert [list(r["update_ratio"]) for r in records] == [["maker", "judge"], ["maker"]]
    assert [list(r["gradient_norm"]) for r in records] == [["maker", "judge"], ["maker"]]
    assert [list(r["weight_norm"]) for r in records] == [["maker", "judge"]] * 2
    assert {"loss", "loss/judge", "loss/maker", "fooled"} <= set(records[0])


def test_a_range_test_looks_at_the_loss_of_the_group() -> None:
    made = make((RULES[0], RULES[1] + " every=3"))
    found = lr_find(made.run, made.program, Sweep(low=1e-3, high=1.0, rates=10, batches=2))
    data = {n: tf.constant(a) for n, a in arrays().items()}
    for name, losses in zip(("judge", "maker"), judged(made.run.built.model, data), strict=True):
        # At the lowest rate hardly anything has moved; the sum of both is another number.
        assert found[name].losses[0] == pytest.approx(float(tf.reduce_mean(losses)), rel=0.3)
    assert min(found["judge"].change) < -0.005


def groups(*every: tuple[int, int], total: int = 10_000_000) -> Phase:
    rules = parse_rules([f"{i} sgd 1 every={n}" for i, (n, _) in enumerate(every)])
    made = tuple(Group(rule.name, rule, (), at, total) for rule, (_, at) in zip(rules, every, strict=True))
    return Phase(max(at for _, at in every), total, made)


@pytest.mark.parametrize(
    ("every", "rests"),
    [
        ([(1, 0)], [set()]),
        ([(1, 0), (5, 0)], [set(), {"group1"}]),
        ([(2, 0), (2, 1)], [{"group0"}, {"group1"}]),
        ([(1, 0), (999, 0), (1000, 1)], [set(), {"group1"}, {"group2"}, {"group1", "group2"}]),
    ],
)
def test_turns_by_hand(every: list[tuple[int, int]], rests: list[set[str]]) -> None:
    phase = groups(*every)
    assert sorted(map(sorted, (t.rests for t in phase.turns))) == sorted(map(sorted, rests))
    for step in range(phase.start, phase.start + 20):
        due = [g.name for g in phase.at(step).due]
        assert due == [f"group{i}" for i, (n, at) in enumerate(every) if (step - at) % n == 0]


def test_too_many_turns_are_refused() -> None:
    phase = groups(*((n, 0) for n in (1, 2, 3, 5, 7, 11)))
    assert len(phase.turns) == 32
    with pytest.raises(UserError, match=f"makes 32 sets.* {TURNS} are the most"):
        phases(phase.active, phase.stop)


REFUSED = {
    "no such loss": (("generator/.* sgd 1 loss=makr", ".* sgd 1"), ["loss=makr", "Did you mean maker"]),
    "not reached": (
        ("generator/.* sgd 1 loss=judge", "discriminator/.* sgd 1 loss=real"),
        ["loss real does not depend on", "discriminator"],
    ),
    "moves nothing": ((".* sgd 1 loss=maker",), ["loss judge moves nothing", "loss=judge"]),
    "every of nothing": ((".* sgd 1 every=0",), ["every=0", "number of steps"]),
    "every of a word": ((".* sgd 1 every=2epochs",), ["every=2epochs"]),
    "a step at which nothing trains": (
        ("generator/.* sgd 1 every=2", ".* sgd 1 every=3"),
        ["nothing would train at step 1", "every=2", "every=3"],
    ),
    "a name with a sign": ((".* sgd 1 loss=a/b",), ["loss=a/b", "letters"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_rule_that_names_a_loss_or_a_turn_wrongly_is_refused(case: str) -> None:
    rules, words = REFUSED[case]

    def other(model: Gan, batch: dict[str, tf.Tensor], training: bool) -> Any:
        judge, maker = judged(model, batch)
        found = {"judge": judge, "maker": maker}
        return ({**found, "real": batch["real"][:, 0]} if case == "not reached" else found), {}

    with pytest.raises(UserError) as error:
        make(rules, other)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda x: {}, "returned no loss"),
        (lambda x: {"a/b": x}, "loss is called 'a/b'"),
        (lambda x: {1: x}, "loss is called 1"),
        (lambda x: {"a": tf.reduce_mean(x)}, r"the loss a has shape \(\)"),
        (lambda x: {"a": (x, tf.constant(-1.0, shape=[BATCH]))}, "weights of the loss a are negative"),
        (lambda x: {"a": {"b": x}}, "the loss a has dict"),
    ],
)
def test_losses_that_are_none_are_refused(returned: Callable[..., Any], words: str) -> None:
    def other(model: Gan, batch: dict[str, tf.Tensor], training: bool) -> Any:
        return returned(sum(judged(model, batch))), {}

    with pytest.raises(UserError, match=words):
        make((".* sgd 1",), other)


def test_a_loss_named_where_there_are_no_names_is_refused() -> None:
    def other(model: Gan, batch: dict[str, tf.Tensor], training: bool) -> Any:
        return sum(judged(model, batch)), {}

    with pytest.raises(UserError, match=r"loss=maker: the model has no such loss\. Its loss has no names"):
        make(RULES, other)


def test_the_plan_says_which_loss_and_how_often_where_it_is_said() -> None:
    plan = make((RULES[0], RULES[1] + " every=2")).run.plan()
    columns, rows, _ = table(plan)
    at = columns.index("loss"), columns.index("every")
    assert {tuple(row[i] for i in at) for row in rows} == {("maker", "-"), ("judge", "2")}
    group = plan["groups"]["judge"]
    assert (group["loss"], group["every"]) == ("judge", 2) and "every" not in plan["groups"]["maker"]
    plain = make((".* sgd 1",)).run.plan()
    assert not {"loss", "every"} & (plain["groups"]["group0"].keys() | plain["rows"][0].keys())


def test_which_of_two_losses_is_better_is_stated() -> None:
    with pytest.raises(UserError, match="loss/judge:min"):
        criterion("loss/judge")
    assert criterion("loss/judge:min").direction == "min"
