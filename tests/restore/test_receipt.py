"""The receipt says exactly what was restored, and can be checked."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.support.restores import NAMES, RENAMES, memory, module, pretrained, target
from trainer.model.names import walk
from trainer.readers import open_source
from trainer.restore import receipt
from trainer.restore.match import load, match
from trainer.restore.propose import propose
from trainer.restore.rules import parse


def test_receipt_on_disk_and_on_screen(tmp_path, npz):
    model = target()
    matched = match(walk(model), open_source(npz), parse(rename=RENAMES))
    assert matched.starts()["conv1/bias"] == "stem/bias (NumPy .npz)"
    lines = receipt.assign(tf.distribute.get_strategy(), matched, load(matched))
    written = json.loads(receipt.write(lines, matched, tmp_path).read_text())
    assert (written["source"], written["restored"], written["left_alone"]) == (npz, 10, 1)
    assert written["variables"] == lines
    columns, rows = receipt.describe(lines)
    assert all(len(row) == len(columns) for row in rows)
    seed = next(row for row in rows if row[0] == "drop/seed_generator_state")
    assert seed[2] == "left alone" and seed[-1] == "unchanged"


def test_a_value_that_did_not_arrive_is_noticed():
    net = module(a=np.zeros(2, np.float32))
    matched = match(walk(net), memory(a=np.ones(2, np.float32)), parse())
    loaded = load(matched)

    net.a.assign = lambda value: None
    with pytest.raises(RuntimeError, match="not what was assigned"):
        receipt.assign(tf.distribute.get_strategy(), matched, loaded)


def fits(model, source):
    """The proposed lines; they must fit when they are read back as flags."""
    proposal = propose(walk(model), source)
    assert proposal.problems == ()
    flags: dict = {}
    for line in proposal.lines:
        name, _, value = line.removeprefix("--init_").partition("=")
        flags.setdefault(name, []).append(value)
    matched = match(walk(model), source, parse(**flags | {"cast": "cast" in flags}))
    assert matched.problems == ()
    return proposal.lines, {e.variable.name: e.source for e in matched.entries if e.source}


def test_proposal_by_shape_and_order(npz):
    lines, pairs = fits(target(), open_source(npz))
    assert pairs == {
        f"{a}/{n.partition('/')[2]}": n for a, b in NAMES.items() for n in WEIGHTS if n.startswith(b)
    }
    assert r"--init_rename=conv1/(.*) -> stem/\1" in lines


WEIGHTS = [
    *("stem/kernel", "stem/bias", "body/kernel", "body/bias", "classes/kernel", "classes/bias"),
    *(f"norm/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")),
]


def test_proposal_for_another_head(npz):
    lines, pairs = fits(target(classes=3), open_source(npz))
    assert {"--init_skip=head/.*", "--init_skip=classes/.*"} <= set(lines)
    assert "head/kernel" not in pairs and len(pairs) == 8


def test_proposal_of_one_prefix(arrays):
    renamed = {f"net/encoder/{name}": array for name, array in arrays.items()}
    lines, _ = fits(pretrained(), memory(**renamed))
    assert lines == (r"--init_rename=(.*) -> net/encoder/\1",)


def test_proposal_where_a_name_means_two_things():
    one, two = np.ones(1, np.float32), np.ones(2, np.float32)
    lines, pairs = fits(module(a=one), memory(a=two, b=one))
    assert pairs == {"a": "b"} and lines == ("--init_rename=a -> b", "--init_only=a")


def test_proposal_with_other_leaf_names_and_width():
    net = module(w=np.ones((2, 3), np.float32), b=np.ones(3, np.float32))
    source = memory(**{"fc.weight": np.ones((2, 3)), "fc.bias": np.ones(3)})
    lines, pairs = fits(net, source)
    assert pairs == {"w": "fc.weight", "b": "fc.bias"} and "--init_cast" in lines
