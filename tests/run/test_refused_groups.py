"""Refusals about groups, rates and optimizers: one message, exit status 1, nothing read."""

import pytest

from tests.support.refusals import ALL, says

GROUPS = {
    "two columns": (["hidden1/.* sgd"], "--group=hidden1/.* sgd", "PATTERN OPTIMIZER SCHEDULE"),
    "frozen with more": (["hidden1/.* frozen from=3", ".* sgd 0.1"], "nothing follows `frozen`", "from=3"),
    "an option that is none": ([".* sgd 0.1 nmae=x"], "nmae=x", "name"),
    "bad pattern": (["hidden( sgd 0.1"], "hidden( sgd 0.1", "closes"),
    "no regular expression": (["*/w sgd 0.1"], "--group=*/w sgd 0.1", "not a regular expression"),
    "one name twice": ([".*/w sgd 0.1 name=a", ".* sgd 0.1 name=a"], "--group", "name=a", "its own name"),
    "uncovered variable": (["hidden1/.* sgd 0.1"], "no rule covers", "hidden2/w", "--group='.* frozen'"),
    "matches nothing": (["hiden1/.* sgd 0.1", ".* sgd 0.1"], "--group=hiden1/.*", "no variable", "hidden1/"),
    "part of a name": (["hidden sgd 0.1", ".* sgd 0.1"], "--group=hidden sgd", "whole name", "hidden"),
    "shadowed": ([".* sgd 0.1", "logits/.* frozen"], "--group=logits/.* frozen", ".* sgd 0.1", "narrower"),
    "misspelt optimizer": ([".* adm 0.1"], "--group=.* adm 0.1", "'adm'", "adam"),
    "misspelt argument": ([".* sgd(momentun=0.9) 0.1"], "momentun", "momentum"),
    "argument without a name": ([".* sgd(0.9) 0.1"], "sgd", "by name", "momentum=0.9"),
    "argument of the wrong kind": ([".* sgd(momentum='a') 0.1"], "momentum='a'", "sgd"),
    "argument out of range": ([".* sgd(momentum=2) 0.1"], "momentum=2 of sgd", "from 0 to 1"),
    "learning rate in the optimizer": ([".* adam(learning_rate=1) 0.1"], "learning_rate=", "constant(1e-3)"),
    "clip in the optimizer": ([".* adam(clipnorm=1) 0.1"], "clipnorm=", "--clip_norm"),
    "average in the optimizer": ([".* adam(use_ema=True) 0.1"], "use_ema=", "--ema"),
    "misspelt schedule": ([".* sgd cosin(0.1)"], "--group=.* sgd cosin(0.1)", "cosin", "cosine"),
    "misspelt schedule argument": ([".* sgd cosine(0.1,warmpu=3)"], "warmpu", "warmup"),
    "missing schedule argument": ([".* sgd exponential(0.1)"], "decay_steps", "must be given"),
    "negative rate": ([".* sgd -0.1"], "--group=.* sgd -0.1", "0.1"),
    "negative rate in a call": ([".* sgd constant(-1)"], "constant(-1)", "-1"),
    "infinite rate": ([".* sgd 1e999"], "--group=.* sgd 1e999", "finite"),
    "rate that is no number": ([".* sgd nan"], "--group=.* sgd nan", "nan"),
    "rate in quotes": ([".* sgd constant('fast')"], "constant('fast')", "fast"),
    "code": ([".* sgd constant(open('x'))"], "open('x')", "not a literal"),
    "all frozen": ([".* frozen"], "--group", "nothing to train"),
    "nothing to train at first": ([".* sgd 0.1 from=5"], "--group", "step 0 up to step 5", "from="),
    "nothing to train at last": ([".* sgd 0.1 until=50%"], "--group", "step 10 up to step 20", "until="),
    "nothing to train between": (
        [".*/w sgd 0.1 until=5", ".* sgd 0.1 from=15"],
        "step 5 up to step 15",
        "from=",
    ),
    "starts after the end": (
        [".*/w sgd 0.1", ".* sgd 0.1 from=30"],
        "from=30",
        "step 30",
        "20 steps",
        "--train_for",
    ),
    "ends before it starts": ([".*/w sgd 0.1", ".* sgd 0.1 from=9 until=9"], "step 9 up to step 9", "20 ste"),
}


@pytest.mark.parametrize("case", GROUPS)
def test_groups(refused, case):
    rules, *words = GROUPS[case]
    says(refused(groups=[f"--group={rule}" for rule in rules]), *words)


def test_a_rule_that_matches_only_what_is_not_trainable(refused):
    message = refused(
        model="mnist_cnn(filters=2,dense=4,batch_norm=True)", groups=["--group=bn1/moving.* sgd 0.1", ALL]
    )
    says(message, "--group=bn1/moving.* sgd 0.1", "bn1/moving_mean", "not trainable", "Remove the rule")


def test_all_unused_rules_are_told_at_once(refused):
    message = refused(groups=["--group=a sgd 0.1", "--group=b sgd 0.1", "--group=hidden.* sgd 0.1"])
    says(message, "--group=a ", "--group=b ", "no rule covers", "logits/w")


def test_no_decay_that_matches_nothing(refused):
    message = refused("--no_decay=.*/bias", groups=["--group=.* adamw(weight_decay=1e-3) 0.1"])
    says(message, "--no_decay=.*/bias", "no trained variable", "logits/b")


def test_no_decay_that_is_no_pattern(refused):
    message = refused("--no_decay=*", groups=["--group=.* adamw(weight_decay=1e-3) 0.1"])
    says(message, "--no_decay=*", "not a regular expression")


def test_layer_decay_by_a_depth_that_is_none(refused, module):
    path = module(
        """
        from models.mnist_mlp import build, preprocess
        def depth(name): return -1
        """
    )
    says(refused(model=path, layer_decay=0.5), "--layer_decay", "depth('hidden1/w') is -1", "0 for the head")


def test_layer_decay_by_a_depth_that_raises(refused, module):
    path = module(
        """
        from models.mnist_mlp import build, preprocess
        def depth(name): return {}[name]
        """
    )
    says(refused(model=path, layer_decay=0.5), "--layer_decay", "depth", "KeyError", "net.py:6: 'hidden1/w'")


def test_keep_best_of_a_metric_that_is_none(refused):
    says(refused("--keep_best=acuracy"), "--keep_best=acuracy", "accuracy")


def test_muon_for_plain_variables(refused):
    says(refused(groups=["--group=.* muon 0.1"]), "muon 0.1: Muon", "hidden1/w", "another optimizer")
