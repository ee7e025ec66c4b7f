"""The page of a run: what it shows, what it escapes, and what it does where files are missing or damaged."""

import html.parser
import json
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from trainer.report import images, page
from trainer.report.charts import COLOURS
from trainer.report.compare import Comparison
from trainer.report.evaluated import SIDE, WORST, Evaluated
from trainer.report.history import History
from trainer.report.pictures import of_run

HOSTILE = '</pre><script src="http://x.example/a.js">alert(1)</script><img onerror=alert(1) src=x>'


class Elements(html.parser.HTMLParser):
    """All start tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def left_behind(workdir, name="loss", group="encoder", flags=("--seed=1",), steps=range(10, 60, 10)):
    """A working directory as a run leaves it; `loss` is 10 / step."""
    workdir.mkdir(exist_ok=True)
    lines = []
    for step in steps:
        more = {"learning_rate": {group: 1e-3}, "update_ratio": {group: 0.01}, "examples_per_second": 5.0}
        lines.append({"kind": "train", "step": step, name: 10 / step, "epoch": 1.0, **more})
    lines.append({"kind": "eval", "weights": "raw", "step": 50, name: 0.25, "examples": 7})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    owned = {"optimizer": "adam", "schedule": group, "start": 0, "stop": None, "variables": [group]}
    plan = {"total": 50, "model": group, "groups": {group: owned}, "phases": [[0, 25, [group]], [25, 50, []]]}
    (workdir / "plan.json").write_text(json.dumps(plan))
    (workdir / "environment.json").write_text(json.dumps({"data": group}))
    (workdir / "flags.txt").write_text("\n".join(flags))
    variable = {"name": group, "restored": True, "source": "a/b", "rule": "same name", "before": "0" * 64}
    (workdir / "restore.json").write_text(json.dumps({"source": group, "variables": [variable]}))
    return workdir


def written(workdir):
    path = page.write(History.read(workdir), workdir / "report.html")[0]
    return path.read_text()


def test_only_what_is_an_image_is_shown_as_one(tmp_path):
    source = images.source(images.png(np.arange(12, dtype="uint8").reshape(2, 2, 3)))
    workdir = left_behind(tmp_path / "run")
    arrays = {HOSTILE: source, "other": source + '"><script>', "line": "data:image/svg+xml;base64,AAAA"}
    record = {"kind": "eval", "weights": "raw", "step": 50, "loss": 1.0, "arrays": arrays}
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    found = [tag for tag in Elements(written(workdir)).tags if tag[0] in ("img", "script")]
    assert found == [("img", {"alt": HOSTILE, "src": source})]


def test_a_page_shows_what_the_run_left(tmp_path):
    text = written(left_behind(tmp_path / "run"))
    shown = Elements(text).text
    for part in ("Curves", "50 of 50", "0.25", "encoder", "Restored: ", "a/b", "--seed=1", "The plan"):
        assert part in shown, part
    assert text.count("<svg") == len(of_run(History.read(tmp_path / "run"))) == 5
    assert "Confusion" not in shown


def test_every_colour_of_a_chart_is_one_of_the_style_sheet_in_light_and_dark(tmp_path):
    text = written(left_behind(tmp_path / "run"))
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", text))
    for name in used:
        assert text.count(f"--{name}:#") == 2, name
    assert {"fg", "grid", "band", "s0"} <= used <= {*COLOURS, "bg"}
    assert not re.search(r"#fe01[0-9a-f]{2}", text)


def test_ids_of_the_charts_are_there_once_and_what_refers_to_them_finds_them(tmp_path):
    text = written(left_behind(tmp_path / "run"))
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) > 10
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) <= set(ids)


def test_whatever_comes_from_files_is_text(tmp_path):
    """Names, flags, classes: a browser would run and load nothing of it."""
    workdir = left_behind(tmp_path / "run", name=HOSTILE, group=HOSTILE, flags=(HOSTILE,))
    logits, labels = np.eye(3), np.arange(3)
    Evaluated.of(logits, labels, np.zeros([3, 4, 4], "uint8").__getitem__, (HOSTILE, "b", "c")).write(workdir)
    page_of_one = written(workdir)
    both = Comparison(
        [History.read(workdir), History.read(left_behind(tmp_path / HOSTILE.replace("/", "-")))]
    )
    compared = page.write_comparison(both, tmp_path / "both.html")[0].read_text()
    for text in (page_of_one, compared):
        elements = Elements(text)
        assert "alert(1)" in elements.text
        for tag, attributes in elements.tags:
            assert tag not in ("script", "link", "iframe", "object", "base"), tag
            assert not any(name.startswith("on") for name in attributes)
            target = attributes.get("src") or attributes.get("href") or attributes.get("xlink:href") or "#"
            assert target.startswith(("data:image/png;base64,", "#")), target


@pytest.mark.slow(but=5)
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "plan.json", "restore.json", "evaluation.npz", "flags.txt"]
)
@pytest.mark.parametrize("data", [b"", b"\x00\xff{", b"[1]", b"[" * 100_000, b'{"step": 1}', b"null", None])
def test_a_damaged_file_costs_its_part_alone(tmp_path, name, data):
    workdir = left_behind(tmp_path / "run")
    (workdir / name).unlink(missing_ok=True)
    if data is not None:
        (workdir / name).write_bytes(data)
    assert "</html>" in written(workdir)


@pytest.mark.parametrize("values", ['"NaN"', '"Infinity"', "-1", "0", "1e308", "null", "[]", '"x"', "true"])
def test_any_number_can_be_drawn(tmp_path, values):
    workdir = left_behind(tmp_path / "run")
    lines = [
        f'{{"kind": "train", "step": {s}, "loss": {values}, "learning_rate": {{"a": {values}}}}}'
        for s in (1, 2)
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    assert "</html>" in written(workdir)


@pytest.mark.slow
def test_a_long_run_with_many_groups_makes_a_small_page(tmp_path):
    workdir = left_behind(tmp_path / "run")
    groups = {f"block{i}": 1e-3 * (i + 1) for i in range(40)}
    record = {"kind": "train", "loss": 1.0, "learning_rate": groups, "update_ratio": groups}
    lines = [json.dumps({**record, "step": step, "gradient_norm": groups}) for step in range(1, 5001)]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    images = np.random.default_rng(0).integers(0, 255, [200, 300, 300, 3]).astype("uint8")
    Evaluated.of(np.random.default_rng(0).random([200, 100]), np.arange(200) % 100, images.__getitem__).write(
        workdir
    )
    assert len(written(workdir)) < 3_000_000


def test_the_settings_of_matplotlib_stay_as_they_were(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    written(left_behind(tmp_path / "run"))
    assert dict(matplotlib.rcParams) == before


def test_pngs_lie_beside_the_page(tmp_path):
    workdir = left_behind(tmp_path / "run")
    found = page.write(History.read(workdir), workdir / "x.html", png=True)
    assert {path.name for path in found} >= {
        "x.html",
        "x-metric0.png",
        "x-timeline.png",
        "x-update_ratio.png",
    }
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in found[1:])


# What an evaluation keeps


def test_what_is_kept_of_an_evaluation_by_hand():
    logits = np.log([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.5, 0.1, 0.4]])
    labels = np.array([0, 1, 1, 2, 2])
    images = np.arange(5 * 4).reshape(5, 2, 2).astype("uint8")
    kept = Evaluated.of(logits, labels, images.__getitem__, ("a", "b", "c"), 9)
    assert kept.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    assert kept.rows.tolist() == [1, 4, 3, 0, 2]
    assert kept.probability == pytest.approx([0.3, 0.4, 0.6, 0.7, 0.8])
    assert (kept.labels.tolist(), kept.predicted.tolist()) == ([1, 2, 2, 0, 1], [0, 0, 2, 0, 1])
    assert kept.images[:, 0, 0, 0].tolist() == [4, 16, 12, 0, 8]
    rows = {name: values for name, *values in kept.per_class()}
    assert rows["a"] == pytest.approx([1, 1 / 3, 1, 0.5])
    assert rows["b"] == pytest.approx([2, 1, 0.5, 2 / 3])
    assert rows["c"] == pytest.approx([2, 1, 0.5, 2 / 3])


def test_what_is_kept_comes_back_and_is_bounded(tmp_path):
    random = np.random.default_rng(0)
    images = random.random([500, 250, 130, 3])
    kept = Evaluated.of(random.random([500, 7]), random.integers(0, 7, 500), images.__getitem__)
    kept.write(tmp_path)
    again = Evaluated.read(tmp_path / "evaluation.npz")
    assert (
        len(again.rows) == WORST and again.images.shape[0] == WORST and max(again.images.shape[1:3]) <= SIDE
    )
    for name, value in vars(kept).items():
        assert np.array_equal(np.asarray(value), np.asarray(getattr(again, name))), name
    assert again.confusion.sum() == 500


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.ones([4]), np.ones(4, int)),
        (np.ones([4, 2]), np.ones(4)),
    ],
)
def test_what_is_no_classifier_keeps_nothing(logits, labels):
    assert Evaluated.of(logits, labels) is None


def test_an_example_whose_label_is_no_class_counts_nothing():
    logits = np.log([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9]])
    kept = Evaluated.of(
        logits, np.array([-1, 0, 1]), np.arange(3 * 4, dtype="uint8").reshape(3, 2, 2).__getitem__
    )
    assert kept.confusion.tolist() == [[0, 1], [0, 1]]
    assert kept.rows.tolist() == [1, 2] and kept.images[:, 0, 0, 0].tolist() == [4, 8]


def test_a_file_of_other_arrays_is_none(tmp_path):
    path = tmp_path / "evaluation.npz"
    kept = Evaluated.of(np.eye(3), np.arange(3))
    for change in (
        {"labels": np.array([0, 1, 9])},
        {"confusion": np.zeros([2, 2])},
        {"rows": np.zeros([99])},
    ):
        arrays = {n: v for n, v in {**vars(kept), **change}.items() if v is not None}
        np.savez(path, **arrays)
        assert Evaluated.read(path) is None
    np.savez(path, classes=np.array([{}], object))
    assert Evaluated.read(path) is None


# Several runs


def test_runs_are_compared_by_final_numbers_and_by_the_flags_that_differ(tmp_path):
    one = left_behind(
        tmp_path / "one", flags=("--seed=1", "--group=a adam 1", "--group=b sgd 1", "--workdir=x")
    )
    two = left_behind(
        tmp_path / "two", flags=("--seed=1", "--group=a adam 2", "--group=b sgd 1", "--ema=0.9")
    )
    compared = Comparison([History.read(one), History.read(two)])
    assert compared.finals() == (
        ["run", "step", "loss"],
        [["one", "50 of 50", 0.25], ["two", "50 of 50", 0.25]],
    )
    columns, rows = compared.differing()
    assert columns == ["flag", "one", "two"]
    assert rows == [["--group", "a adam 1", "a adam 2"], ["--ema", "-", "0.9"]]


def test_runs_of_one_name_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        left_behind(tmp_path / parent / "run")
    runs = [History.read(tmp_path / parent / "run") for parent in ("a", "b")]
    assert Comparison(runs).names == ["a/run", "b/run"]
