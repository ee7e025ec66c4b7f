"""Every refusal: exit status 1, one message that names the flag, its value and what to do, no data read."""

import pytest

import run
from tests.support.refusals import BASE, says


def test_no_argument_at_all(capsys):
    assert run.main(["run.py"]) == 1
    says(capsys.readouterr().err, "run.py: --workdir", "runs/mnist")


COMMAND_LINE = {
    "stray positional argument": (["train"], "'train': not a flag", "--NAME=VALUE"),
    "stray argument after --": (["--", "now"], "'now': not a flag"),
    "unknown flag": (["--bach_size=3"], "--bach_size", "no such flag", "batch_size"),
    "absl's flag that hides misspelt ones": (["--undefok=grup", "--grup=x"], "--undefok=grup", "Remove it"),
    "no number": (["--batch_size=many"], "--batch_size=many", "a whole number"),
    "no truth value": (["--jit_compile=perhaps"], "--jit_compile=perhaps", "true or false"),
    "no real number": (["--clip_norm=1,5"], "--clip_norm=1,5", "a number"),
    "no value": (["--seed"], "seed", "VALUE"),
    "unknown mode": (["--mode=trian"], "--mode=trian", "train"),
    "unknown precision": (["--precision=float16"], "--precision=float16", "mixed_float16"),
    "missing flagfile": (["--flagfile=none.flags"], "none.flags", "cannot be read"),
    "missing flagfile as two words": (["--flagfile", "none.flags"], "none.flags", "cannot be read"),
    "batch size 0": (["--batch_size=0"], "--batch_size=0", "from 1"),
    "negative seed": (["--seed=-1"], "--seed=-1", "from 0"),
    "accumulate 0": (["--accumulate=0"], "--accumulate=0", "from 1"),
    "clip at 0": (["--clip_norm=0"], "--clip_norm=0", "above 0"),
    "clip at NaN": (["--clip_norm=nan"], "--clip_norm=nan", "finite"),
    "average of 1": (["--ema=1"], "--ema=1", "0.999"),
    "layer decay of 0": (["--layer_decay=0"], "--layer_decay=0", "0.75"),
    "layer decay above 1": (["--layer_decay=1.5"], "--layer_decay=1.5", "at most 1"),
    "layer decay NaN": (["--layer_decay=nan"], "--layer_decay=nan", "0.75"),
}


@pytest.mark.parametrize("case", COMMAND_LINE)
def test_command_line(refused, case):
    arguments, *words = COMMAND_LINE[case]
    says(refused(*arguments), *words)


FLAGFILES = {
    "trailing comment": ("--seed=3  # lucky", ":2", "# lucky", "line of its own"),
    "comment after a rule": ("--group=.* frozen # for now", "# for now", "line of its own"),
    "indented comment": ("  # a note", "# a note", "first column"),
    "second flag": ("--seed=3 --keep=2", "--keep", "line of its own"),
    "second flag, misspelt": ("--workdir=runs/a --bach_size=3", "--bach_size", "line of its own"),
    "quotes": ("--group='.* frozen'", "quotes", "Remove them"),
    "double quotes": ('--model="mnist_cnn"', "quotes", "Remove them"),
    "no flag": ("seed=3", "seed=3", "not a flag"),
    "unknown flag": ("--sed=3", "--sed", "no such flag", "seed"),
    "hidden misspelling": ("--undefok=sed", "undefok", "Remove it"),
}


@pytest.mark.parametrize("case", FLAGFILES)
def test_flagfile(refused, tmp_path, case):
    line, *words = FLAGFILES[case]
    path = tmp_path / "run.flags"
    path.write_text(f"# good\n{line}\n")
    message = refused(f"--flagfile={path}")
    says(message, *words)
    assert str(path) in message or "no such flag" in message


def test_circular_flagfile(refused, tmp_path):
    one, two = tmp_path / "one.flags", tmp_path / "two.flags"
    one.write_text(f"--flagfile={two}\n")
    two.write_text(f"--flagfile={one}\n")
    says(refused(f"--flagfile={one}"), f"--flagfile={one}", "includes itself", str(two))


NO_EFFECT = {
    "plan_out": (["--plan_out=plan.json"], "--plan_out=plan.json", "--mode=plan"),
    "export_to": (["--export_to=there"], "--export_to=there", "--mode=export"),
    "export_to in plan": (["--mode=plan", "--export_to=there"], "--export_to=there", "--mode=export"),
    "checkpoint": (["--checkpoint=best"], "--checkpoint=best", "--mode=evaluate or --mode=export"),
    "weights": (["--weights=ema"], "--weights=ema", "--mode=evaluate"),
    "verify_steps": (["--verify_steps=9"], "--verify_steps=9", "--mode=verify_resume"),
    "accept_plan_change": (["--mode=inspect", "--accept_plan_change"], "--accept_plan_change", "--mode=plan"),
    "init_only": (["--init_only=conv.*"], "--init_only=conv.*", "without --init_from", "--init_from=PATH"),
    "init_skip": (["--init_skip=conv.*"], "--init_skip=conv.*", "--init_from=PATH"),
    "init_rename": (["--init_rename=a -> b"], "--init_rename=a -> b", "--init_from=PATH"),
    "init_cast": (["--init_cast"], "--init_cast", "--init_from=PATH"),
    "init_adapt": (["--init_adapt=a mean()"], "--init_adapt=a mean()", "--init_from=PATH"),
    "init_weights": (["--init_weights=ema"], "--init_weights=ema", "--init_from=PATH"),
    "rules for no model": (
        ["--mode=inspect", "--init_from=x.npz", "--init_only=a"],
        "--init_only=a",
        "--mode=inspect",
        "--model",
    ),
    "keep_best": (["--keep_best=accuracy", "--eval_split=none"], "--keep_best=accuracy", "--eval_split"),
    "eval_every": (["--eval_every=5", "--eval_split=none"], "--eval_every=5", "--eval_split=none"),
    "communication": (["--communication=ring"], "--communication=ring", "--strategy=multi_worker"),
    "overflows unchecked": (
        ["--precision=mixed_float16", "--on_nonfinite=off"],
        "--on_nonfinite=off",
        "mixed_float16",
        "skip",
    ),
    "no_decay without decay": (["--no_decay=.*/b"], "--no_decay=.*/b", "adamw(weight_decay=1e-4)"),
}


@pytest.mark.parametrize("case", NO_EFFECT)
def test_a_flag_without_effect(refused, case):
    arguments, *words = NO_EFFECT[case]
    says(refused(*arguments, model=None if "no model" in case else BASE["model"]), *words)


MISSING = {
    "model": (dict(model=None), "--model", "mnist_cnn"),
    "dataset": (dict(dataset=None), "--dataset", "digits"),
    "train_for": (dict(train_for=None), "--train_for", "3epochs"),
    "workdir": (dict(workdir=None), "--workdir", "runs/mnist"),
    "group": (dict(groups=()), "--group", "adam"),
    "source to inspect": (dict(mode="inspect"), "--mode=inspect", "--init_from=PATH"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_flag(refused, case):
    values, *words = MISSING[case]
    says(refused(**values), *words)


DURATIONS = {
    "no length": (dict(train_for="soon"), "--train_for: soon", "3epochs"),
    "a unit that is none": (dict(train_for="3hours"), "--train_for: 3hours", "3epochs"),
    "negative": (dict(train_for="-5"), "--train_for: -5", "3epochs"),
    "half a step": (dict(train_for="2.5"), "--train_for: 2.5", "whole steps"),
    "no step at all": (dict(train_for="0"), "--train_for=0", "no step"),
    "infinite": (dict(train_for="1e999epochs"), "--train_for", "finite"),
    "share of nothing": (dict(train_for="50%"), "--train_for", "50%", "give steps"),
    "log_every": (dict(log_every="often"), "--log_every: often", "3epochs"),
    "eval_every": (dict(eval_every="0"), "--eval_every=0", "at least one step"),
    "save_every": (dict(save_every="5minutes"), "--save_every: 5minutes", "3epochs"),
    "from": (dict(groups=["--group=.* sgd 1 from=late"]), "--group=.* sgd 1 from=late: not a length", "20%"),
    "warm-up": (dict(groups=["--group=.* sgd cosine(1,warmup=2hours)"]), "--group", "warmup=2hours"),
}


@pytest.mark.parametrize("case", DURATIONS)
def test_a_duration(refused, case):
    values, *words = DURATIONS[case]
    says(refused(**values), *words)
