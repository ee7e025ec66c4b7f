"""`--stop_when`: what ends a run, where, and what it is after a kill, another condition, more steps."""

import shutil

import pytest

from tests.support import ranked
from tests.support.runs import SMALL, assert_same, killed, main, newest, records, state, two_replicas
from trainer.errors import UserError
from trainer.flags.conditions import parse
from trainer.run.stopping import judge

# 15 steps; evaluations of the EMA at 3, 6, 9, 12, 15; saved at every step.
FLAGS = (*SMALL, "--eval_every=3")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """The run that nothing ends before its last step."""
    workdir = tmp_path_factory.mktemp("whole")
    assert main(workdir, *FLAGS, data) == 0
    return workdir


def evaluations(workdir):
    return {r["step"]: r for r in records(workdir) if r["kind"] == "eval" and r["weights"] == "ema"}


def judged(values, text, metric="x"):
    """After how many evaluations the condition ends a run of these values."""
    one = judge([text], ["loss", metric], True, None)
    for count, value in enumerate(values, 1):
        if one.judge({"loss": 0.0, metric: value}, _Alone()):
            return count
    return None


class _Alone:
    cluster_resolver = None


@pytest.mark.parametrize(
    "text, values, expected",
    [
        ("x >= 0.5", [0.1, 0.4999, 0.5, 0.6], 3),
        ("x > 50%", [0.1, 0.5, 0.6], 3),
        ("x <= -1e-3", [0.0, -0.0005, -0.001], 3),
        ("x<2", [float("nan"), 3, 1], 3),
        ("x:min stalls 2 evaluations", [3, 2, 2.5, 1.9, 1.95, 1.9], 6),  # equal is no better
        ("x:max stalls 1 evaluation", [1, 2, 3, 3], 4),
        ("x:min stalls 2 evaluations", [float("nan"), float("nan"), 1, float("nan"), 2], 5),
        ("x:min stalls 9 evaluations", [1] * 9, None),
    ],
)
def test_by_hand(text, values, expected):
    assert judged(values, text) == expected


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy => 1", "accuracy >= 1e999", "loss stalls", "loss:up stalls 3 evaluations",
             "loss:min stalls 0 evaluations", "x >= y", "loss:min stalls 99999999999 evaluations"]
)  # fmt: skip
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match="not a condition"):
        parse([text])


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--stop_when=acuracy >= 0.9", ["no evaluation yields acuracy", "Did you mean accuracy?"]),
        ("--stop_when=examples >= 3", ["no evaluation yields examples"]),
        ("--stop_when=loss stalls 2 evaluations --eval_split=none", ["no effect with --eval_split=none"]),
    ],
)
def test_what_no_evaluation_yields_is_refused_by_the_plan(flag, words, data, capsys):
    first, *rest = flag.split(" --")
    more = [f"--{r}" for r in rest]
    small = [flag for flag in SMALL if not flag.startswith("--report_to")]  # no part of a plan
    assert main(None, *small, data, first, *more, "--mode=plan") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--stop_when=" in said
    assert all(word in said for word in words), said


def test_a_direction_that_nothing_states_is_refused_and_the_modules_own_is_heeded(data, capsys):
    flags = ["--dataset=digits", "--train_for=2", "--group=.* adam 1e-2", "--mode=plan", data]
    stall = "--stop_when=ece stalls 2 evaluations"
    assert main(None, "--model=tests.support.ranked", *flags, stall) == 0
    assert ranked.better["ece"] == "min"
    assert main(None, "--model=tests.support.ranked", *flags, stall.replace("ece", "ece:max")) == 1
    assert "better = {'ece': 'min'}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_threshold_ends_a_run_that_is_then_finished(whole, tmp_path, data, capsys):
    seen = evaluations(whole)
    # Exactly what the averaged weights reach at step 9, and at no step before.
    loss = seen[9]["loss"]
    assert all(seen[s]["loss"] > loss for s in (3, 6))
    flag = f"--stop_when=loss <= {loss!r}"
    assert main(tmp_path, *FLAGS, data, flag, "--stop_when=accuracy > 1") == 0
    assert newest(tmp_path).step == 9 and newest(tmp_path).meta["finished"]
    # The steps are those of the run that nothing ends: no schedule has shifted.
    assert records(tmp_path) == [r for r in records(whole) if r["step"] <= 9]
    assert "ended by" in capsys.readouterr().out
    before = state(tmp_path)
    assert main(tmp_path, *FLAGS, data, flag, "--stop_when=accuracy > 1") == 0
    assert "This run is finished: --stop_when=" in capsys.readouterr().out
    assert newest(tmp_path).step == 9 and before.keys() == state(tmp_path).keys()
    # Another condition goes on, and the run is the one that nothing ended.
    assert main(tmp_path, *FLAGS, data, "--stop_when=accuracy > 1") == 0
    assert_same(whole, tmp_path)


@pytest.mark.slow
def test_a_longer_run_goes_on(tmp_path, data):
    flags = [*FLAGS, data, "--stop_when=loss <= 1e9", "--accept_plan_change"]
    assert main(tmp_path, *flags) == 0 and newest(tmp_path).step == 3
    assert main(tmp_path, *flags, "--train_for=18") == 0 and newest(tmp_path).step == 6
    assert main(tmp_path, *flags, "--train_for=18") == 0 and newest(tmp_path).step == 6


@pytest.mark.slow
@pytest.mark.parametrize("at, saved", [(5, True), (6, False), (7, True)])
def test_a_stall_is_counted_over_a_kill(tmp_path, data, monkeypatch, at, saved):
    """An accuracy that the flag takes for worse as it rises: counted 1 at step 6, 2 at step 9."""
    flag = "--stop_when=accuracy:min stalls 2 evaluations"
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    flags = [*FLAGS, data, flag, "--group=.* sgd 1e-9"]  # nothing moves, so that nothing is better
    flags = [f for f in flags if not f.startswith("--group=enc") and "name=early" not in f]
    assert main(straight, *flags) == 0 and newest(straight).step == 9
    killed(monkeypatch, at, saved, broken, *flags)
    (broken / "metrics.jsonl").write_text("")  # what is counted is not read from there
    assert main(broken, *flags) == 0
    assert newest(broken).step == 9
    assert newest(broken).meta["stopping"] == newest(straight).meta["stopping"]
    shutil.rmtree(straight)


@pytest.mark.slow
def test_two_replicas_end_at_the_same_step(tmp_path, data, monkeypatch):
    flags = ["--model=mnist_mlp(hidden=4)", "--dataset=digits", "--train_for=20", "--eval_every=4", data]
    flags += ["--batch_size=20", "--group=.* sgd 0.05", "--precision=float64"]
    assert main(tmp_path / "one", *flags) == 0
    losses = {r["step"]: r["loss"] for r in records(tmp_path / "one") if r["kind"] == "eval"}
    assert losses[8] > losses[12] * (1 + 1e-6)
    two_replicas(monkeypatch)
    threshold = f"--stop_when=loss <= {losses[12] * (1 + 1e-9)!r}"
    assert main(tmp_path / "two", *flags, threshold) == 0
    assert newest(tmp_path / "two").step == 12
