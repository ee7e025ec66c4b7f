"""A network of many variables prints at most a screen before it trains, and lists of faults fold by cause."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.support.runs import main
from trainer.checkpoints import checkpoint
from trainer.checkpoints.manifest import scan
from trainer.errors import UserError
from trainer.groups import plan, plan_table
from trainer.restore.receipt import folded as fold_rows

SCREEN = 45  # lines


def mobilenet(name="trunk"):
    def build():
        x = keras.Input((32, 32, 3))
        trunk = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3))
        trunk.name = name
        y = keras.layers.GlobalAveragePooling2D()(trunk(x))
        return keras.Model(x, keras.layers.Dense(10, name="head")(y))

    def loss(model, batch, training):
        return tf.reduce_sum(model(batch["x"], training=training), 1), {}

    return trainer.ModelModule(build=build, loss=loss)


def planned(rules, **flags):
    arrays = {"x": np.zeros([4, 32, 32, 3], np.float32)}
    run = trainer.Run(
        model=mobilenet(),
        dataset=arrays,
        group=rules,
        batch_size=2,
        train_for=3,
        eval_split="none",
        **flags,
    )
    return run.plan()


@pytest.mark.slow
def test_a_plan_of_a_mobilenet_is_a_screen_and_the_whole_is_kept():
    made = planned([".* sgd 0.1"])
    shown = str(made).splitlines()
    assert len(shown) < SCREEN
    row = next(line for line in shown if line.startswith("trunk/block_3_*"))
    assert "15 variables, 6 of state" in row
    assert len(made.rows) == 262 and len(plan_table.table(made.body, None)[1]) == 262
    rules = [".*/kernel sgd 0.1", ".*/gamma sgd 0.2", ".* adam 0.1"]
    shown = str(planned(rules, layer_decay=0.9)).splitlines()
    assert len(shown) < SCREEN
    assert any(line.startswith("trunk/block_*") and "16..1" in line for line in shown)


def test_full_is_of_the_plan_alone(tmp_path, capsys):
    flags = ["--model=mnist_mlp", "--dataset=digits", f"--data_dir={tmp_path}", "--group=.* sgd 1"]
    assert main(None, *flags, "--train_for=5", "--mode=plan", "--full") == 0
    assert main(tmp_path / "run", *flags, "--train_for=5", "--full") == 1
    assert "--full: has no effect with --mode=train" in capsys.readouterr().err


def names(top):
    return [
        f"{top}/block_{i}_{part}/{v}" for i in range(20) for part in ("a", "b") for v in ("kernel", "bias")
    ]


def test_many_differences_of_a_checkpoint_are_a_line_for_each_cause(tmp_path):
    saved = {name: tf.Variable(tf.zeros([3])) for name in [*names("trunk"), *names("same")]}
    here = {name: tf.Variable(tf.zeros([3])) for name in names("base")}
    here |= {name: tf.Variable(tf.zeros([4])) for name in names("same")}
    checkpoint.save(tmp_path, 1, saved, {})
    with pytest.raises(UserError) as raised:
        checkpoint.load(scan(tmp_path)[0], here)
    lines = str(raised.value).splitlines()[1:]
    assert lines == [
        " + 80 not in the checkpoint: base/block_* (80)",
        " - 80 only in the checkpoint: trunk/block_* (80)",
        " ~ 80 of another shape or dtype: same/block_* (80); same/block_0_a/bias: [3] float32 in the "
        "checkpoint, [4] float32 here",
    ]
    few = {name: tf.Variable(tf.zeros([3])) for name in names("trunk")[:78]}
    with pytest.raises(UserError) as raised:  # few are told one by one
        checkpoint.load(scan(tmp_path)[0], few, only=[*few, "x", "y"])
    assert str(raised.value).count("\n") == 4


def test_many_differences_of_plans_are_a_few_lines():
    def body(top, group):
        rows = [{"name": n, "shape": [3], "dtype": "float32", "group": group} for n in names(top)]
        return {"rows": rows, "groups": {group: {"variables": names(top)}}, "total": 3}

    assert plan.differences(body("trunk", "all"), body("trunk", "all"), 0) == []
    lines = plan.differences(body("trunk", "all"), body("base", "all"), 0)
    assert lines == [
        " - group all: variables: 80 variables, trunk/block_* (80)",
        " + group all: variables: 80 variables, base/block_* (80)",
        " - 80 variables: trunk/block_* (80)",
        " + 80 variables: base/block_* (80)",
    ]
    lines = plan.differences(body("trunk", "all"), body("trunk", "rest"), 0)
    assert len(lines) == 4 and "trunk/block_0_a/kernel: [3] float32 in all" in lines[2]
    assert lines[3] == " + the first of them: [3] float32 in rest"


def test_the_receipt_keeps_apart_what_was_restored_and_what_was_not():
    rows = [[f"block_{i}/{v}", "3", f"src/{i}/{v}", "same name", "aa", "bb"] for i in range(20) for v in "kb"]
    rows += [[f"head/{v}", "3", "left alone", "--init_skip", "cc", "unchanged"] for v in "kb"]
    folded = fold_rows(rows)
    assert len(folded) == 21
    assert folded[3] == ["block_3/*", "2 variables", "src/3/*", "same name", "", ""]
    assert folded[-1] == ["head/*", "2 variables", "left alone", "--init_skip", "", "unchanged"]
    assert fold_rows(rows[:4]) == rows[:4]
