"""Proposals: whole layers, in order where shapes correspond, short, and no surer than they can be."""

import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model.names import walk
from trainer.readers import Spec, WeightsFile, open_source
from trainer.restore import patterns
from trainer.restore.match import load, match
from trainer.restore.propose import propose
from trainer.restore.rules import parse

layers = keras.layers


def memory(specs, **more):
    """A source of zeros."""
    shapes = {name: Spec(tuple(shape), "float32") for name, shape in specs.items()}
    return WeightsFile(
        "test", "memory", shapes, (), "--init_from", lambda n: np.zeros(shapes[n].shape, "f4"), **more
    )


def module(**shapes):
    """A `tf.Module` with a Dense for each kernel's shape."""
    made = tf.Module()
    for name, (inputs, units) in shapes.items():
        layer = layers.Dense(units)
        layer.build((None, inputs))
        setattr(made, name, layer)
    return made


def dense(**shapes):
    """Names and shapes of a source with a Dense for each kernel's shape."""
    found = {}
    for name, (inputs, units) in shapes.items():
        found |= {f"{name}/kernel": (inputs, units), f"{name}/bias": (units,)}
    return found


def tried(model, source, **more):
    """The proposal, its lines read back as flags, and `{layer: layer of the source}`."""
    proposal = propose(walk(model), source, model=model, **more)
    flags: dict = {}
    for line in proposal.lines:
        name, _, value = line.removeprefix("--init_").partition("=")
        flags.setdefault(name, []).append(value)
    if "layout" in flags:
        flags["layout"] = flags["layout"][0]
    matched = match(walk(model), source, parse(**flags | {"cast": "cast" in flags}), model)
    assert matched.problems == proposal.problems
    pairs = {e.variable.name: e.source for e in matched.entries if e.source}
    for name, other in pairs.items():
        kernel = name.replace("bias", "kernel")
        assert pairs[kernel].rpartition("/")[0] == other.rpartition("/")[0], "a bias without its kernel"
    return proposal, {n.rpartition("/")[0]: o.rpartition("/")[0] for n, o in pairs.items()}


def four():
    keras.backend.clear_session()
    x = inputs = keras.Input((8,))
    for _ in range(4):
        x = layers.Dense(3)(x)
    return keras.Model(inputs, x)


def test_numbers_that_are_shifted_by_one():
    names = [f"dense_{k}" for k in range(1, 5)]
    shapes = dense(**dict(zip(names, [(8, 3), (3, 3), (3, 3), (3, 3)], strict=True)))
    proposal, pairs = tried(four(), memory(shapes))
    assert pairs == {"dense": "dense_1", "dense_1": "dense_2", "dense_2": "dense_3", "dense_3": "dense_4"}
    (line,) = proposal.ambiguous  # the first has a shape of its own, the others could be exchanged
    assert "dense_1, dense_2, dense_3 (3x3, 3)" in line and not proposal.proven


def test_doubled_numbers_of_a_file_without_names(tmp_path):
    with h5py.File(tmp_path / "d.weights.h5", "w") as h5:
        for k in range(4):
            name = "dense" + (f"_{2 * k}" if k else "")
            group = h5.create_group(f"_layer_checkpoint_dependencies/{name}/vars")
            group["0"] = np.full((3, 3) if k else (8, 3), k + 1, "f4")
            group["1"] = np.full(3, k + 1, "f4")
    model = four()
    source = open_source(str(tmp_path / "d.weights.h5"))
    proposal, pairs = tried(model, source)
    assert list(pairs.values()) == ["dense", "dense_2", "dense_4", "dense_6"]
    assert len(proposal.ambiguous) == 1
    rename = [line.partition("=")[2] for line in proposal.lines]
    arrays = load(match(walk(model), source, parse(rename=rename), model))
    assert [arrays[f"{name}/bias"][0] for name in pairs] == [1, 2, 3, 4]


def test_one_prefix_is_one_rule():
    names = [f"block_{k}" for k in range(130)]
    inner = {name: (4, 4) for name in names}
    model = tf.Module()
    model.trunk = module(**inner)
    started = time.monotonic()
    proposal, pairs = tried(model, memory(dense(**inner)))
    assert proposal.lines == (r"--init_rename=trunk/(.*) -> \1",) and proposal.proven
    assert pairs == {f"trunk/{name}": name for name in names}
    assert time.monotonic() - started < 5
    backwards, _ = tried(module(**inner), memory({f"net/trunk/{n}": s for n, s in dense(**inner).items()}))
    assert backwards.lines == (r"--init_rename=(.*) -> net/trunk/\1",) and backwards.proven


def test_equal_names_need_no_rule_and_another_head_is_skipped():
    model = module(a=(4, 4), b=(4, 4), head=(4, 3))
    proposal, pairs = tried(model, memory(dense(b=(4, 4), a=(4, 4), head=(4, 7))))
    assert pairs == {"a": "a", "b": "b"} and proposal.proven
    assert proposal.lines == (r"--init_skip=head/.*",)


def test_layers_of_one_shape_that_have_other_names_are_ambiguous():
    proposal, pairs = tried(module(a=(4, 4), b=(4, 4)), memory(dense(x=(4, 4), y=(4, 4))))
    assert pairs == {"a": "x", "b": "y"}
    assert "a, b (4x4, 4): taken from x, y, in this order; any of x, y would fit." in proposal.ambiguous
    assert not proposal.proven and not proposal.problems


def test_layers_that_fit_in_one_way_only_are_sure():
    proposal, pairs = tried(module(a=(4, 5), b=(5, 6)), memory(dense(y=(5, 6), x=(4, 5))))
    assert pairs == {"a": "x", "b": "y"} and proposal.proven


def test_one_more_in_the_source_makes_it_ambiguous():
    proposal, _ = tried(module(a=(4, 4)), memory(dense(x=(4, 4), y=(4, 4))))
    assert "any of x, y would fit" in proposal.ambiguous[0]


def test_siblings_go_by_their_names():
    wide = dict.fromkeys(("key", "query", "value"), (4, 4))
    model = tf.Module()
    model.layer = module(query=(4, 4), key=(4, 4), value=(4, 4), out=(4, 4))
    shapes = {f"enc/att/self/{n}": s for n, s in dense(**wide).items()}
    shapes |= {f"enc/att/{n}": s for n, s in dense(output=(4, 4)).items()}
    _, pairs = tried(model, memory(shapes))
    assert {pairs[f"layer/{n}"] for n in wide} == {f"enc/att/self/{n}" for n in wide}
    assert all(pairs[f"layer/{n}"].endswith(n) for n in wide)


def test_names_made_up_of_class_and_count_prove_nothing(tmp_path):
    """Made in another order than used: `dense` of the file is the layer that the model calls `dense_1`."""
    model = four()
    with h5py.File(tmp_path / "d.weights.h5", "w") as h5:
        for name in ("dense", "dense_1", "dense_2", "dense_4"):
            group = h5.create_group(f"layers/{name}/vars")
            group["0"], group["1"] = np.zeros((3, 3) if "_" in name else (8, 3), "f4"), np.zeros(3, "f4")
    proposal, pairs = tried(model, open_source(str(tmp_path / "d.weights.h5")))
    assert list(pairs.values()) == ["dense", "dense_1", "dense_2", "dense_4"] and proposal.ambiguous


def test_numbers_in_names_are_one_rule():
    model = tf.Module()
    model.layer = [module(fc=(4, 4), out=(4, 5)) for _ in range(12)]
    shapes = {}
    for k in range(12):
        shapes |= {f"enc/block{k}/{n}": s for n, s in dense(fc=(4, 4), out=(4, 5)).items()}
    proposal, pairs = tried(model, memory(shapes))
    assert proposal.lines == (r"--init_rename=layer/(\d+)/(.*) -> enc/block\1/\2",)
    assert pairs["layer/11/out"] == "enc/block11/out"


def test_alphabetical_lists_are_put_in_order_by_their_numbers():
    model = tf.Module()
    model.layer = [module(fc=(4, 4 + k)) for k in range(11)]
    names = sorted(f"conv{k}" for k in range(11))
    shapes = dense(**{name: (4, 4 + int(name[4:])) for name in names})
    source = memory(shapes)
    _, pairs = tried(model, WeightsFile(**{**vars(source), "kind": "TF1 name-based checkpoint"}))
    assert pairs == {f"layer/{k}/fc": f"conv{k}" for k in range(11)}


@pytest.mark.parametrize(
    "pairs, rules",
    [
        ({"a/k": "a/k"}, []),
        ({"a/k": "x.a.k", "b/k": "x.b.k"}, [r"(.*)/([^/]+) -> x.\1.\2"]),
        ({"a/k": "a/w", "b/k": "b/w"}, [r"(.*)/k -> \1/w"]),
        ({"l1/k": "m/1/k", "l2/k": "m/2/k"}, [r"l(\d+)/k -> m/\1/k"]),
        ({"a.b/k": "c/k"}, [r"a\.b/k -> c/k"]),
        ({"a": "b\\1"}, ["a -> b\\\\1"]),
    ],
)
def test_few_patterns(pairs, rules):
    assert patterns.renames(pairs, False) == rules
    for name, target in pairs.items():
        found = (r for r in parse(rename=rules).rename if r.pattern.fullmatch(name))
        rule = next(found, None)
        assert (rule.pattern.fullmatch(name).expand(rule.replacement) if rule else name) == target


def test_patterns_of_random_names_are_right():
    rng = np.random.default_rng(0)
    for _ in range(60):
        pairs = {}
        for _ in range(rng.integers(1, 30)):
            parts = [f"{'abc'[rng.integers(3)]}{rng.integers(12)}" for _ in range(rng.integers(1, 4))]
            target = "/".join(parts[rng.integers(len(parts)) :])
            pairs["/".join(parts)] = ("x/" if rng.random() < 0.3 else "") + target
        rules = parse(rename=patterns.renames(pairs, True)).rename
        for name, target in pairs.items():
            rule = next(r for r in rules if r.pattern.fullmatch(name))
            assert rule.pattern.fullmatch(name).expand(rule.replacement) == target
