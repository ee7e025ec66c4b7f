"""The bar on terminals of several kinds: its line fits, groups are below it, a dumb one gets plain lines."""

import io
import os
import re

import pytest

from trainer.report.reporter import Reporter
from trainer.report.screen import Screen

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
RECORD = {
    "step": 12_300,
    "loss": 0.0123456,
    "learning_rate": {"encoder": 1e-3, "a_group_of_a_long_name": 5e-5},
    "update_ratio": {"encoder": 0.00123, "a_group_of_a_long_name": 2e-6},
}


def shown(monkeypatch, columns, **more):
    """Lines that a long run's bar leaves on a terminal of so many columns, without colours."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    stream = io.StringIO()
    reporter = Reporter(None, 1_234_567, 10_000, Screen(interactive=True, stream=stream))
    reporter.show_groups = more.get("show_groups", False)
    reporter.log(RECORD)
    metrics = {"accuracy": 0.98765432, "a_metric_of_a_very_long_name": 1.0, "f1": 0.5}
    for step in (12_345, 123_456):
        reporter.progress(step, 0.0123456, metrics, 1_234_567.8)
    reporter.close()
    text = CONTROL.sub("\n", stream.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_the_bar_is_one_line_that_fits(monkeypatch, columns):
    lines = shown(monkeypatch, columns)
    assert max(map(len, lines)) <= columns
    (last,) = {line for line in lines if "step 123456/1234567" in line} or {""}
    assert "loss 0.01235" in last or columns < 80
    if columns == 80:
        assert "1,234,568 ex/s" in last and "very_long" not in last
    if columns == 200:
        assert "epoch 12.35/123.5" in last and "accuracy 0.9877" in last and "f1 0.5" in last


def test_groups_stand_below_the_bar_on_request(monkeypatch):
    lines = shown(monkeypatch, 80, show_groups=True)
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert ["group", "rate", "update/weights"] in rows and ["encoder", "0.001", "0.0012"] in rows
    assert not any("update/weights" in line for line in shown(monkeypatch, 80))


def test_a_pipe_gets_the_groups_in_its_lines():
    stream = io.StringIO()
    reporter = Reporter(None, 20_000, 10, Screen(stream=stream))
    reporter.show_groups = True
    reporter.log(RECORD)
    assert "updates over weights: encoder 0.00123" in stream.getvalue()


@pytest.mark.parametrize(("term", "draws"), [("dumb", False), ("unknown", False), ("xterm", True)])
def test_a_dumb_terminal_gets_plain_lines(monkeypatch, term, draws):
    monkeypatch.setenv("TERM", term)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stream:
        assert Screen(stream=stream).terminal is draws
    os.close(ours)


def test_no_color_is_heeded(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    Screen(interactive=True, stream=stream).warn("careful")
    assert (
        not re.search(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])m", stream.getvalue()) and "careful" in stream.getvalue()
    )
