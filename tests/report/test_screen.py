import contextlib
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from trainer.errors import UserError
from trainer.report.reporter import Reporter
from trainer.report.screen import Screen

ROOT = Path(__file__).resolve().parents[2]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def train(step, loss=0.5, **more):
    return {
        "step": step,
        "epoch": step / 10,
        "loss": loss,
        "accuracy": 0.25,
        "learning_rate": {"biases": 0.01, "rest": 1e-4},
        "examples_per_second": 12345.6,
        **more,
    }


def lines(workdir):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def curves(directory):
    """{tag: [(step, value)]} as TensorBoard itself reads the directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory))
    found.Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def plain(workdir=None, **more):
    stream = io.StringIO()
    return Reporter(workdir, 100, 10, Screen(stream=stream, **more)), stream


# On a pipe


def test_plain_lines_say_everything_and_hold_no_control_character():
    reporter, stream = plain()
    reporter.note("two\nlines")
    reporter.warn("a \x1b[31mred\x07 name [bold]x[/bold]\r")
    reporter.progress(3, 0.5, {"accuracy": 0.1}, 10.0)
    reporter.log(train(50))
    reporter.evaluation({"step": 50, "loss": 0.125, "accuracy": 0.9912, "examples": 10000})
    reporter.evaluation({"step": 50, "loss": math.nan, "weights": "ema"})
    reporter.summary([("accuracy", 0.9912), ("steps", 100)])
    reporter.close()
    text = stream.getvalue()
    assert not CONTROL.search(text)
    assert text.splitlines() == [
        "two",
        "lines",
        r"warning: a \x1b[31mred\x07 name [bold]x[/bold]\r",
        "epoch 5.00/10  step 50/100  loss 0.5  accuracy 0.25  examples_per_second 12,346"
        "  rates: biases 0.01  rest 0.0001",
        "epoch 5.00/10  step 50/100  evaluation of 10,000 examples: loss 0.125  accuracy 0.9912",
        "epoch 5.00/10  step 50/100  evaluation with averaged weights: loss nan",
        "Summary",
        "what      value",
        "accuracy  0.9912",
        "steps     100",
    ]


def test_a_plain_table_is_aligned_and_not_cut():
    reporter, stream = plain()
    rows = [["conv1/kernel", "[3, 3, 1, 32]", 1e-3, "x" * 200], ["b", "[]", None, "[a-z]*\nb"]]
    reporter.screen.table("Who trains how", ["variable", "shape", "rate", "rule"], rows)
    assert stream.getvalue().splitlines() == [
        "Who trains how",
        "variable      shape          rate   rule",
        "conv1/kernel  [3, 3, 1, 32]  0.001  " + "x" * 200,
        "b             []             None   [a-z]* b",
    ]
    reporter.screen.table("Empty", ["a", "b"], [])
    assert stream.getvalue().splitlines()[-2:] == ["Empty", "a  b"]


def test_a_stream_that_cannot_encode_gets_escapes():
    raw = io.BytesIO()
    reporter = Reporter(None, 1, 1, Screen(stream=io.TextIOWrapper(raw, encoding="ascii")))
    reporter.note("naïve \ud800")
    assert raw.getvalue() == b"na\\xefve \\ud800\n"


SCRIPT = """
import sys
from pathlib import Path
from trainer.report.reporter import Reporter
with Reporter(None, 100, 10) as reporter:
    reporter.screen.table("Title", ["a [b]", "c"], [["[red]x[/red]", 1.5]])
    for step in (10, 20, 100):
        reporter.progress(step, 0.5, {"acc[u]": 0.25}, 1234.0)
        reporter.note(f"noted {step}")
    reporter.summary([("done", 1)])
"""


def run_script(**streams):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "TERM": "xterm"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, **streams)


@pytest.mark.slow
def test_a_real_pipe_and_a_real_terminal_differ_as_they_should():
    ours, theirs = pty.openpty()
    on_pipe = run_script(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    on_terminal = run_script(stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    seen = bytearray()

    def read():
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(ours, 4096):
                seen.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    piped = on_pipe.communicate()[0].decode()
    assert (on_pipe.wait(), on_terminal.wait()) == (0, 0)
    reader.join()
    os.close(ours)
    terminal = seen.decode()

    assert not CONTROL.search(piped) and "ex/s" not in piped
    assert piped.splitlines()[:3] == ["Title", "a [b]         c", "[red]x[/red]  1.5"]
    assert "\x1b[" in terminal and "[red]x[/red]" in terminal and "a [b]" in terminal
    for part in ("epoch 1.00/10", "step 20/100", "acc[u] 0.25", "1,234 ex/s", "noted 100", "0:00:0"):
        assert part in terminal
    # The cursor that the bar hides comes back.
    assert terminal.rindex("\x1b[?25h") > terminal.rindex("\x1b[?25l")


def test_other_workers_say_and_write_nothing(tmp_path):
    reporter, stream = plain(None, quiet=True)
    reporter.trim(0)
    reporter.note("a")
    reporter.warn("b")
    reporter.screen.table("c", ["d"], [["e"]])
    reporter.progress(1, 0.5, {}, 1.0)
    reporter.log(train(1))
    reporter.evaluation({"step": 1, "loss": 1.0})
    reporter.summary([("f", 1)])
    reporter.close()
    assert stream.getvalue() == "" and list(tmp_path.iterdir()) == []


# metrics.jsonl


def test_records_are_json_lines_there_at_once(tmp_path):
    reporter, _ = plain(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    reporter.log(train(10, loss=np.float32(0.5), skipped_steps=np.int64(2)))
    assert lines(tmp_path / "run") == [{"kind": "train", **train(10), "skipped_steps": 2}]
    reporter.evaluation({"step": 10, "loss": math.nan, "a": math.inf, "b": -math.inf})
    assert lines(tmp_path / "run")[1] == {
        "kind": "eval",
        "weights": "raw",
        "step": 10,
        "loss": "NaN",
        "a": "Infinity",
        "b": "-Infinity",
    }
    assert math.isnan(float("NaN")) and float("-Infinity") == -math.inf
    reporter.sync()
    reporter.close()
    reporter.close()


@pytest.mark.parametrize(
    "tail", [b"", b'{"kind": "train", "step": 40, "lo', b"\x00\xff", b'{"step": 4', b"\n"]
)
def test_trim_cuts_back_to_the_step_and_drops_a_torn_line(tmp_path, tail):
    reporter, _ = plain(tmp_path)
    for step in (10, 20, 30):
        reporter.log(train(step))
        reporter.evaluation({"step": step, "loss": 1.0})
    reporter.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    (tmp_path / ".tmp-metrics.jsonl").write_text("left by a kill")
    again, _ = plain(tmp_path)
    assert again.trim(20) == 2 + bool(tail)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:4])
    again.log(train(30))
    assert [r["step"] for r in lines(tmp_path)] == [10, 10, 20, 20, 30]
    assert not (tmp_path / ".tmp-metrics.jsonl").exists()


def test_a_last_line_without_its_end_is_kept_and_ended(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    reporter, _ = plain(tmp_path)
    assert reporter.trim(2) == 0
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}]


def test_trim_where_there_is_nothing(tmp_path):
    assert plain(tmp_path)[0].trim(5) == 0 and plain(None)[0].trim(5) == 0
    assert plain(tmp_path / "new")[0].trim(5) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[1]", "3", "null", '{"step": "1"}', '{"step": true}', "[" * 100000, "{}"])
def test_lines_that_are_no_records_are_dropped(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{text}\n{{"step": 2}}\n')
    assert plain(tmp_path)[0].trim(9) == 1
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text('{"step": 9}\n')
    work = tmp_path / "run"
    work.mkdir()
    for name in ("metrics.jsonl", ".tmp-metrics.jsonl"):
        (work / name).symlink_to(precious)
    with pytest.raises(UserError, match="records of the run"):
        plain(work)[0].log(train(1))
    reporter, _ = plain(work)
    reporter.trim(0)
    reporter.log(train(1))
    assert len(lines(work)) == 1 and precious.read_text() == '{"step": 9}\n'


@pytest.mark.parametrize("blocked", ["metrics.jsonl", "tensorboard"])
def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path, blocked):
    if blocked == "metrics.jsonl":
        (tmp_path / blocked).mkdir()
    else:
        (tmp_path / blocked).write_text("x")
    with pytest.raises(UserError, match=r"cannot be written.*run the same command again"):
        plain(tmp_path)[0].log(train(1))


# TensorBoard


def test_tensorboard_shows_the_curves(tmp_path):
    reporter, _ = plain(tmp_path)
    reporter.trim(0)
    reporter.log(train(10))
    reporter.log(train(20, loss=0.25))
    reporter.evaluation({"step": 20, "loss": 0.75, "accuracy": 0.5, "examples": 100})
    reporter.evaluation({"step": 20, "loss": 0.5, "accuracy": 0.75, "weights": "ema"})
    # Each log point is there at once, before anything is closed.
    assert curves(tmp_path / "tensorboard" / "train") == {
        "loss": [(10, 0.5), (20, 0.25)],
        "accuracy": [(10, 0.25), (20, 0.25)],
        "learning_rate/biases": [(10, 0.01), (20, 0.01)],
        "learning_rate/rest": [(10, 0.0001), (20, 0.0001)],
        "examples_per_second": [(10, 12345.599609), (20, 12345.599609)],
    }
    assert curves(tmp_path / "tensorboard" / "eval") == {"loss": [(20, 0.75)], "accuracy": [(20, 0.5)]}
    assert curves(tmp_path / "tensorboard" / "eval_ema") == {"loss": [(20, 0.5)], "accuracy": [(20, 0.75)]}
    reporter.close()


def test_after_a_resume_tensorboard_drops_what_was_taken_back(tmp_path):
    for start, steps, loss in ((0, (10, 20, 30, 40), 1.0), (20, (30,), 2.0), (30, (40, 50), 3.0)):
        with plain(tmp_path)[0] as reporter:
            reporter.trim(start)
            for step in steps:
                reporter.log(train(step, loss=loss))
    directory = tmp_path / "tensorboard" / "train"
    expected = [(10, 1.0), (20, 1.0), (30, 2.0), (40, 3.0), (50, 3.0)]
    assert curves(directory)["loss"] == expected
    assert [(r["step"], r["loss"]) for r in lines(tmp_path)] == expected
    assert len(list(directory.iterdir())) == 3
