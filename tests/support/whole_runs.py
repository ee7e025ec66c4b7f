"""What the tests of run share."""

import contextlib
import io
import json

import run
from tests.support.runs import last
from trainer.readers import open_source

EXAMPLES, TESTED, BATCH = 1437, 360, 128  # of digits


BIASES = "--group=.*/b  sgd(momentum=0.9)  linear(0.02)  name=biases"


REST = "--group=.*  adamw(weight_decay=1e-3)  exponential(1e-3, 10, 0.5)  name=rest from=5"


def main(*arguments):
    """(exit status, standard output, standard error); no stream is a terminal."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = run.main(["run.py", *last(*map(str, arguments))])
    return status, out.getvalue(), err.getvalue()


def records(workdir, kind):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def weights(workdir):
    source = open_source(str(workdir), "raw")
    return {name: source.read(name) for name in source.specs}
