"""PyTorch's weights in Keras's layers: the same numbers of both. `torch_golden/make.py` wrote the files."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import torch_models
from trainer.errors import UserError
from trainer.model.names import walk
from trainer.readers import Spec, WeightsFile, open_source
from trainer.restore import receipt
from trainer.restore.match import load, match
from trainer.restore.propose import propose
from trainer.restore.rules import parse

GOLDEN = Path(__file__).parent / "torch_golden"
L = keras.layers


def restore(model, source, **rules):
    """Restores, assigned and read back; the receipt by name."""
    matched = match(walk(model), source, parse(**rules), model)
    lines = receipt.assign(tf.distribute.get_strategy(), matched, load(matched))
    return {line["name"]: line for line in lines}


def part(source, front, new=""):
    """The weights of one module of a source, under `new` or under no name."""
    names = {n.replace(front, new, 1).lstrip("."): n for n in source.specs if n.startswith(front + ".")}
    specs = {short: source.specs[name] for short, name in names.items()}
    return WeightsFile(
        source.kind,
        front,
        specs,
        (),
        "--init_from",
        lambda n: source.read(names[n]),
        torch=True,
        neutral=True,
    )


@pytest.fixture(scope="module")
def golden():
    return open_source(str(GOLDEN / "kinds.pt")), np.load(GOLDEN / "kinds.npz")


def held(layer):
    """A model with one layer, so that its variables have no name before their own."""
    module = tf.Module()
    module.it = layer
    return module


@pytest.mark.parametrize("name", sorted(torch_models.kinds()))
def test_each_kind_of_layer_gives_the_numbers_of_pytorch(golden, name):
    source, arrays = golden
    layer, way = torch_models.kinds()[name]
    given = [way(arrays[f"{name}.in{k}"]) for k in range(3) if f"{name}.in{k}" in arrays]
    if "attention" in name or name == "cross":
        query, key, value = given if len(given) == 3 else given * 3
        given = [query, value, key]  # Keras's order
    layer(*given)
    restore(held(layer), part(source, name), layout="torch", rename=[r"it/(.*) -> \1"])
    np.testing.assert_allclose(layer(*given), way(arrays[f"{name}.out"]), atol=1e-5)


def test_layers_of_a_deep_bidirectional_lstm(golden):
    source, arrays = golden
    layers = [L.Bidirectional(L.LSTM(4, return_sequences=True)) for _ in range(2)]
    x = arrays["deep_lstm.in0"]
    layers[1](layers[0](x))
    module = tf.Module()
    module.first, module.second = layers
    rename = [r"first/(.*) -> it_l0/\1", r"second/(.*) -> it_l1/\1"]
    lines = restore(module, part(source, "deep_lstm", "it"), layout="torch", rename=rename)
    np.testing.assert_allclose(layers[1](layers[0](x)), arrays["deep_lstm.out"], atol=1e-5)
    line = lines["second/backward_layer/cell/bias"]
    assert line["source"] == "it.bias_ih_l1_reverse + it.bias_hh_l1_reverse"
    assert line["adapt"] == "both biases summed"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_resnet18_by_five_rules(suffix):
    model, arrays = torch_models.resnet18(), np.load(GOLDEN / "resnet18.npz")
    rename = [
        r"stem_(conv|bn)/(.*) -> \g<1>1.\2",
        r"stage(\d)_(\d)_((?:conv|bn)\d)/(.*) -> layer\1.\2.\3.\4",
        r"stage(\d)_(\d)_down_conv/(.*) -> layer\1.\2.downsample.0.\3",
        r"stage(\d)_(\d)_down_bn/(.*) -> layer\1.\2.downsample.1.\3",
        r"head/(.*) -> fc.\1",
    ]
    source = open_source(str(GOLDEN / f"resnet18{suffix}"))
    assert any(name.endswith("num_batches_tracked") for name in source.ignored)
    restore(model, source, layout="torch", rename=rename)
    out = model(np.moveaxis(arrays["image"], 1, -1))
    np.testing.assert_allclose(out, arrays["out"], rtol=1e-4, atol=1e-5)


def test_a_bert_of_shards_by_five_rules():
    model, arrays = torch_models.Bert(), np.load(GOLDEN / "bert.npz")
    given = (arrays["words"], arrays["types"])
    model(given)
    block, layer = r"blocks/(\d+)/", r"bert.encoder.layer.\1."
    rename = [
        r"(embeddings/.*) -> bert.\1",
        rf"{block}attention/(query|key|value)_dense/(.*) -> {layer}attention.self.\2.\3",
        rf"{block}attention(?:_|/output_)(dense|LayerNorm)/(.*) -> {layer}attention.output.\2.\3",
        rf"{block}(intermediate|output)_(dense|LayerNorm)/(.*) -> {layer}\2.\3.\4",
        r"pooler/(.*) -> bert.pooler.dense.\1",
    ]
    source = open_source(str(GOLDEN / "bert.safetensors.index.json"))
    restore(model, source, layout="torch", rename=rename)
    np.testing.assert_allclose(model(given), arrays["out"], rtol=1e-4, atol=1e-5)


def test_proposals_for_files_of_pytorch_restore_the_right_numbers():
    """Layers of equal shapes are many: the proposals are right here, and say that they are not proven."""
    resnet, bert = torch_models.resnet18(), torch_models.Bert()
    r, b = np.load(GOLDEN / "resnet18.npz"), np.load(GOLDEN / "bert.npz")
    given = (b["words"], b["types"])
    bert(given)
    for model, file in ((resnet, "resnet18.pth"), (bert, "bert.safetensors.index.json")):
        source = open_source(str(GOLDEN / file))
        proposal = propose(walk(model), source, model=model)
        assert proposal.problems == () and proposal.ambiguous and len(proposal.lines) < 15
        assert proposal.lines[0] == "--init_layout=torch"
        rename = [line.partition("=")[2] for line in proposal.lines if "rename" in line]
        restore(model, source, layout="torch", rename=rename)
    np.testing.assert_allclose(resnet(np.moveaxis(r["image"], 1, -1)), r["out"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bert(given), b["out"], rtol=1e-4, atol=1e-5)


# What is never taken in silence


def small(*sizes):
    made = keras.Sequential(
        [keras.Input((sizes[0],)), *(L.Dense(n, name=f"l{k}") for k, n in enumerate(sizes[1:]))]
    )
    return made


def memory(**arrays):
    """A source under PyTorch's names; `__` is a dot."""
    held = {name.replace("__", "."): np.asarray(value, np.float32) for name, value in arrays.items()}
    specs = {name: Spec(a.shape, "float32") for name, a in held.items()}
    return WeightsFile("test", "memory", specs, (), "--init_from", held.__getitem__, torch=True, neutral=True)


def test_a_square_matrix_needs_the_layout_and_is_then_turned():
    model, w = small(3, 3), np.arange(9.0).reshape(3, 3)
    source = memory(l0__weight=w, l0__bias=np.ones(3))
    with pytest.raises(UserError, match=r"names look like PyTorch's.*--init_layout=torch"):
        restore(model, source, rename=[r"l0/kernel -> l0.weight", r"l0/bias -> l0.bias"])
    lines = restore(model, source, layout="torch")
    np.testing.assert_array_equal(model.layers[0].kernel, w.T)
    assert lines["l0/kernel"]["adapt"] == "transposed from PyTorch's layout"
    assert lines["l0/kernel"]["after"] != lines["l0/kernel"]["source_sha256"]
    # And where it only looks so, that is said, too.
    renames = [r"(.*)/kernel -> \1.weight", r"(.*)/bias -> \1.bias"]
    restore(model, source, layout="keras", rename=renames)
    np.testing.assert_array_equal(model.layers[0].kernel, w)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_whose_names_look_like_pytorchs(tmp_path, suffix):
    from safetensors.numpy import save_file

    arrays = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.ones(2, np.float32)}
    path = tmp_path / f"w{suffix}"
    np.savez(path, **arrays) if suffix == ".npz" else save_file(arrays, path)
    assert open_source(str(path)).torch
    path.unlink()
    arrays = {"fc/kernel": np.ones((3, 2), np.float32), "fc.bias": np.ones(2, np.float32)}
    np.savez(path, **arrays) if suffix == ".npz" else save_file(arrays, path)
    assert not open_source(str(path)).torch


def test_a_keras_file_has_no_other_layout(tmp_path):
    model = small(3, 3)
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(UserError, match=r"--init_layout=torch: a Keras \.weights\.h5 is in Keras's layout"):
        restore(model, open_source(str(tmp_path / "m.weights.h5")), layout="torch")


def test_a_kernel_behind_a_flattened_image_says_what_it_needs():
    image = keras.Input((2, 3, 4))
    x = L.Dropout(0.5)(L.Flatten()(image))
    model = keras.Model(image, L.Dense(5, name="fc")(x))
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(5, 24)), rng.normal(size=(1, 4, 2, 3)).astype(np.float32)
    source = memory(fc__weight=w, fc__bias=np.zeros(5))
    with pytest.raises(
        UserError, match=r"flattened image \[2, 3, 4\].*--init_adapt='fc/kernel flattened\(\[2, 3, 4\]\)'"
    ):
        restore(model, source, layout="torch")
    proposal = propose(walk(model), source, model=model)
    assert "--init_adapt=fc/kernel flattened([2, 3, 4])" in proposal.lines and not proposal.problems
    restore(model, source, layout="torch", adapt=["fc/kernel flattened([2, 3, 4])"])
    np.testing.assert_allclose(model(np.moveaxis(x, 1, -1)), x.reshape(1, -1) @ w.T, rtol=1e-5, atol=1e-5)
    restore(model, source, layout="torch", adapt=["fc/kernel as_is()"])
    np.testing.assert_allclose(model(x.reshape(1, 2, 3, 4)), x.reshape(1, -1) @ w.T, rtol=1e-5, atol=1e-5)


def test_flattened_images_in_nested_models_and_before_normalizations():
    image = keras.Input((2, 3, 4))
    trunk = keras.Model(image, L.Flatten()(image), name="trunk")
    flat = keras.Input((24,))
    head = keras.Model(flat, L.Dense(2, name="fc")(L.BatchNormalization(name="bn")(flat)), name="head")
    model = keras.Model(image, head(trunk(image)))
    arrays = {f"head__bn__{w}": np.arange(24) for w in ("weight", "bias", "running_mean", "running_var")}
    source = memory(**arrays, head__fc__weight=np.zeros((2, 24)), head__fc__bias=np.zeros(2))
    with pytest.raises(UserError) as caught:
        restore(model, source, layout="torch")
    lines = [line for line in str(caught.value).splitlines() if "flattened image [2, 3, 4]" in line]
    assert len(lines) == 5 and "flattened([2, 3, 4])" in lines[0]
    restore(model, source, layout="torch", adapt=[r"head/(fc/kernel|bn/.*) flattened([2, 3, 4])"])
    wanted = np.arange(24).reshape(4, 2, 3).transpose(1, 2, 0).ravel()
    np.testing.assert_array_equal(head.get_layer("bn").gamma, wanted)


def test_flattened_images_that_are_merged():
    image = keras.Input((2, 3, 4))
    merged = L.Concatenate()([L.Flatten()(image), L.Flatten()(L.ReLU()(image))])
    model = keras.Model(image, L.Dense(2, name="fc")(merged))
    source = memory(fc__weight=np.zeros((2, 48)), fc__bias=np.zeros(2))
    with pytest.raises(UserError, match=r"fc/kernel: its layer follows a flattened image \(merged\)"):
        restore(model, source, layout="torch")
    restore(model, source, layout="torch", adapt=["fc/kernel as_is()"])


def test_one_channel_or_one_place_needs_nothing():
    for shape in ((4, 4, 1), (1, 1, 4)):
        image = keras.Input(shape)
        model = keras.Model(image, L.Dense(5, name="fc")(L.Flatten()(image)))
        count = int(np.prod(shape))
        restore(model, memory(fc__weight=np.ones((5, count)), fc__bias=np.zeros(5)), layout="torch")


def test_a_variable_of_no_known_layer_needs_a_word():
    class Own(L.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(3, 3), name="table")
            self.shift = self.add_weight(shape=(3,), name="shift")

    model = held(Own())
    model.it.build(None)
    t = np.arange(9.0).reshape(3, 3)
    source = memory(it__table=t, it__shift=np.ones(3))
    with pytest.raises(UserError, match=r"it/table: how PyTorch stores a variable of Own is not known"):
        restore(model, source, layout="torch")
    restore(model, source, layout="torch", adapt=["it/table as_is()"])
    np.testing.assert_array_equal(model.it.table, t)
    restore(model, source, layout="torch", adapt=["it/table transpose(1, 0)"])
    np.testing.assert_array_equal(model.it.table, t.T)


def test_a_gru_that_resets_before_is_refused(golden):
    layer = L.GRU(4, reset_after=False)
    layer(golden[1]["gru.in0"])
    with pytest.raises(UserError, match="reset_after=True"):
        restore(held(layer), part(golden[0], "gru"), layout="torch", rename=[r"it/(.*) -> \1"])


def test_adapters_one_by_one():
    """What the layout does, by hand: for files that only look like PyTorch's or name things otherwise."""
    model = small(4, 4)
    rng = np.random.default_rng(0)
    packed, one, two = rng.normal(size=(12, 4)), rng.normal(size=4), rng.normal(size=4)
    source = memory(qkv=packed, b__one=one, b__two=two)
    adapt = [r"l0/kernel split(1, 3) transpose(1, 0)", "l(0)/bias sum('b.one', 'b.two')"]
    lines = restore(model, source, layout="keras", rename=["l0/kernel -> qkv"], adapt=adapt)
    np.testing.assert_allclose(model.layers[0].kernel, packed[4:8].T.astype("f4"))
    np.testing.assert_allclose(model.layers[0].bias, (one + two).astype("f4"), rtol=1e-6)
    assert lines["l0/bias"]["source"] == "b.one + b.two"
    adapt = [r"l(\d)/kernel concat('q\1', 'k\1', axis=1) reshape()", "l0/bias split(0, 3)"]
    q, k = rng.normal(size=(4, 1)), rng.normal(size=(4, 3))
    source = memory(q0=q, k0=k, l0__bias=np.arange(12))
    restore(model, source, layout="keras", rename=["l0/bias -> l0.bias"], adapt=adapt)
    np.testing.assert_allclose(model.layers[0].kernel, np.concatenate([q, k], 1).astype("f4"))
    assert model.layers[0].bias.numpy().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "text, message",
    [
        ("transpose(0, 0)", "are not the axes"),
        ("transpose('a')", "not numbers of axes"),
        ("reshape(5)", "cannot reshape"),
        ("reshape(1.5)", "not a shape"),
        ("split(3, 3)", "none of 3 parts"),
        ("split(0, 5)", "is not 5 equal parts"),
        ("flattened([3])", "not a shape with channels last"),
        ("flattened([2, 2])", r"has not the 4 rows of \[2, 2\]"),
        ("transpose() sum('a', 'b')", "sum can only come first"),
        ("sum('a')", "takes two or more names"),
        ("sum('l0.weight', 'l0.bias')", "cannot be added"),
        (r"concat('l0.weight', 'l\3')", "cannot be filled in: invalid group reference"),
    ],
)
def test_adapters_that_do_not_fit(text, message):
    with pytest.raises(UserError, match=message):
        source = memory(l0__weight=np.ones((3, 3)), l0__bias=np.ones(3))
        restore(small(3, 3), source, layout="torch", adapt=[f"l0/kernel {text}"], skip=["l0.bias"])
