"""The models beyond the digits' two: a few steps on one and two replicas, resumed, exported, predicted."""

import base64

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.exercise import BRIEF, exercise
from tests.support.runs import main, records, state
from trainer.flags.command_line import parse

pytestmark = pytest.mark.slow

SMALL = {
    "resnet": "--model=resnet(width=4)",
    "text_transformer": "--model=text_transformer(blocks=1, width=16, heads=2)",
    "text_lm": "--model=text_lm(blocks=1, width=16, heads=2)",
    "gan": "--model=gan(width=8)",
    "distill": "--model=distill(filters=4, hidden=8)",
    "lora": "--model=lora(layers=1, width=16)",
}


@pytest.fixture(params=SMALL)
def flags(request, data):
    """The flagfile of a model, made small."""
    if request.param == "lora":
        pytest.importorskip("keras_hub")
    own = [f"--flagfile=examples/{request.param}.flags", SMALL[request.param], *BRIEF, data]
    if request.param == "distill":  # without a teacher to restore, the rules of the restore go
        config = parse(["run.py", "--flagfile=examples/distill.flags"])
        groups = [f"--group={text}" for text in config.group]
        own = [SMALL["distill"], *BRIEF, "--dataset=digits", *groups, data]
    return own


def test_a_few_steps_resumed_exported_and_on_two_replicas(flags, tmp_path, monkeypatch):
    exercise(flags, tmp_path, monkeypatch)


def test_frozen_is_frozen_to_the_bit_under_lora(data, tmp_path):
    pytest.importorskip("keras_hub")
    flags = ["--flagfile=examples/lora.flags", SMALL["lora"], *BRIEF, data]
    assert main(tmp_path, *flags, "--keep=9") == 0
    from trainer.checkpoints import checkpoint, manifest

    first, last = (manifest.at(tmp_path / "checkpoints", step) for step in (1, 4))
    names = [n for n in first.variables if n.startswith("model/")]
    one, other = checkpoint.read(first, names), checkpoint.read(last, names)
    moved = {n for n in names if one[n].tobytes() != other[n].tobytes()}
    assert moved and all("lora" in n or n.startswith("model/head/") for n in moved)
    assert sum("lora" in n for n in moved) >= 4


def test_a_student_learns_from_a_teacher_of_a_run(data, tmp_path):
    teacher = [
        "--model=mnist_cnn(filters=4)",
        "--dataset=digits",
        data,
        "--group=.* adam 1e-2",
        "--train_for=60",
    ]
    assert main(tmp_path / "teacher", *teacher, "--eval_split=none") == 0
    flags = [
        "--flagfile=examples/distill.flags",
        SMALL["distill"],
        "--dataset=digits",
        data,
        "--train_for=300",
        "--eval_every=300",
    ]
    assert main(tmp_path / "student", *flags, f"--init_from={tmp_path / 'teacher'}") == 0
    before, after = state(tmp_path / "teacher"), state(tmp_path / "student")
    held = [n for n in after if n.startswith("model/teacher/")]
    assert held
    for name in held:
        assert after[name].tobytes() == before[name.replace("model/teacher/", "model/")].tobytes(), name
    evaluations = [r for r in records(tmp_path / "student") if r["kind"] == "eval"]
    assert evaluations[-1]["agreement"] > 0.5


def test_a_line_is_written_at_each_evaluation(data, tmp_path, capsys):
    flags = ["--flagfile=examples/text_lm.flags", SMALL["text_lm"], *BRIEF, data]
    assert main(tmp_path, *flags) == 0
    evaluations = [r for r in records(tmp_path) if r["kind"] == "eval"]
    assert len(evaluations) == 2 and all(r["arrays"]["line"].startswith("Returns the ") for r in evaluations)
    assert f"line: {evaluations[-1]['arrays']['line']}"[:20] in capsys.readouterr().out
    assert evaluations[-1]["perplexity"] == pytest.approx(np.exp(evaluations[-1]["loss"]), rel=1e-5)


def test_a_picture_is_drawn_at_each_evaluation(data, tmp_path):
    flags = ["--flagfile=examples/gan.flags", SMALL["gan"], *BRIEF, data]
    assert main(tmp_path, *flags) == 0
    evaluations = [r for r in records(tmp_path) if r["kind"] == "eval"]
    made = [r["arrays"]["made"] for r in evaluations]
    assert [r["weights"] for r in evaluations] == ["raw", "ema"] * 2 and len(set(made)) == 4
    assert {"loss", "loss/generator", "loss/discriminator", "fooled"} <= evaluations[-1].keys()
    png = base64.b64decode(made[-1].removeprefix("data:image/png;base64,"))
    picture = tf.io.decode_png(png).numpy()
    assert picture.shape == (224, 224, 1) and picture[:140].std() > 0 and not picture[140:].any()  # 33 images
    page = (tmp_path / "report.html").read_text()
    assert f'<img alt="made" src="{made[-1]}">' in page and made[0] not in page
    found = EventAccumulator(str(tmp_path / "tensorboard" / "eval_ema"), size_guidance={"images": 0})
    found.Reload()
    assert [e.step for e in found.Images("made")] == [2, 4]
    assert found.Images("made")[-1].encoded_image_string == png


def test_the_language_models_weights_are_tied_and_it_looks_only_back():
    from models import text_lm

    keras.utils.set_random_seed(0)
    model = text_lm.build(blocks=1, width=16, heads=2)
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    assert shapes.count((256, 16)) == 1
    tokens = np.random.default_rng(0).integers(1, 256, (2, text_lm.LENGTH)).astype("int32")
    other = tokens.copy()
    other[:, 50:] = 7
    one, two = model(tokens).numpy(), model(other).numpy()
    np.testing.assert_allclose(one[:, :50], two[:, :50], atol=1e-5)
    assert np.abs(one[:, 50:] - two[:, 50:]).max() > 1e-3


def test_text_beyond_the_last_word_counts_nothing():
    from models import text_transformer

    keras.utils.set_random_seed(0)
    model = text_transformer.build(blocks=1, width=16, heads=2)
    example = text_transformer.decode({"text": tf.constant("Two words, here."), "label": 1})
    assert example["tokens"].shape == (64,) and int(tf.math.count_nonzero(example["tokens"])) == 5
    logits = model(example["tokens"][None]).numpy()
    places = model.get_layer("places").places
    changed = places.numpy()
    changed[10:] += 5.0
    places.assign(changed)
    np.testing.assert_allclose(model(example["tokens"][None]).numpy(), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trunk", ["MobileNetV2", "ResNet50", "DenseNet121", "EfficientNetB0"])
def test_a_trunk_is_prepared_as_its_own_module_does(trunk):
    from models.pretrained import Prepared

    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype("float32")
    module = {"MobileNetV2": "mobilenet_v2", "ResNet50": "resnet", "DenseNet121": "densenet"}
    own = getattr(keras.applications, module.get(trunk, "efficientnet")).preprocess_input
    np.testing.assert_allclose(Prepared(trunk)(image), own(image.copy()), rtol=1e-6)


def test_a_trunk_that_there_is_not_is_refused(data, capsys):
    assert main(None, '--model=pretrained(trunk="MobileNet2")', "--dataset=digits", data, "--mode=plan",
                "--group=.* adam 1e-3", "--train_for=1") == 1  # fmt: skip
    said = capsys.readouterr().err
    assert "trunk='MobileNet2' is not in keras.applications" in said and "MobileNetV2" in said
