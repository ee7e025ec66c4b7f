"""Blocks by names, and tables folded by them."""

import pytest

from trainer.model.blocks import Block, blocks, fold, folded, together


@pytest.mark.parametrize(
    ("siblings", "wanted"),
    [
        ("Conv1 bn_Conv1 Conv_1 Conv_1_bn predictions", {}),  # one of each is no series
        (
            "block_1_expand block_1_BN block_2_expand",
            {"block_1_expand": 1, "block_1_BN": 1, "block_2_expand": 2},
        ),
        ("dense dense_1 dense_2 head", {"dense": -1, "dense_1": 1, "dense_2": 2}),
        ("conv2d conv2d_1 conv2d_2", {"conv2d": -1, "conv2d_1": 1, "conv2d_2": 2}),
        ("conv2d conv3d conv1d", {}),
        (
            "conv1_conv conv2_block1_conv conv2_block2_conv",
            {"conv1_conv": 1, "conv2_block1_conv": 2, "conv2_block2_conv": 2},
        ),
        ("block1a_bn block1b_bn block2a_bn stem_bn", {"block1a_bn": 1, "block1b_bn": 1, "block2a_bn": 2}),
        ("layer_03 layer_4", {"layer_03": 3, "layer_4": 4}),
        ("a b c", {}),
    ],
)
def test_numbered_siblings_are_blocks(siblings, wanted):
    found = blocks(f"{sibling}/kernel" for sibling in siblings.split())
    assert {name.split("/")[0]: block.number for name, block in found.items() if block} == wanted


def test_the_outermost_numbering_counts():
    names = ["net/blocks/0/mlp/1/w", "net/blocks/0/mlp/0/w", "net/blocks/10/mlp/0/w", "w0", "w1"]
    found = blocks(names)
    assert found["net/blocks/0/mlp/1/w"] == found["net/blocks/0/mlp/0/w"] == Block("net/blocks/", 0)
    assert found["net/blocks/10/mlp/0/w"] == Block("net/blocks/", 10)
    assert found["w0"] is None  # a variable is no block


NAMES = [
    "stem/conv/kernel",
    "stem/conv/bias",
    *(f"trunk/block_{i}_{part}/{v}" for i in range(3) for part in ("in", "out") for v in ("kernel", "bias")),
    *(f"blocks/{i}/{part}/kernel" for i in range(3) for part in ("a", "b")),
    "scale",
]


def labels(most, kinds=None):
    folds = fold(NAMES, kinds or [0] * len(NAMES), most)
    assert sorted(i for _, own in folds for i in own) == list(range(len(NAMES)))  # each once
    return [f"{label} {len(own)}" for label, own in folds]


def test_rows_fold_by_layer_then_by_block_then_by_all_blocks():
    assert labels(None) == labels(100) == [f"{name} 1" for name in NAMES]
    by_layer = labels(20)
    assert by_layer[:3] == ["stem/conv/* 2", "trunk/block_0_in/* 2", "trunk/block_0_out/* 2"]
    assert by_layer[-2:] == ["blocks/2/b/kernel 1", "scale 1"]
    assert labels(8) == [
        "stem/conv/* 2",
        *(f"trunk/block_{i}_* 4" for i in range(3)),
        *(f"blocks/{i}/* 2" for i in range(3)),
        "scale 1",
    ]
    assert labels(4) == ["stem/* 2", "trunk/block_* 12", "blocks/* 6", "scale 1"]
    assert labels(1) == ["* 21"]


def test_rows_of_different_kinds_never_fold_and_none_goes_with_any():
    kinds = [name.rpartition("/")[2] for name in NAMES]
    assert labels(1, kinds) == ["* 13", "* 7", "scale 1"]
    kinds = [None if kind == "bias" else kind for kind in kinds]
    assert labels(2, kinds) == ["* 20", "scale 1"]


def test_what_a_folded_row_shows():
    assert together(["x", "x"]) == "x"
    assert together(["enc/a/w", "enc/b/w"]) == "enc/*"
    assert together(["1e-3", "2e-3", "5e-3"]) == "1e-3..5e-3"
    assert folded(NAMES, 4) == "stem/* (2), trunk/block_* (12), blocks/* (6), scale"
    assert folded(["a/w"]) == "a/w"
