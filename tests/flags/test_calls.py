"""Calls, durations and columns against values written out by hand."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.flags.calls import Call, check_call, parse_call, signature_text, split_columns
from trainer.flags.durations import Clock, Duration, parse_duration

FLAG = "--group"


def refusal(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("500", 500, "steps"),
        ("500steps", 500, "steps"),
        ("1step", 1, "steps"),
        ("1e3", 1000, "steps"),
        ("3epochs", 3, "epochs"),
        ("1epoch", 1, "epochs"),
        ("2.5epochs", 2.5, "epochs"),
        ("20%", 20, "%"),
        ("0.5%", 0.5, "%"),
        ("0", 0, "steps"),
    ],
)
def test_durations_are_read_and_written_back(text, value, unit):
    duration = parse_duration(text, FLAG)
    assert (duration.value, duration.unit) == (value, unit)
    assert parse_duration(str(duration), FLAG) == duration


def test_a_duration_prints_as_it_is_written():
    texts = ["500steps", "1step", "3epochs", "1epoch", "2.5epochs", "20%", "1%", "1234567steps"]
    assert [str(parse_duration(text, FLAG)) for text in texts] == texts


@pytest.mark.parametrize(
    "text",
    ["", "epochs", "-3", "3 epochs", "3weeks", "nan", "inf", "1e999", "1.5", "101%", "5%%", "0x10"],
)
def test_what_is_no_duration_is_refused(text):
    message = refusal(parse_duration, text, "--train_for")
    assert message.startswith("--train_for: ") and text in message


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7", 7),
        ("1epoch", 469),  # 60,000 / 128 = 468.75
        ("3epochs", 1407),  # 1406.25, not 3 x 469
        ("2.5epochs", 1172),  # 1171.875
        ("0.1epochs", 47),  # 46.875
        ("20%", 200),
        ("0.05%", 1),  # 0.5 goes up
        ("0.04%", 0),
    ],
)
def test_durations_become_steps(text, steps):
    assert Clock(60_000, 128, 1000).steps(parse_duration(text, FLAG)) == steps


def test_a_tenth_of_an_epoch_is_a_tenth():
    # In binary 0.1 * 1000 / 10 lies above 10, and its ceiling would be 11.
    assert Clock(1000, 10, None).steps(Duration(0.1, "epochs")) == 10
    assert Clock(10**17 + 1, 10**6, None).steps(Duration(1.0, "epochs")) == 10**11 + 1  # exact


def test_a_length_that_is_not_known_is_refused_only_when_needed():
    clock = Clock(None, 128, None)
    assert clock.steps(Duration(5.0, "steps")) == 5
    assert "3epochs" in refusal(clock.steps, Duration(3.0, "epochs"))
    assert refusal(clock.steps, Duration(3.0, "%"), "--save_every").startswith("--save_every: 3%")


def test_a_call_is_read():
    call = parse_call(" cosine(1e-3, warmup=5%) ", FLAG)
    assert call == Call("cosine", (0.001,), {"warmup": Duration(5.0, "%")}, "cosine(1e-3, warmup=5%)")
    assert parse_call("adamw", FLAG) == Call("adamw", (), {}, "adamw")
    assert parse_call("my.module.fn()", FLAG) == Call("my.module.fn", (), {}, "my.module.fn()")


def test_arguments_are_literals_or_durations():
    call = parse_call(
        "f(-1, +2.5, 'relu', None, True, [1, (2, 3)], {'a': [2epochs]},\n b=1e999, c=-1e-3)", FLAG
    )
    assert call.args == (-1, 2.5, "relu", None, True, [1, (2, 3)], {"a": [Duration(2.0, "epochs")]})
    assert call.kwargs == {"b": math.inf, "c": -0.001}


def test_durations_everywhere_but_in_strings():
    call = parse_call(
        """f(3epochs, (1step), [.5epochs,5%], a="5%", b='it\\'s 1%', c=r"\\d5%", d=1e2steps)""",
        FLAG,
    )
    assert call.args == (
        Duration(3.0, "epochs"),
        Duration(1.0, "steps"),
        [Duration(0.5, "epochs"), Duration(5.0, "%")],
    )
    assert call.kwargs == {
        "a": "5%",
        "b": "it's 1%",
        "c": r"\d5%",
        "d": Duration(100.0, "steps"),
    }


def test_letters_of_several_bytes_do_not_move_a_duration():
    call = parse_call('f("größe 5%", 05%, "\U0001f600", warmup=2epochs)', FLAG)
    assert call.args == ("größe 5%", Duration(5.0, "%"), "\U0001f600")
    assert call.kwargs == {"warmup": Duration(2.0, "epochs")}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f(",
        "f(1))",
        "f(x)",
        "f(1 + 1)",
        "f(g(1))",
        "f(__import__('os').system('true'))",
        "f(*[1])",
        "f(**{'a': 1})",
        "f(a=1, a=2)",
        "f(1)(2)",
        "f[0]",
        "lambda: 0",
        "3epochs",
        "f(5%3)",
        "f(10 % 3)",
        "f(-5%)",
        "f(2epochs3)",
        "f(1.5steps)",
        "f(120%)",
        "f(f'{1}')",
        "f(a:=1)",
        "a-b",
        "f(\x00)",
        "f(" + "(" * 5000 + ")",
    ],
)
def test_what_is_no_call_is_refused(text):
    assert refusal(parse_call, text, FLAG).startswith("--group: ")


def test_a_bare_word_is_offered_in_quotes():
    assert "'relu'" in refusal(parse_call, "mnist_cnn(activation=relu)", "--model")


def example(peak, warmup=0, *, end=0.0):
    """Stands for anything that can be called."""


def bound(text, function=example):
    return check_call(parse_call(text, FLAG), function, "schedule", FLAG)


def test_arguments_are_bound_by_name():
    assert bound("example(1, 2, end=3)") == {"peak": 1, "warmup": 2, "end": 3}
    assert bound("example(peak=1)") == {"peak": 1}
    assert bound("f(1, b=2)", lambda a, **rest: None) == {"a": 1, "b": 2}
    assert bound("Call('x', text='y')", Call) == {"name": "x", "text": "y"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("example(1, warmpu=2)", ["no argument warmpu", "Did you mean warmup?"]),
        ("example(1, zzz=2)", ["no argument zzz", "There is: end, peak, warmup."]),
        ("example(warmup=2)", ["peak must be given"]),
        ("example(1, 2, 3)", ["at most 2 arguments"]),
        ("example(1, peak=2)", ["peak is given twice"]),
    ],
)
def test_wrong_arguments_are_refused_with_the_signature(text, words):
    message = refusal(bound, text)
    for word in [*words, text, "example(peak, warmup=0, *, end=0.0)"]:
        assert word in message


def test_surplus_arguments_are_not_swallowed():
    assert "no arguments" in refusal(bound, "f(1)", lambda *args: None)


def test_a_signature_has_no_annotations():
    import inspect

    def annotated(rate: float, warmup: int = 0) -> float:
        return rate

    assert signature_text("f", inspect.signature(annotated)) == "f(rate, warmup=0)"


def test_columns():
    line = ".*/(bias|gamma)   sgd(momentum=0.9, name='a b')  cosine(1e-3, warmup=5%) name=rest"
    assert split_columns(line, FLAG) == [
        ".*/(bias|gamma)",
        "sgd(momentum=0.9, name='a b')",
        "cosine(1e-3, warmup=5%)",
        "name=rest",
    ]
    assert split_columns("", FLAG) == []
    assert split_columns("\ta\n b ", FLAG) == ["a", "b"]
    assert split_columns(r"a\(b frozen", FLAG) == [r"a\(b", "frozen"]
    assert split_columns("f(x=')') g([1, (2)])", FLAG) == ["f(x=')')", "g([1, (2)])"]


@pytest.mark.parametrize("text", ["f(1", "f(1))", "f([1)]", "f('a)", "]", "a {"])
def test_unbalanced_columns_are_refused(text):
    assert text in refusal(split_columns, text, FLAG)


def test_tensorflow_is_not_imported():
    code = "import sys, trainer.flags.calls; sys.exit('tensorflow' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
