"""The grammar of rules, its strictness, and phases."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import UserError
from trainer.flags.durations import Clock
from trainer.groups.depths import depths
from trainer.groups.phases import phases, resolve
from trainer.groups.rules import assign, parse_rules, select
from trainer.model.names import ModelVariable


def variable(name: str, trainable: bool = True, aliases: tuple[str, ...] = ()) -> ModelVariable:
    return ModelVariable(name, tf.Variable(np.zeros(2)), None, trainable, False, None, aliases)


MODEL = [
    variable("conv1/kernel"),
    variable("conv1/bias"),
    variable("bn/gamma"),
    variable("bn/moving_mean", trainable=False),
    variable("head/kernel", aliases=("tied/kernel",)),
]


def owned(*rules: str) -> dict[str, list[str]]:
    return {rule.text: [v.name for v in own] for rule, own in assign(parse_rules(rules), MODEL)}


def refused(*rules: str) -> str:
    with pytest.raises(UserError) as error:
        owned(*rules)
    return str(error.value)


def test_first_match_wins_and_order_matters() -> None:
    got = owned("conv1/bias frozen", "conv1/.* sgd 0.1", ".* adam cosine(1e-3)")
    assert list(got.values()) == [["conv1/bias"], ["conv1/kernel"], ["bn/gamma", "head/kernel"]]


def test_columns_names_and_durations() -> None:
    one, two, three = parse_rules(
        [
            "a sgd(momentum=0.9, nesterov=True) constant(0.1)",
            "b frozen",
            "c  adam  1e-3  from=2epochs until=50%",
        ]
    )
    assert (one.name, two.name, three.name) == ("group0", "frozen", "group1")
    assert one.optimizer.kwargs == {"momentum": 0.9, "nesterov": True}
    assert two.optimizer is None and three.schedule.kwargs == {"rate": 1e-3}
    assert (str(three.start), str(three.until)) == ("2epochs", "50%")


def test_a_rule_may_use_an_alias() -> None:
    assert owned("tied/.* frozen", ".* sgd 1")["tied/.* frozen"] == ["head/kernel"]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (["conv1/.* sgd 1"], ["no rule covers bn/gamma, head/kernel", ".* frozen"]),
        (["conv9/.* frozen", ".* sgd 1"], ["'conv9/.*' matches no variable", "conv1/"]),
        (["bn/moving_.* sgd 1", ".* sgd 1"], ["bn/moving_mean", "declares not trainable"]),
        ([".* sgd 1", "conv1/.* frozen"], ["earlier rule: .* sgd 1", "narrower rule first"]),
        (["conv1 sgd 1", ".* sgd 1"], ["must match the whole name"]),
    ],
)
def test_strict_coverage(rules: list[str], words: list[str]) -> None:
    message = refused(*rules)
    assert all(word in message for word in words), message


def test_all_faults_of_coverage_come_in_one_message() -> None:
    message = refused("nothing frozen", "conv1/.* sgd 1")
    assert "matches no variable" in message and "no rule covers" in message


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ([], "none given"),
        (["conv1/.*"], "a rule is"),
        (["*a sgd 1"], "not a regular expression"),
        ([".* frozen name=a"], "nothing follows `frozen`"),
        ([".* sgd"], "no schedule"),
        ([".* sgd name=a"], "no schedule"),
        ([".* sgd 1 form=3"], "Did you mean from"),
        ([".* sgd 1 from=3 from=4"], "given twice"),
        ([".* sgd 1 name="], "empty"),
        ([".* sgd 1 name=a/b"], "may hold"),
        (["a sgd 1 name=x", "b sgd 1 name=x"], "two groups have name=x"),
        ([".* sgd 1 from=soon"], "soon"),
    ],
)
def test_grammar(rules: list[str], word: str) -> None:
    with pytest.raises(UserError, match="(?s)" + word):
        parse_rules(rules)


def phases_of(*rules: str, total: int = 100) -> list[tuple[int, int, list[str]]]:
    clock = Clock(examples=1000, batch=64, total=total)
    resolved = resolve(assign(parse_rules(rules), MODEL), clock, total)
    return [(p.start, p.stop, [g.name for g in p.active]) for p in phases(resolved, total)]


def test_phases_are_cut_at_every_edge() -> None:
    got = phases_of(
        "head/.* adam 1 name=head",
        "conv1/.* sgd 1 name=conv from=2epochs until=80%",
        "bn/.* sgd 1 name=bn from=50",
    )
    # Two epochs of 1000 / 64 are ceil(31.25) steps.
    assert got == [
        (0, 32, ["head"]),
        (32, 50, ["head", "conv"]),
        (50, 80, ["head", "conv", "bn"]),
        (80, 100, ["head", "bn"]),
    ]


def test_nothing_to_train_in_a_phase_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to train from step 0 up to step 10"):
        phases_of(".* sgd 1 from=10")


@pytest.mark.parametrize("column", ["from=100", "from=200", "until=101", "from=50 until=50"])
def test_a_group_outside_of_the_run_is_refused(column: str) -> None:
    with pytest.raises(UserError, match=r"in a run of 100 steps"):
        phases_of(f".* sgd 1 {column}")


def test_depth_counts_layers_from_the_head() -> None:
    assert depths(MODEL) == {"conv1/kernel": 2, "conv1/bias": 2, "bn/gamma": 1, "head/kernel": 0}
    assert depths(MODEL, lambda name: len(name))["bn/gamma"] == 8
    with pytest.raises(UserError, match=r"depth\('conv1/kernel'\) is -1"):
        depths(MODEL, lambda name: -1)


def test_select_is_strict() -> None:
    assert select([".*/bias", "bn/.*"], MODEL[:3], "--no_decay") == {"conv1/bias", "bn/gamma"}
    with pytest.raises(UserError, match=r"--no_decay=\.\*/biass: matches no"):
        select([".*/biass"], MODEL, "--no_decay")
