"""Chosen layers, from any source, under other names; all problems at once; and the proof."""

import hashlib
import json
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from trainer.checkpoints import checkpoint
from trainer.errors import UserError
from trainer.model.names import walk
from trainer.readers import Source, Spec, open_source
from trainer.restore import adapt, receipt
from trainer.restore.match import load, match
from trainer.restore.propose import propose
from trainer.restore.rules import parse

layers = keras.layers
v1 = tf.compat.v1


def pretrained():
    """A network on 3 channels; all its values differ from any initial value."""
    x = inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, name="stem")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3, name="body")(x))
    model = keras.Model(inputs, layers.Dense(7, name="classes")(x))
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.get_weights()])
    return model


def target(channels=3, classes=7):
    """The same shapes under other names, and random state; made in the strategy's scope."""
    x = inputs = layers.Input((6, 6, channels))
    x = layers.Conv2D(4, 3, name="conv1")(x)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.Conv2D(5, 3, name="conv2")(x)
    x = layers.Dropout(0.5, name="drop")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(classes, name="head")(x))


RENAMES = [
    r"conv1/(.*) -> stem/\1",
    r"bn1/(.*) -> norm/\1",
    r"conv2/(.*) -> body/\1",
    r"head/(.*) -> classes/\1",
]
# What RENAMES say, as a table of whole names.
NAMES = {"conv1": "stem", "bn1": "norm", "conv2": "body", "head": "classes"}


@pytest.fixture(scope="module")
def arrays():
    return {v.name: v.value.numpy() for v in walk(pretrained())}


@pytest.fixture(scope="module")
def npz(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "w.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(params=["one", "mirrored"])
def strategy(request):
    if request.param == "one":
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def memory(**weights):
    """A source that is not a file."""
    specs = {name: Spec(w.shape, w.dtype.name) for name, w in weights.items()}
    return Source("test", "memory", specs, (), "--init_from", weights.__getitem__)


def module(**values):
    """A `tf.Module` with a variable for each array."""
    made = tf.Module()
    for name, value in values.items():
        setattr(made, name, tf.Variable(value))
    return made


def refused(model, source, *has, **rules):
    """The lines of the one error, which must hold each text of `has`; nothing may change."""
    variables = walk(model)
    before = {v.name: v.value.numpy().tobytes() for v in variables}
    with pytest.raises(UserError) as caught:
        load(match(variables, source, parse(**rules)))
    for text in has:
        assert text in str(caught.value), caught.value
    assert before == {v.name: v.value.numpy().tobytes() for v in variables}
    *lines, advice = str(caught.value).splitlines()[1:]
    assert advice == "--mode=inspect proposes rules."
    return lines


def started(strategy, model, source, **rules):
    """The receipt after a restore, by name."""
    matched = match(walk(model), source, parse(**rules))
    lines = receipt.assign(strategy, matched, load(matched))
    return {line["name"]: line for line in lines}


def sha(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


# Chosen layers, under other names


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


# Strictness


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


# Widths


def test_cast():
    net = module(a=np.zeros(3, np.float32), b=tf.zeros(2, tf.bfloat16))
    weights = memory(a=np.float64([1 / 3, 2, 3]), b=np.float32([1 / 3, 4]))
    refused(net, weights, "--init_cast allows it")
    lines = started(tf.distribute.get_strategy(), net, weights, cast=True)
    np.testing.assert_array_equal(net.a, np.float64([1 / 3, 2, 3]).astype(np.float32))
    np.testing.assert_array_equal(net.b, np.float32([1 / 3, 4]).astype(ml_dtypes.bfloat16))
    assert lines["a"]["cast"] == "float64 -> float32" and lines["b"]["cast"] == "float32 -> bfloat16"
    assert lines["a"]["source_sha256"] == sha(np.float64([1 / 3, 2, 3])) != lines["a"]["after"]


def test_cast_that_overflows():
    net = module(a=tf.zeros(2, tf.float16))
    refused(net, memory(a=np.float32([1e6, 1])), "1 values are too large for float16", cast=True)


# Adaptations


def adapted(text, source, initial):
    """The value of a variable that starts at `initial` after `--init_adapt='v TEXT'`."""
    net = module(v=initial)
    lines = started(tf.distribute.get_strategy(), net, memory(v=source), adapt=[f"v {text}"])
    assert lines["v"]["adapt"] == text
    return net.v.numpy()


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_channels():
    rgb, grey = noise(3, 3, 3, 2), np.zeros((3, 3, 1, 2), np.float32)
    image = noise(1, 5, 5, 1)
    response = tf.nn.conv2d(np.repeat(image, 3, -1), rgb, 1, "VALID")
    summed = adapted("sum_channels()", rgb, grey)
    np.testing.assert_allclose(tf.nn.conv2d(image, summed, 1, "VALID"), response, atol=1e-5)
    mean = adapted("mean_channels(axis=2)", rgb, grey)
    np.testing.assert_allclose(3 * tf.nn.conv2d(image, mean, 1, "VALID"), response, atol=1e-5)
    spread = adapted("repeat_channels()", summed, rgb)
    wide = np.repeat(image, 3, -1)
    np.testing.assert_allclose(tf.nn.conv2d(wide, spread, 1, "VALID"), response, atol=1e-5)


@pytest.mark.parametrize("old, new", [(7, 4), (4, 9), (5, 5)])
def test_resize_is_tensorflows_bilinear(old, new):
    table = noise(old, 3)
    wanted = tf.image.resize(table[:, None, :], (new, 1))[:, 0]
    np.testing.assert_allclose(
        adapted("resize(axis=0)", table, np.zeros((new, 3), np.float32)), wanted, atol=1e-6
    )
    grid = noise(1, 1 + old * old, 3)
    image = tf.image.resize(grid[:, 1:].reshape(1, old, old, 3), (new, new))
    got = adapted("resize_grid(keep=1)", grid, np.zeros((1, 1 + new * new, 3), np.float32))
    np.testing.assert_array_equal(got[:, 0], grid[:, 0])
    np.testing.assert_allclose(got[:, 1:], tf.reshape(image, (1, new * new, 3)), atol=1e-6)


def test_rows():
    kernel = np.float32([[1, 2, 3], [4, 5, 6]])
    got = adapted("rows([2, None, 0, 2])", kernel, np.full((2, 4), -1, np.float32))
    assert got.tolist() == [[3, -1, 1, 3], [6, -1, 4, 6]]
    assert adapted("rows([1])", np.float32([7, 8]), np.zeros(1, np.float32)).tolist() == [8]


@pytest.mark.parametrize(
    "text, source, initial, message",
    [
        ("rows([5])", (3,), (1,), "classes 0 to 2, the list names [5]"),
        ("rows([1, 2])", (3,), (1,), "2 entries and the variable 1 classes"),
        ("rows([1])", (2, 3), (4, 1), "differs from [4, 1] elsewhere too"),
        ("sum_channels()", (3, 3, 3, 2), (3, 3, 1, 9), "sum_channels() makes it float32[3, 3, 1, 2]"),
        ("sum_channels(axis=7)", (3, 2), (1, 2), "axis=7 is no axis"),
        ("repeat_channels()", (2, 2), (4, 2), "has 2 channels, not one"),
        ("resize_grid()", (1, 5, 2), (1, 4, 2), "5 positions are not a square grid"),
        ("resize(keep=9)", (1, 5, 2), (1, 4, 2), "keep=9"),
    ],
)
def test_adaptations_that_do_not_fit(text, source, initial, message):
    net = module(v=np.zeros(initial, np.float32))
    refused(net, memory(v=np.ones(source, np.float32)), message, adapt=[f"v {text}"])


def test_every_method_is_listed():
    """In the documentation, where people look for them."""
    page = (Path(__file__).parents[2] / "docs" / "restore.md").read_text()
    for name in [*adapt.METHODS, *adapt.COMBINERS]:
        assert f"`{name}(" in page, name


# The receipt


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


# Proposals


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
