"""`--mode=report`, the page at the end of a run, and where to look next."""

import shlex

import pytest

pytest.importorskip("matplotlib")

from tests.support import runs
from tests.support.runs import main
from trainer.flags.command_line import parse

SMALL = (*runs.SMALL, "--report_to=")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "a b"
    assert main(path, *SMALL) == 0
    return path


def refused(capsys, *flags):
    assert main(None, "--mode=report", *flags) == 1
    return capsys.readouterr().err


@pytest.mark.slow
def test_a_run_leaves_a_page_that_the_mode_writes_again(workdir, capsys):
    first = (workdir / "report.html").read_text()
    assert all(
        part in first for part in ("late", "early", "averaged weights", "What ran on what", "tensorflow")
    )
    before = {
        path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.suffix not in (".html", ".png")
    }
    assert main(workdir, "--mode=report") == 0
    assert (workdir / "report.html").read_text() == first
    assert len(list(workdir.glob("report-*.png"))) > 5
    assert f"Report: {workdir}/report.html" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.slow
def test_what_is_said_at_the_end_can_be_pasted(tmp_path, capsys):
    path = tmp_path / "a b"
    assert main(path, *SMALL, "--report_to=none") == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.partition("Next\n")[2].splitlines())
    assert not (path / "report.html").exists() and "report" not in rows
    for what in ("train on", "export"):
        words = shlex.split(rows[what])
        config = parse(words[words.index("trainer") if "trainer" in words else 1 :])
        assert config.workdir == str(path)


@pytest.mark.slow
def test_several_runs_on_one_page_and_as_a_table(workdir, tmp_path, capsys):
    other = tmp_path / "other"
    assert main(other, *SMALL, "--seed=5", "--report_to=none") == 0
    capsys.readouterr()
    to = tmp_path / "both.html"
    flags = [f"--runs={workdir}", f"--runs={other}", f"--report_to={to}"]
    assert main(None, "--mode=report", *flags) == 0
    shown = capsys.readouterr().out
    assert "Final numbers" in shown and "a b" in shown and "other" in shown
    (seed,) = [line.split() for line in shown.splitlines() if line.startswith("--seed")]
    assert seed == ["--seed", "-", "5"]
    assert "Flags that differ" in to.read_text()


def test_what_cannot_be_reported_is_refused(workdir, tmp_path, capsys):
    assert "--runs: where is the page to go" in refused(capsys, f"--runs={workdir}")
    assert "of which run" in refused(capsys)
    assert "--report_to=none" in refused(capsys, f"--workdir={workdir}", "--report_to=none")
    assert (
        "name it as one more"
        in refused(capsys, f"--workdir={workdir}", f"--runs={workdir}", "--report_to=x").lower()
    )
    missing = refused(capsys, f"--workdir={workdir.parent / 'a c'}")
    assert "no run has left anything there" in missing and "a b" in missing
    (tmp_path / "dir").mkdir()
    assert "cannot be written" in refused(capsys, f"--workdir={workdir}", f"--report_to={tmp_path / 'dir'}")


@pytest.mark.slow
def test_a_report_that_fails_is_a_warning(tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise ValueError("no such luck")

    monkeypatch.setattr("trainer.report.charts.svgs", broken)
    assert main(tmp_path / "run", *SMALL) == 0
    shown = capsys.readouterr().out
    assert "could not be written: ValueError: no such luck" in shown and "Next" in shown


def test_a_run_that_fails_leaves_its_page_too(tmp_path, capsys):
    flags = ("--model=mnist_mlp(hidden=8)", "--dataset=digits", "--eval_split=none", "--train_for=9")
    assert main(tmp_path / "run", *flags, "--log_every=1", "--group=.* sgd 1e30") == 1
    assert "is not finite" in capsys.readouterr().err
    assert "of 9</b>steps" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--profile=5",), "not two steps"),
        (("--profile=9:5",), "not two steps"),
        (("--profile=5:900",), "the run has 15 steps"),
        (("--mode=evaluate", "--histograms"), "has no effect with --mode=evaluate"),
        (("--runs=x",), "has no effect with --mode=train"),
    ],
)
def test_flags_that_say_nothing_are_refused(tmp_path, capsys, flags, message):
    assert main(tmp_path / "run", *SMALL, *flags) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
