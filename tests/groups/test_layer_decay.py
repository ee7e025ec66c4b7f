"""`--layer_decay` counts blocks as BEiT and timm do: against tables by hand, and BEiT's own function."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import harness
from trainer.errors import UserError
from trainer.flags import layer_decay
from trainer.flags.config import Config
from trainer.groups import plan, plan_table
from trainer.groups.depths import depths
from trainer.model.names import walk


def found(model, by=None, own=None):
    return depths(walk(model), own, layer_decay.parse(f"0.5 by={by}").by if by else None)


def by_layer(model, **more):
    """`{first folder of the name: depth}`; fails where one folder has two."""
    result = {}
    for name, depth in found(model, **more).items():
        assert result.setdefault(name.split("/")[0], depth) == depth, name
    return result


def beit(name, blocks=12):
    """Depth by BEiT's `get_num_layer_for_vit`, whose rate is decay ** (layers - 1 - layer)."""
    layers = blocks + 2
    head = name.split("/")[0]
    if head in ("cls_token", "mask_token", "pos_embed") or head.startswith("patch_embed"):
        layer = 0
    elif head == "blocks":
        layer = int(name.split("/")[1]) + 1
    else:
        layer = layers - 1
    return layers - 1 - layer


class Block(keras.layers.Layer):
    """As in a Transformer; with numbered layers inside, which are no levels of their own."""

    def build(self, shape):
        self.norm_1, self.norm_2 = keras.layers.LayerNormalization(), keras.layers.LayerNormalization()
        self.attention = keras.layers.MultiHeadAttention(1, 2)
        self.mlp = [keras.layers.Dense(4), keras.layers.Dense(4)]
        self.norm_1.build(shape)
        self.norm_2.build(shape)
        self.attention.build(shape, shape)
        for dense in self.mlp:
            dense.build(shape)

    def call(self, x):
        y = self.norm_1(x)
        x = x + self.attention(y, y)
        return x + self.mlp[1](self.mlp[0](self.norm_2(x)))


class Vit(keras.Model):
    """Subclassed, with a list of blocks."""

    def __init__(self):
        super().__init__()
        self.cls_token = self.add_weight(shape=(1, 1, 4), name="cls_token")
        self.pos_embed = self.add_weight(shape=(1, 5, 4), name="pos_embed")
        self.patch_embed = keras.layers.Dense(4)
        self.blocks = [Block() for _ in range(12)]
        self.norm = keras.layers.LayerNormalization()
        self.head = keras.layers.Dense(3)

    def call(self, x):
        x = self.patch_embed(x)
        x = tf.concat([tf.repeat(self.cls_token + 0, tf.shape(x)[0], 0), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def vit():
    model = Vit()
    model(tf.zeros([2, 4, 6]))
    return model


def bert():
    """Functional, its blocks numbered by name."""
    ids = keras.Input([5], dtype="int32")
    x = keras.layers.Embedding(7, 4, name="word_embeddings")(ids)
    x = keras.layers.LayerNormalization(name="embeddings_norm")(x)
    for i in range(12):
        x = Block(name=f"encoder_layer_{i}")(x)
    x = keras.layers.Dense(4, name="pooler")(x[:, 0])
    return keras.Model(ids, keras.layers.Dense(2, name="classifier")(x))


def test_a_vision_transformer_is_counted_as_beit_counts_it():
    depth = found(vit())
    assert depth == {name: beit(name) for name in depth}
    assert len(set(depth.values())) == 14 and max(depth.values()) == 13


def test_a_bert_has_embeddings_12_layers_and_a_head():
    wanted = {"word_embeddings": 13, "embeddings_norm": 13, "pooler": 0, "classifier": 0}
    wanted |= {f"encoder_layer_{i}": 12 - i for i in range(12)}
    assert by_layer(bert()) == wanted


def test_mobilenet_has_a_level_for_each_inverted_residual_block():
    trunk = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=10)
    depth = by_layer(trunk)
    for name, level in depth.items():
        parts = name.split("_")
        if parts[0] == "block":
            assert level == 17 - int(parts[1]), name
        elif name in ("Conv_1", "Conv_1_bn", "predictions"):
            assert level == 0, name
        else:  # Conv1, bn_Conv1, expanded_conv_*
            assert level == 17, name
    assert min(0.9**level for level in depth.values()) == pytest.approx(0.9**17)
    nested = keras.Sequential([trunk, keras.layers.Dense(3, name="head")])
    inside = {name.split("/")[1]: level for name, level in found(nested).items() if name.count("/") == 2}
    assert inside == depth


@pytest.mark.parametrize("classes", [keras.applications.ResNet50V2, keras.applications.EfficientNetB0])
def test_other_networks_of_keras_count_their_stages(classes):
    depth = by_layer(classes(weights=None, input_shape=(32, 32, 3), classes=10))
    assert 4 < max(depth.values()) < 20
    assert depth["predictions"] == 0 and depth[next(iter(depth))] == max(depth.values())


def test_a_plain_sequential_has_a_level_for_each_layer():
    layers = keras.layers
    auto = [keras.Input([4]), *(layers.Dense(4) for _ in range(4))]
    keras.backend.clear_session()
    depth = by_layer(keras.Sequential(auto))
    assert list(depth.values()) == [3, 2, 1, 0]
    named = [keras.Input([4]), *(layers.Dense(4, name=name) for name in ("first", "second", "head"))]
    assert by_layer(keras.Sequential(named)) == {"first": 2, "second": 1, "head": 0}
    # A normalisation shares the level of what it follows.
    mixed = [keras.Input([8, 8, 1])]
    for i in range(3):
        mixed += [
            layers.Conv2D(2, 3, padding="same", name=f"conv{i}"),
            layers.BatchNormalization(name=f"bn{i}"),
        ]
    mixed += [layers.Flatten(), layers.Dense(2, name="logits")]
    wanted = {f"{kind}{i}": 3 - i for i in range(3) for kind in ("conv", "bn")} | {"logits": 0}
    assert by_layer(keras.Sequential(mixed)) == wanted


def test_by_says_otherwise_without_code():
    model = bert()
    depth = by_layer(model, by=r"encoder_layer_(\d+)/.*")
    assert depth == by_layer(model)
    pairs = by_layer(model, by=r"encoder_layer_(1?)\d/.*")  # 0 to 9, and 10 and 11
    assert [pairs[f"encoder_layer_{i}"] for i in (0, 9, 10, 11)] == [2, 2, 1, 1]
    assert (pairs["word_embeddings"], pairs["classifier"]) == (3, 0)
    # The head is captured, too: then nothing is above it. What lies between goes with what is before.
    every = by_layer(model, by=r"(word_embeddings|encoder_layer_5|classifier)/.*")
    assert (every["word_embeddings"], every["encoder_layer_4"], every["encoder_layer_5"]) == (2, 2, 1)
    assert (every["pooler"], every["classifier"]) == (1, 0)
    # It goes before the module's own depth.
    assert by_layer(model, by=r"encoder_layer_(\d+)/.*", own=lambda name: 99) == depth


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.75 by=block/.*", "captures nothing"),
        ("0.75 by=(", "brackets|missing|closes|regular expression"),
        ("0.75 by=[(]x)", "regular expression|too many"),
        ("0.75 of=(.*)", "by=REGEX"),
        ("0.75 by=(.) by=(.)", "by=REGEX"),
        ("1 by=(.*)", "no effect"),
        ("1.5", "at most 1, such as 0.75"),
        ("x", "such as 0.75"),
        ("0,75", "such as 0.75"),
        ("٠.٧٥", "such as 0.75"),
    ],
)
def test_what_is_no_layer_decay_is_refused_by_the_flags(text, words):
    with pytest.raises(UserError, match=words):
        Config(layer_decay=text).check()


def test_a_pattern_that_matches_nothing_is_refused_with_near_names():
    with pytest.raises(UserError, match=r"matches no variable. It must match the whole name"):
        found(bert(), by=r"encoder_layer_(\d+)")


def test_rates_in_a_run_are_those_of_the_table():
    """One step of SGD: each variable moves by factor x rate x gradient."""

    def build():
        keras.utils.set_random_seed(1)
        names = ("block_0", "block_1", "block_2", "head")
        layers = [keras.layers.Dense(1, use_bias=False, name=n, kernel_initializer="ones") for n in names]
        return keras.Sequential([keras.Input([1]), *layers])

    def loss(model, batch, training):
        return model(batch["x"])[:, 0], {}

    arrays = {"x": np.ones([8, 1])}
    made = harness.make(build, loss, [".* sgd 0.5"], arrays, 1, precision="float64", layer_decay=0.1)
    made.train(0, 1)
    wanted = {"block_0": 1e-3, "block_1": 1e-2, "block_2": 1e-1, "head": 1.0}
    for name, factor in wanted.items():
        np.testing.assert_allclose(made.values()[f"{name}/kernel"], 1 - 0.5 * factor, rtol=1e-6)
    harness.use_precision("float32")


# The plan


def planned(decay, dims=14):
    def build():
        layers = [keras.layers.Dense(1, name=f"dense_{i}") for i in range(dims)]
        return keras.Sequential([keras.Input([1]), *layers])

    def loss(model, batch, training):
        return model(batch["x"])[:, 0], {}

    arrays = {"x": np.ones([8, 1], np.float32)}
    return harness.make(build, loss, [".* sgd 0.5"], arrays, 1, layer_decay=decay).run.plan()


def test_the_plan_shows_depth_and_factor_and_warns_of_next_to_nothing():
    made = planned("0.5")
    rows = {row["name"]: row for row in made["rows"]}
    assert (rows["dense_13/bias"]["depth"], rows["dense_13/bias"]["factor"]) == (0, 1)
    assert (rows["dense_0/kernel"]["depth"], rows["dense_0/kernel"]["factor"]) == (13, 2**-13)
    columns, cells, _ = plan_table.table(made, None)
    at = columns.index("depth")
    assert columns[at : at + 2] == ["depth", "factor"] and cells[0][at : at + 2] == ["13", "1.22e-4"]
    (sentence,) = plan_table.warnings(made)
    assert "8 variables get less than 0.001" in sentence and "dense_0/" in sentence and "by=REGEX" in sentence
    assert plan_table.warnings(planned("0.9")) == []
    assert "depth" not in plan_table.table(planned(""))[0]


@pytest.mark.slow
def test_factors_enter_the_identity_of_a_plan_and_only_they():
    plain, decayed = planned(""), planned("0.5")
    earlier = {
        **decayed,
        "rows": [{k: v for k, v in row.items() if k not in ("depth", "factor")} for row in decayed["rows"]],
    }
    lines = plan.differences(earlier, decayed, 0)  # begun under the old counting, which told no factors
    assert " + variable dense_0/kernel: [1, 1] float32 in group0 at 0.000122070312 of its rate" in lines
    assert not any("dense_13" in line for line in lines)
    assert plan.digest(earlier) != plan.digest(decayed)
    # Counted otherwise is drift, the same is not, and neither is a plan without.
    other = planned(r"0.5 by=dense_(\d)\d?/.*")
    assert plan.differences(decayed, other, 0) and not plan.differences(decayed, planned("0.5"), 0)
    assert plain["layer_decay"] == 1.0 and not any("factor" in row for row in plain["rows"])
    assert not plan.differences(plain, planned("1"), 0)


def test_a_pattern_without_end_is_refused():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1, name="a" * 60)])
    with pytest.raises(UserError, match=r"--layer_decay.*\(a\+\)\+b"):
        depths(
            walk(model), None, layer_decay.parse("0.5 by=((a+)+b).*").by, "--layer_decay=0.5 by=((a+)+b).*"
        )
    with pytest.raises(UserError, match="not a regular expression"):
        layer_decay.parse("0.5 by=(*a)")
