"""docs/tasks.md as it stands: each section's module and flags train, evaluate and predict."""

import re
from pathlib import Path

import pytest

from tests.support.runs import main, newest, records

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "tasks.md").read_text()
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}


def blocks(section, opening):
    return re.findall(rf"^```{opening}(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_runs_word_for_word(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for code in blocks(SECTIONS[name], r"python\n"):
        file = re.match(r"# (models/\w+\.py)\n", code)
        assert file and len(code.splitlines()) < 60
        (tmp_path / file[1]).write_text(code)
    (flags,) = blocks(SECTIONS[name], r"\n(?=--)")
    (tmp_path / "task.flags").write_text(flags)
    brief = ["--train_split=train[:192]", "--train_for=4", "--eval_every=2", data]
    assert main(tmp_path / "run", "--flagfile=task.flags", *brief) == 0
    assert newest(tmp_path / "run").step == 4
    evaluations = [r for r in records(tmp_path / "run") if r["kind"] == "eval"]
    assert len(evaluations) == 2
    if name not in (
        "Contrastive learning",
        "A language model",
    ):  # no plain rows
        predict = ["--mode=predict", "--predict_to=out.csv", "--eval_split=test[:50]"]
        given = [f for f in flags.splitlines() if f.startswith(("--model", "--dataset", "--batch_size"))]
        assert main(tmp_path / "run", *given, data, *predict) == 0
        assert len((tmp_path / "out.csv").read_text().splitlines()) == 51


def test_the_tasks_that_people_look_for_are_there():
    wanted = (
        "classif",
        "several inputs",
        "language model",
        "adversarial",
        "autoencoder",
        "contrast",
        "distil",
        "lora",
        "imbal",
    )
    titles = " ".join(SECTIONS).lower()
    assert [word for word in wanted if word not in titles] == []
