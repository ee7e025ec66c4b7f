"""Going on by another plan: refused with a diff, or, where that is accepted, state follows the names."""

import shutil

import numpy as np
import pytest

from tests.support.runs import assert_same, killed, last, main, newest, state
from trainer.checkpoints import checkpoint
from trainer.flags.command_line import parse
from trainer.run import resume
from trainer.run.assemble import assemble

MODEL = (
    "--model=mnist_mlp(hidden=4)",
    "--dataset=digits",
    "--train_split=train[:300]",
    "--eval_split=test[:50]",
)
GROUPS = ("--group=logits/.*  adam  1e-3  name=head", "--group=.*  sgd(momentum=0.9)  0.05  name=body")
LENGTH = ("--batch_size=20", "--train_for=12", "--log_every=4", "--save_every=2", "--keep=100")


@pytest.fixture(scope="module")
def at_six(tmp_path_factory, data):
    """A run of 12 steps that was killed after the checkpoint of step 6."""
    workdir = tmp_path_factory.mktemp("run") / "killed"
    with pytest.MonkeyPatch.context() as patch:
        killed(patch, 6, True, workdir, *MODEL, *GROUPS, *LENGTH, data)
    return workdir


@pytest.fixture
def workdir(tmp_path, at_six):
    return shutil.copytree(at_six, tmp_path / "run")


def contents(directory):
    return {
        path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"
    }


REGROUPED = ("--group=hidden1/.*  sgd(momentum=0.9)  0.05  name=body", "--group=.*  adam  1e-3  name=head")


@pytest.mark.slow(but=4)
@pytest.mark.parametrize(
    "groups, flags, words",
    [
        (REGROUPED, (), ["group head: variables", "- variable hidden2/w", "+ variable hidden2/w"]),
        ((GROUPS[0], GROUPS[1].replace("0.9", "0.8")), (), ["momentum=0.9", "+ group body: optimizer"]),
        (
            (GROUPS[0], GROUPS[1].replace("0.05", "0.04")),
            (),
            ["- group body: schedule: 0.05", "schedule: 0.04"],
        ),
        ((GROUPS[0] + " from=3", GROUPS[1]), (), ["+ group head: from: 3steps"]),
        (("--group=hidden1/.* frozen", *GROUPS), (), ["+ variable hidden1/w: [784, 4] float32 in frozen"]),
        (GROUPS, ("--seed=1",), [" - seed: 0\n + seed: 1\n"]),
        (GROUPS, ("--batch_size=10",), [" - batch_size: 20\n + batch_size: 10\n"]),
        (GROUPS, ("--accumulate=2", "--batch_size=10"), [" - accumulate: 1\n + accumulate: 2\n"]),
        (GROUPS, ("--train_split=train[:200]",), ["train[:300]", "+ examples: 200"]),
        (GROUPS, ("--data_residency=streaming",), [" - order: resident\n + order: streaming\n"]),
        (GROUPS, ("--model=mnist_mlp(hidden=5)",), ["+ model: mnist_mlp(hidden=5)", "[784, 5]"]),
        (GROUPS, ("--precision=float64",), [" - precision: float32\n + precision: float64\n"]),
        (GROUPS, ("--ema=0.9",), [" - ema: None\n + ema: 0.9\n"]),
        (GROUPS, ("--clip_norm=1",), ["+ clip_norm: 1.0"]),
        (GROUPS, ("--train_for=4",), ["- group head: trained from step 0 up to step 6", "up to step 4"]),
    ],
)
def test_another_plan_is_refused_with_the_difference(workdir, data, capsys, groups, flags, words):
    before = contents(workdir)
    assert main(workdir, *MODEL, *groups, *LENGTH, data, *flags) == 1
    said = capsys.readouterr().err
    for word in [*words, "--accept_plan_change", "flags.txt", str(newest(workdir).path)]:
        assert word in said, said
    assert contents(workdir) == before


def test_what_changes_no_number_is_no_difference(workdir, data):
    flags = ("--log_every=5", "--eval_every=3", "--save_every=4", "--keep=2", "--data_residency=resident")
    assert main(workdir, *MODEL, *GROUPS, *LENGTH, data, *flags) == 0


def test_the_order_of_the_data_stays_where_the_flag_leaves_it_open(workdir, data, monkeypatch):
    from trainer.data.choice import residency

    def less(way, *rest):  # a machine with less memory
        return "streaming" if way == "auto" else residency(way, *rest)

    monkeypatch.setattr("trainer.run.assemble.residency", less)
    made = assemble(config(None, *MODEL, *GROUPS, *LENGTH, data))
    assert made.residency == "streaming"
    assert resume.resume(made, newest(workdir), False).assembled.residency == "resident"
    # On the host there is the same order, so that nothing has to change.
    made = assemble(config(None, *MODEL, *GROUPS, *LENGTH, data, "--data_residency=host"))
    assert resume.resume(made, newest(workdir), False).assembled.residency == "host"


def config(workdir, *flags):
    return parse(["run.py", *last(*flags), *([f"--workdir={workdir}"] if workdir else [])])


def accepted(workdir, *flags):
    """The state that a run of other flags would go on with, and what it says."""
    made = assemble(config(None, *flags))
    resumed = resume.resume(made, newest(workdir), True)
    program = resumed.assembled.program()
    notes = resumed.restore(program)
    values = {name: v.numpy() for name, v in program.state.named().items()}
    return values, resume.note(resumed, program, notes), resumed


def test_accepted_state_follows_each_variable_by_name(workdir, data):
    saved = state(workdir)
    values, said, resumed = accepted(workdir, *MODEL, *REGROUPED, *LENGTH, data)
    # hidden2 has come from momentum to Adam: what it has means nothing there.
    fresh = {
        f"optimizer/hidden2/{v}/{slot}" for v in "bw" for slot in ("momentums", "velocities", "iterations")
    }
    for name, value in values.items():
        if name in fresh:
            assert not value.any() and name in said, name
        else:
            np.testing.assert_array_equal(value, saved[name], err_msg=name)
    assert values["optimizer/logits/w/iterations"] == 6
    # Adam corrects by its number of updates, so variables of 6 and of 0 cannot share it.
    own = [sorted(v.name for v in o.group.variables) for o in resumed.assembled.parts.optimizers]
    assert sorted(own) == [["hidden1/b", "hidden1/w"], ["hidden2/b", "hidden2/w"], ["logits/b", "logits/w"]]
    assert "The plan has changed" in said and "- group body: variables" in said


@pytest.mark.slow
def test_accepted_and_killed_again_ends_with_the_same_bits(workdir, tmp_path, data, monkeypatch, capsys):
    flags = [*MODEL, *REGROUPED, *LENGTH, data]
    twice = shutil.copytree(workdir, tmp_path / "twice")
    assert main(workdir, *flags, "--accept_plan_change") == 0
    assert "starts fresh: optimizer/hidden2/b/iterations" in capsys.readouterr().out
    assert state(workdir)["optimizer/hidden2/w/iterations"] == 6
    assert state(workdir)["optimizer/logits/w/iterations"] == 12
    killed(monkeypatch, 8, True, twice, *flags, "--accept_plan_change")
    assert "accept_plan_change" not in (twice / "flags.txt").read_text()
    assert main(twice, *flags) == 0  # the plan of the newest checkpoint is the new one
    assert_same(workdir, twice)


def test_accepted_float64_takes_the_weights_along(workdir, data):
    saved = state(workdir)
    values, said, _ = accepted(workdir, *MODEL, *GROUPS, *LENGTH, data, "--precision=float64")
    assert values["model/hidden1/w"].dtype == np.float64
    for name in ("model/hidden1/w", "optimizer/logits/w/velocities", "optimizer/hidden1/b/momentums"):
        np.testing.assert_array_equal(values[name], saved[name])
        assert name in said


def test_accepted_average_starts_from_the_weights(workdir, data):
    saved = state(workdir)
    values, said, _ = accepted(workdir, *MODEL, *GROUPS, *LENGTH, data, "--ema=0.9")
    np.testing.assert_array_equal(values["ema/hidden1/w"], saved["model/hidden1/w"])
    assert "starts fresh: ema/hidden1/b" in said


def test_accepted_another_model_starts_fresh_where_it_differs(workdir, data):
    saved = state(workdir)
    flags = ("--model=mnist_cnn(filters=2, dense=4)",)
    values, said, _ = accepted(workdir, *MODEL, "--group=.* adam 1e-3", *LENGTH, data, *flags)
    assert "model/conv1/" in said and "left there: model/hidden1/" in said
    assert values["step"] == saved["step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "groups",
    [
        GROUPS,
        ("--group=.*  sgd(momentum=0.9)  exponential(0.1, 4, 0.5)",),
        ("--group=logits/.*  adam  1e-3  from=9", "--group=.*  sgd  0.05"),
        ("--group=logits/.*  adam  cosine(1e-3)  from=60%", "--group=.*  sgd  0.05"),  # which lies ahead
    ],
)
def test_a_longer_run_goes_on_where_the_past_stays(tmp_path, data, monkeypatch, groups):
    flags = [*MODEL, *groups, *LENGTH, data]
    killed(monkeypatch, 6, True, tmp_path / "longer", *flags)
    assert main(tmp_path / "longer", *flags, "--train_for=16") == 0
    assert main(tmp_path / "whole", *flags, "--train_for=16") == 0
    assert_same(tmp_path / "whole", tmp_path / "longer")


@pytest.mark.slow
def test_a_finished_run_can_be_lengthened(tmp_path, data):
    flags = [*MODEL, *GROUPS, *LENGTH, data]
    assert main(tmp_path / "longer", *flags) == 0
    assert main(tmp_path / "longer", *flags, "--train_for=16") == 0
    assert main(tmp_path / "whole", *flags, "--train_for=16") == 0
    values, others = state(tmp_path / "whole"), state(tmp_path / "longer")
    assert all(np.array_equal(values[name], others[name]) for name in values)


@pytest.mark.slow
@pytest.mark.parametrize(
    "groups, words",
    [
        (("--group=.*  sgd  cosine(0.1)",), "learning rate at step 1: 0.09829629"),
        (("--group=.*  sgd  constant(0.1, warmup=50%)",), "learning rate at step 1: 0.0166666675"),
        (
            ("--group=logits/.*  sgd  0.1  from=25%", "--group=.*  sgd  0.05"),
            "- group group0: trained from step 3 up to step 6",
        ),
    ],
)
def test_a_longer_run_that_would_change_the_past_is_shown(tmp_path, data, monkeypatch, capsys, groups, words):
    flags = [*MODEL, *groups, *LENGTH, data]
    killed(monkeypatch, 6, True, tmp_path, *flags)
    assert main(tmp_path, *flags, "--train_for=16") == 1
    said = capsys.readouterr().err
    assert words in said and "it depends on --train_for" in said


@pytest.mark.parametrize("plan", [None, {}, [], {"groups": 3}, {"groups": {}, "rows": [{}], "total": 1}])
def test_a_checkpoint_that_tells_no_plan_is_refused(tmp_path, data, capsys, plan):
    import tensorflow as tf

    meta = {} if plan is None else {"plan": plan}
    checkpoint.save(tmp_path / "checkpoints", 3, {"model/w": tf.Variable(1.0)}, meta)
    assert main(tmp_path, *MODEL, *GROUPS, *LENGTH, data) == 1
    said = capsys.readouterr().err
    assert "tells no plan of this program" in said and "--init_from" in said
