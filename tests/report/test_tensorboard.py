"""What TensorBoard's own readers find of a run: text, flags, histograms, images, norms, a profile."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from tests.support.runs import main
from trainer.report import summaries
from trainer.report.evaluated import WORST, Evaluated
from trainer.report.reporter import Reporter
from trainer.run import ending

DIGITS = Path(__file__).resolve().parents[2] / "datasets" / "digits" / "digits_dataset_builder.py"
FLAGS = (
    "--model=mnist_mlp(hidden=8)",
    "--dataset=digits",
    "--train_split=train[:200]",
    "--eval_split=test[:40]",
    "--batch_size=20",
    "--train_for=20",
    "--group=.*/w  adam  1e-3  name=kernels",
    "--group=.*  sgd(momentum=0.9)  1e-2  name=biases",
    "--log_every=5",
    "--data_residency=host",  # of what lies on the device no step waits for input
    "--ema=0.9",
    "--histograms",
    "--profile=6:9",
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "of"
    assert main(path, *FLAGS) == 0
    return path


def read(directory):
    found = EventAccumulator(str(directory), size_guidance={"tensors": 0, "histograms": 0, "images": 0})
    found.Reload()
    return found


def test_training_and_evaluation_of_a_metric_share_a_chart(workdir):
    for run, steps in (("train", [5, 10, 15, 20]), ("eval", [10, 20]), ("eval_ema", [10, 20])):
        for tag in ("loss", "accuracy"):
            assert [e.step for e in read(workdir / "tensorboard" / run).Scalars(tag)] == steps


def test_numbers_by_group_and_of_the_run_have_curves(workdir):
    tags = read(workdir / "tensorboard" / "train").Tags()["scalars"]
    for name in ("learning_rate", "gradient_norm", "weight_norm", "update_ratio"):
        assert {f"{name}/kernels", f"{name}/biases"} <= set(tags)
    assert {"examples_per_second", "input_wait", "skipped_steps"} <= set(tags)


def test_the_plan_and_the_flags_are_there(workdir):
    found = read(workdir / "tensorboard")
    (event,) = found.Tensors("plan")
    text = tensor_util.make_ndarray(event.tensor_proto).item().decode()
    assert "hidden1/w" in text and "| kernels |" in text.replace("  ", " ")
    assert found.SummaryMetadata("plan").plugin_data.plugin_name == "text"
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    flags = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert flags["batch_size"].number_value == 20 and flags["ema"].number_value == 0.9
    assert flags["group"].string_value == (
        ".*/w  adam  1e-3  name=kernels | .*  sgd(momentum=0.9)  1e-2  name=biases"
    )


def test_histograms_of_the_weights(workdir):
    found = read(workdir / "tensorboard" / "train")
    assert "hidden1/w" in found.Tags()["histograms"]
    histograms = found.Histograms("hidden1/w")
    assert [h.step for h in histograms] == [5, 10, 15, 20]
    assert sum(histograms[0].histogram_value.bucket) == 28 * 28 * 8


def test_a_histogram_by_hand():
    values = np.array([0.0, 1.0, 2.0, np.nan, 4.0])
    (value,) = summaries.histograms({"a": values, "none": np.array([np.nan])}).value
    histogram = value.histo
    assert (histogram.num, histogram.min, histogram.max, histogram.sum) == (4, 0, 4, 7)
    assert histogram.sum_squares == 21 and sum(histogram.bucket) == 4


def test_the_profile_is_one_that_its_plugin_reads(workdir):
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (path,) = (workdir / "tensorboard" / "train" / "plugins" / "profile").glob("*/*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    assert any(plane.lines for plane in space.planes)


@pytest.mark.slow
def test_a_restore_has_its_receipt_there(workdir, tmp_path):
    again = tmp_path / "again"
    assert main(again, *FLAGS[:-2], f"--init_from={workdir}", "--report_to=none") == 0
    (event,) = read(again / "tensorboard").Tensors("restored")
    text = tensor_util.make_ndarray(event.tensor_proto).item().decode()
    assert text.count("\n") == 1 + 6 and "hidden1/w" in text


def test_the_last_evaluation_keeps_the_worst_images_with_their_own_labels(workdir):
    """Against the file that the split was made from, in whose order it is not."""
    kept = Evaluated.read(workdir / "evaluation.npz")
    made: dict = {"__file__": str(DIGITS)}
    exec(DIGITS.read_text().partition("class Builder")[0], made)  # a second builder TFDS would refuse
    scans, labels = made["read"]()
    known = {made["enlarge"](scan).tobytes(): label for scan, label in zip(scans, labels, strict=True)}
    assert [known[image.tobytes()] for image in kept.images] == kept.labels.tolist()
    assert kept.step == 20 and len(kept.images) == WORST and kept.confusion.sum() == 40
    assert sorted(kept.probability) == kept.probability.tolist() and set(kept.rows) <= set(range(40))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["arrays"]["confusion_matrix"] == kept.confusion.tolist()
    assert [e.step for e in read(workdir / "tensorboard" / "eval").Images("worst_classified")] == [20]
    assert "The worst-classified examples" in (workdir / "report.html").read_text()


def test_the_confusion_matrix_and_the_worst_are_pictures(workdir, tmp_path):
    pytest.importorskip("matplotlib")
    from trainer.flags.config import Config
    from trainer.run.workdir import Workdir

    for name in ("metrics.jsonl", "plan.json"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    Evaluated.of(np.eye(4), np.array([0, 1, 2, 0]), np.full([4, 6, 5], 9, "uint8").__getitem__).write(
        tmp_path
    )
    with Reporter(tmp_path, 20, 10) as reporter:
        assert ending.write_report(Config(), Workdir(tmp_path), reporter, 20) == tmp_path / "report.html"
    found = read(tmp_path / "tensorboard" / "eval")
    (worst,) = found.Images("worst_classified")
    assert (worst.width, worst.height, worst.step) == (8 * 5, 6, 20)
    pixels = tf.io.decode_png(worst.encoded_image_string).numpy()
    assert pixels[:, :20].tolist() == np.full([6, 20, 1], 9).tolist() and not pixels[:, 20:].any()
    (event,) = found.Tensors("worst_classified_as")
    text = tensor_util.make_ndarray(event.tensor_proto).item().decode()
    assert text.splitlines()[2] == "| 0 | 3 | 0.17 | 3 |"  # 1 / (e + 3)
    (matrix,) = found.Images("confusion")
    assert tf.io.decode_png(matrix.encoded_image_string).shape[:2] == (matrix.height, matrix.width)
