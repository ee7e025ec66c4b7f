"""Chosen layers, from any source, under other names; all problems at once; and the proof."""

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from tests.support.restores import NAMES, RENAMES, memory, module, pretrained, refused, sha, started, target
from trainer.checkpoints import checkpoint
from trainer.errors import UserError
from trainer.model.names import walk
from trainer.readers import open_source
from trainer.restore.rules import parse

v1 = tf.compat.v1


def test_chosen_layers_on_every_replica(strategy, npz, arrays):
    with strategy.scope():
        model = target()
    initial = {v.name: v.value.numpy() for v in walk(model)}
    lines = started(strategy, model, open_source(npz), only=["(conv1|bn1)/.*"], rename=RENAMES[:2])
    replicas = strategy.num_replicas_in_sync
    for v in walk(model):
        layer, _, last = v.name.partition("/")
        chosen = layer in ("conv1", "bn1")
        wanted = arrays[f"{NAMES[layer]}/{last}"] if chosen else initial[v.name]
        copies = [c.numpy() for c in strategy.experimental_local_results(v.value)]
        assert len(copies) == replicas == lines[v.name]["replicas"]
        for copy in copies:
            np.testing.assert_array_equal(copy, wanted)
        line = lines[v.name]
        assert (line["restored"], line["before"], line["after"]) == (
            chosen,
            sha(initial[v.name]),
            sha(wanted),
        )
        assert line["source_sha256"] == (sha(wanted) if chosen else None)
    assert lines["bn1/moving_mean"]["rule"] == r"--init_rename=bn1/(.*) -> norm/\1"
    assert lines["head/bias"]["rule"] == "not in --init_only"
    assert lines["drop/seed_generator_state"]["rule"] == "random state is never restored"


def sources(model, arrays, path):
    """The same weights, written by each library."""
    model.compile("adam", "mse")
    model.save(path / "a.keras")
    model.save_weights(path / "b.weights.h5")
    model.save(path / "c.h5")
    tf.train.Checkpoint(model=model, step=tf.Variable(3)).write(str(path / "d"))
    tf.saved_model.save(model, str(path / "e"))
    save_file(arrays, path / "f.safetensors")
    np.savez(path / "g.npz", **arrays)
    checkpoint.save(path / "h" / "checkpoints", 3, {f"model/{v.name}": v.value for v in walk(model)}, {})
    with tf.Graph().as_default(), v1.Session() as session:
        for name, array in arrays.items():
            v1.get_variable(name, initializer=array)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(path / "i"))
    names = ["a.keras", "b.weights.h5", "c.h5", "d", "e", "f.safetensors", "g.npz", "h", "i"]
    return [str(path / name) for name in names]


def test_every_kind_of_source_into_a_model_with_other_names(tmp_path, arrays):
    kinds = set()
    for path in sources(pretrained(), arrays, tmp_path):
        source = open_source(path)
        kinds.add(source.kind)
        model = target(classes=2)
        lines = started(
            tf.distribute.get_strategy(), model, source, skip=["head/.*", "classes/.*"], rename=RENAMES[:3]
        )
        assert sum(line["restored"] for line in lines.values()) == 8
        for name, line in lines.items():
            if line["restored"]:
                layer, _, last = name.partition("/")
                assert line["after"] == sha(arrays[f"{NAMES[layer]}/{last}"]), (path, name)
    assert len(kinds) == 9


def test_older_keras_into_a_model_with_other_names(tmp_path):
    old = pytest.importorskip("tf_keras", reason="the Keras of TF 2.15 and before is not installed")
    x = old.Input((6, 6, 3))
    y = old.layers.Conv2D(4, 3, name="stem")(x)
    model = old.Model(x, old.layers.Conv2D(5, 3, name="body")(y))
    model.save_weights(tmp_path / "old.h5")
    new = target()
    rename = [RENAMES[0], RENAMES[2]]
    source = open_source(str(tmp_path / "old.h5"))
    started(tf.distribute.get_strategy(), new, source, only=["conv.*"], rename=rename)
    np.testing.assert_array_equal(new.get_layer("conv2").kernel, model.get_layer("body").kernel)


def test_module_aliases_and_two_from_one():
    net = module(a=np.zeros(2, np.float32), b=np.zeros(2, np.float32))
    net.second = net.a
    weights = memory(second=np.float32([1, 2]))
    # `a` is found under its other name, `b` is started from the same weight.
    lines = started(tf.distribute.get_strategy(), net, weights, rename=["b -> second"])
    assert net.a.numpy().tolist() == net.b.numpy().tolist() == [1, 2]
    assert [line["source"] for line in lines.values()] == ["second", "second"]


def test_a_skip_of_one_name_of_a_shared_variable_leaves_it_its_others():
    net = module(a=np.zeros(2, np.float32), b=np.zeros(2, np.float32))
    net.second = net.a
    one, two = np.float32([1, 1]), np.float32([2, 2])
    weights = memory(a=one, second=two, b=two)
    started(tf.distribute.get_strategy(), net, weights, skip=["second"])
    assert net.a.numpy().tolist() == [1, 1]
    # Under none of its names: left alone.
    lines = started(tf.distribute.get_strategy(), net, weights, skip=["second", "a"])
    assert not lines["a"]["restored"] and lines["b"]["restored"]


def test_frozen_layers_too(npz, arrays):
    model = target()
    model.get_layer("conv1").trainable = False
    started(tf.distribute.get_strategy(), model, open_source(npz), rename=RENAMES)
    np.testing.assert_array_equal(model.get_layer("conv1").kernel, arrays["stem/kernel"])


def test_all_problems_in_one_error():
    ones = np.ones(2, np.float32)
    net = module(a=ones, b=ones, c=ones, d=ones, e=ones, lonely=ones)
    weights = memory(
        a=np.ones(3, np.float32),
        b=ones.astype(np.float64),
        c=ones.astype(np.int32),
        d=np.float32([np.nan, np.inf]),
        e=ones,
        lonley=ones,
    )
    lines = refused(net, weights, skip=["nix"], only=[".*", "no"], rename=["z.* -> q"], adapt=["y rows([0])"])
    assert sorted(line[:3] for line in lines) == [" ! "] * 8 + [" + ", " - "]
    text = "\n".join(lines)
    for part in (
        " - lonely: not in the source. Did you mean lonley?",
        " + lonley float32[2]: in the source, and nothing takes it.",
        " ! a: the model has float32[2], the source has float32[3] (a). See --init_adapt, or --init_skip it.",
        " ! b: the model has float32[2], the source float64[2] (b). --init_cast allows it.",
        " ! c: the model has float32[2], the source int32[2] (c). Only a float's width can be changed.",
        " ! d: 2 of 2 values in the source are not finite (d).",
        " ! --init_only=no: matches no variable.",
        " ! --init_skip=nix: matches nothing on either side.",
        " ! --init_rename=z.* -> q: matches no variable.",
        " ! --init_adapt=y rows([0]): matches no variable.",
    ):
        assert part in text


def test_extra_weights():
    one = np.ones(1, np.float32)
    net = module(conv1=one, head=one)
    weights = memory(conv1=one, conv2=one, head=one, other=one)
    lines = refused(net, weights)
    assert [line.split()[1] for line in lines] == ["conv2", "other"]
    # --init_only leaves out on both sides; what it asks for by name and nobody takes is still extra.
    assert [line.split()[1] for line in refused(net, weights, only=["conv.*"])] == ["conv2"]
    started(tf.distribute.get_strategy(), net, weights, only=["conv1"])
    started(tf.distribute.get_strategy(), net, weights, only=["conv.*"], skip=["conv2"])
    # A weight whose namesake in the model is started from another one is answered for.
    started(
        tf.distribute.get_strategy(), net, weights, only=["conv1"], rename=["conv1 -> conv2"], skip=["other"]
    )


def test_rules_that_leave_nothing_to_restore():
    refused(module(a=np.zeros(1)), memory(a=np.ones(1)), "nothing would be restored", skip=[".*"])


def test_first_rename_counts_and_a_shadowed_one_is_refused():
    one, two = np.float32([1]), np.float32([2])
    net = module(a=one * 0)
    weights = memory(x=one, y=two)
    started(tf.distribute.get_strategy(), net, weights, rename=["a -> y"], skip=["x"])
    assert net.a.numpy() == 2
    refused(net, weights, "--init_rename=a -> x: all it matches", rename=["a -> y", "a -> x"], skip=["x"])


def test_skip_leaves_alone_on_either_side():
    one = np.ones(1, np.float32)
    net = module(a=one * 0, b=one * 0)
    lines = started(tf.distribute.get_strategy(), net, memory(a=one, z=one), skip=["b", "z"])
    assert net.a.numpy() == 1 and net.b.numpy() == 0
    assert lines["b"]["rule"] == "--init_skip=b" and lines["b"]["before"] == lines["b"]["after"]


@pytest.mark.parametrize(
    "rules, message",
    [
        ({"only": ["("]}, r"--init_only=\(: the pattern '\(' is not a regular expression"),
        ({"rename": ["a->b"]}, "MODEL_REGEX -> SOURCE_NAME"),
        ({"rename": [r"(a) -> \2"]}, r"\\2 cannot be filled in: invalid group reference"),
        ({"rename": [r"(a) -> \g<x>"]}, "cannot be filled in"),
        ({"adapt": ["a"]}, "PATTERN METHOD"),
        ({"adapt": ["a row([1])"]}, "no method row. Did you mean rows"),
        ({"adapt": ["a rows(indx=[1])"]}, "no argument indx. Did you mean index"),
        ({"adapt": ["a rows([1.5])"]}, "not a list of class numbers"),
    ],
)
def test_rules_that_cannot_be_read(rules, message):
    with pytest.raises(UserError, match=message):
        parse(**rules)


def test_damaged_data_is_one_of_the_problems(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.arange(9999, dtype=np.float32))
    raw = bytearray((tmp_path / "w.npz").read_bytes())
    raw[30000] ^= 1
    (tmp_path / "w.npz").write_bytes(raw)
    net = module(a=np.zeros(9999, np.float32), b=np.zeros(1, np.float32))
    text = "\n".join(refused(net, open_source(str(tmp_path / "w.npz"))))
    assert " - b" in text and "CRC" in text
