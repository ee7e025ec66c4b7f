"""Patterns of users: none is matched for ever, and those that are harmless are not refused."""

import time

import pytest

from trainer.errors import UserError
from trainer.flags.patterns import check_bounded, compiled, few_ways

NAMES = ["a" * 300, "block_1/conv/kernel", "head/bias"]
ENDLESS = ["(a+)+b", "(a|a)" * 30 + "b", "a?" * 30 + "a" * 30 + "b"]
HARMLESS = [
    ".*",
    r"(\w+/)*kernel",
    "(block_[0-9]+/)+.*",
    "(.*/)?(bias|gamma|beta)",
    "(a+)+",
    ".*a.*a.*",
    "[(]+[*]",
]


def tried(pattern, flag="--group=x"):
    check_bounded([(flag, compiled(pattern, flag))], NAMES)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_without_end_is_refused_in_seconds(pattern):
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        tried(pattern, f"--no_decay={pattern}")
    message = str(caught.value)
    assert message.startswith(f"--no_decay={pattern}: the pattern {pattern!r} takes more than 1 s on 3 names")
    assert time.process_time() - began < 1  # the seconds are the other process's


@pytest.mark.parametrize("pattern", HARMLESS)
def test_a_harmless_pattern_is_none_of_these(pattern):
    tried(pattern)


def test_the_pattern_that_is_at_fault_is_named():
    patterns = [(f"--init_only={p}", compiled(p, "")) for p in (r"(\w+/)*kernel", "(a+)+b", ".*")]
    with pytest.raises(UserError, match=r"^--init_only=\(a\+\)\+b: "):
        check_bounded(patterns, NAMES)


def test_ordinary_patterns_start_no_process(monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a process was started"))
    for pattern in (
        ".*",
        "conv1/.*",
        ".*/(gamma|beta|bias)",
        r"block_\d+/.*",
        "enc.*/[a-z]+/kernel",
        "((a))",
    ):
        assert few_ways(pattern)
        tried(pattern)


@pytest.mark.parametrize("pattern", ["(", "*", "[", "a{99999999999}", "(" * 5000, "(?R)", "\\"])
def test_what_is_no_pattern(pattern):
    with pytest.raises(UserError, match=r"--init_skip=.*not a regular expression"):
        compiled(pattern, "--init_skip=x")
