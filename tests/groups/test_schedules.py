"""Schedules against rates worked out by hand (and Keras's own), in float32 and float64."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import UserError
from trainer.flags.durations import Clock
from trainer.groups import schedules

FLAG = "--group"
CLOCK = Clock(examples=1000, batch=10, total=100_000)  # 100 steps an epoch


@pytest.fixture(params=["float32", "float64"])
def floatx(request):
    before = keras.config.floatx()
    keras.config.set_floatx(request.param)
    yield request.param
    keras.config.set_floatx(before)


@pytest.fixture
def float64():
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def make(text, length=100, clock=CLOCK):
    return schedules.build(schedules.check(text, FLAG), clock, length, FLAG)


def rates(schedule, steps):
    """The rates at `steps`, traced once in a tf.function, as a compiled loop would."""
    traced = tf.function(schedule, input_signature=[tf.TensorSpec((), tf.int64)])
    found = [traced(tf.constant(step, tf.int64)) for step in steps]
    assert all(rate.shape == () for rate in found)
    return np.array([rate.numpy() for rate in found])


COS45 = math.sqrt(2) / 2
BY_HAND = [
    ("0.1", {0: 0.1, 99: 0.1, 10**6: 0.1}),
    ("0", {0: 0.0, 99: 0.0}),
    ("constant(0.1)", {0: 0.1, 99: 0.1}),
    ("constant(0.1, warmup=4)", {0: 0, 1: 0.025, 2: 0.05, 3: 0.075, 4: 0.1, 5: 0.1}),
    ("linear(0.1)", {0: 0.1, 25: 0.075, 50: 0.05, 99: 0.001, 100: 0, 500: 0}),
    ("linear(0.1, end=0.02)", {0: 0.1, 50: 0.06, 100: 0.02, 101: 0.02}),
    ("linear(0.1, warmup=20)", {0: 0, 10: 0.05, 20: 0.1, 60: 0.05, 100: 0}),
    ("linear(0, 0.1)", {0: 0, 30: 0.03, 100: 0.1}),
    ("cosine(0.1)", {0: 0.1, 25: 0.05 * (1 + COS45), 50: 0.05, 75: 0.05 * (1 - COS45), 100: 0}),
    ("cosine(0.1, end=0.02)", {0: 0.1, 50: 0.06, 100: 0.02, 10**9: 0.02}),
    ("cosine(0.1, 20)", {0: 0, 5: 0.025, 20: 0.1, 60: 0.05, 100: 0}),
    ("cosine(0.1, warmup=20%)", {0: 0, 5: 0.025, 20: 0.1, 40: 0.05 * (1 + COS45), 100: 0}),
    ("cosine(0.1, warmup=0.2epochs, end=0.02)", {10: 0.05, 20: 0.1, 60: 0.06, 100: 0.02}),
    ("one_cycle(0.1)", {0: 0.004, 15: 0.052, 30: 0.1, 65: 0.050005, 100: 1e-5, 101: 1e-5}),
    ("one_cycle(0.1, warmup=50, start=0, end=0.02)", {0: 0, 25: 0.05, 50: 0.1, 75: 0.06, 100: 0.02}),
    ("one_cycle(0.1, warmup=0, end=0)", {0: 0.1, 50: 0.05, 100: 0}),
    ("exponential(0.1, 10, 0.5)", {0: 0.1, 5: 0.1 / math.sqrt(2), 10: 0.05, 30: 0.0125}),
    ("exponential(0.1, 10, 0.5, staircase=True)", {0: 0.1, 9: 0.1, 10: 0.05, 19: 0.05, 20: 0.025}),
    ("exponential(1e-3, 10_000, 0.96)", {10_000: 0.96e-3, 20_000: 0.9216e-3}),
    ("exponential(0.1, decay_steps=10%, decay_rate=0.5, warmup=4)", {2: 0.05, 4: 0.1, 14: 0.05}),
    ("exponential(0.1, decay_steps=2epochs, decay_rate=0.5)", {200: 0.05, 400: 0.025}),
    ("polynomial(0.1, power=2)", {0: 0.1, 50: 0.025, 90: 0.001, 100: 0, 200: 0}),
    ("polynomial(0.1, 0.02, 0.5, warmup=20)", {10: 0.05, 20: 0.1, 80: 0.06, 100: 0.02}),
    ("inverse_sqrt(0.1, timescale=10)", {0: 0.1, 30: 0.05, 80: 0.1 / 3}),
    ("inverse_sqrt(0.1, 10, warmup=10)", {5: 0.05, 10: 0.1, 40: 0.05}),
    ("inverse_sqrt(0.1)", {0: 0.1, 30_000: 0.05}),
    (
        "piecewise(boundaries=[10, 50%, 1epoch], values=[0.1, 0.05, 0.02, 0.01])",
        {0: 0.1, 10: 0.1, 11: 0.05, 50: 0.05, 51: 0.02, 100: 0.02, 101: 0.01, 10**6: 0.01},
    ),
    (
        "piecewise([10], [0.1, 0.01], warmup=20)",
        {0: 0, 10: 0.05, 20: 0.1, 30: 0.1, 31: 0.01},
    ),
]


@pytest.mark.parametrize(("text", "expected"), BY_HAND, ids=[text for text, _ in BY_HAND])
def test_rates_by_hand(text, expected, floatx):
    found = rates(make(text), expected)
    assert found.dtype == floatx
    tolerance = 1e-15 if floatx == "float64" else 1e-8
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-7, atol=tolerance)
    if floatx == "float64":
        np.testing.assert_allclose(found, list(expected.values()), rtol=1e-13, atol=1e-17)


def test_every_schedule_is_tried_by_hand_with_warmup():
    texts = [text for text, _ in BY_HAND]
    for name, signature in schedules.names().items():
        assert "warmup" in signature and "length" not in signature
        assert any(text.startswith(name + "(") and "warmup=" in text for text in texts)


def test_names_show_what_users_may_write():
    shown = schedules.names()
    assert shown["cosine"] == "cosine(peak, warmup=0, end=0.0)"
    assert shown["one_cycle"] == "one_cycle(peak, warmup=30%, start=peak/25, end=peak/10000)"
    assert set(shown) == {
        *("constant", "linear", "cosine", "one_cycle"),
        *("exponential", "polynomial", "inverse_sqrt", "piecewise"),
    }


@pytest.mark.parametrize(("peak", "end"), [(0.7, 0.0), (0.1, 0.7), (0.7, 1 / 3), (0.1, 0.003)])
def test_a_cosine_meets_its_ends_exactly(peak, end, float64):
    found = rates(make(f"cosine({peak}, warmup=7, end={end!r})", 93), [7, 93, 94, 10**12])
    assert found.tolist() == [peak, end, end, end]


@pytest.mark.parametrize("floatx", ["float64"], indirect=True)
def test_bits_are_those_of_keras_in_float64(floatx):
    # Keras takes a Python float to float32; a NumPy float64 keeps its width.
    peak, keras_schedules = np.float64(1e-3), keras.optimizers.schedules
    pairs = [
        ("cosine(1e-3)", keras_schedules.CosineDecay(peak, 100)),
        (
            "cosine(1e-3, warmup=10)",
            keras_schedules.CosineDecay(np.float64(0), 90, warmup_target=peak, warmup_steps=10),
        ),
        ("exponential(1e-3, 10, 0.96)", keras_schedules.ExponentialDecay(peak, 10, np.float64(0.96))),
        ("linear(1e-3)", keras_schedules.PolynomialDecay(peak, 100, 0.0)),
        (
            "piecewise([5, 20], [1e-3, 1e-4, 0.0])",
            keras_schedules.PiecewiseConstantDecay(
                [np.int64(5), np.int64(20)], [peak, np.float64(1e-4), np.float64(0)]
            ),
        ),
    ]
    steps = range(0, 120, 5)
    for text, reference in pairs:
        assert rates(make(text), steps).tolist() == rates(reference, steps).tolist(), text


def test_steps_beyond_2_to_the_24_stay_apart(float64):
    length, far = 2**30, 2**29 + 1
    assert rates(make("linear(1)", length), [far])[0] == 1 - far / length
    first = 2**25 + 1
    staircase = make(f"exponential(1, {first}, 0.5, staircase=True)", length)
    assert rates(staircase, [first - 1, first]).tolist() == [1, 0.5]


def test_shares_are_of_the_groups_own_length():
    # 10% of the 50 steps that the group trains, not of the 100,000 of the run.
    assert rates(make("constant(1, warmup=10%)", 50), [4, 5]).tolist() == [np.float32(0.8), 1]


def test_warmup_may_fill_the_whole_length():
    found = rates(make("cosine(1, warmup=100%)", 10), range(10))
    np.testing.assert_allclose(found, np.arange(10) / 10, rtol=1e-6)


def test_rates_inside_a_compiled_loop():
    schedule = make("cosine(0.1, warmup=2)", 4)

    @tf.function(input_signature=[tf.TensorSpec((), tf.int64)])
    def total(n):
        result = tf.constant(0.0)
        for step in tf.range(n):
            result += schedule(step)
        return result

    # 0 + 0.05 + 0.1 + 0.05
    np.testing.assert_allclose(total(tf.constant(4, tf.int64)).numpy(), 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-0.1", "rate=-0.1: it must be a finite number"),
        ("nan", "rate=nan"),
        ("inf", "rate=inf"),
        ("cosine(1e999)", "peak=inf"),
        ("cosine(-1e-3)", "peak=-0.001"),
        ("cosine('fast')", "peak='fast'"),
        ("cosine(5%)", "peak=5%"),
        ("cosine(True)", "peak=True"),
        ("cosine(1e-3, end=-1)", "end=-1"),
        ("cosine(1e-3, warmup=-5)", "warmup=-5"),
        ("cosine(1e-3, warmup=0.05)", "warmup=0.05: it must be whole steps"),
        ("cosine(1e-3, warmpu=5)", "Did you mean warmup?"),
        ("cosine(1e-3, length=5)", "no argument length"),
        ("cosine", "peak must be given"),
        ("cosine()", "cosine(peak, warmup=0, end=0.0)"),
        ("cosin(1e-3)", "Did you mean cosine?"),
        ("exponential(1e-3)", "decay_steps and decay_rate must be given"),
        ("exponential(1e-3, 0, 0.96)", "decay_steps=0: it must be at least 1 step"),
        ("exponential(1e-3, 10, 0)", "decay_rate=0: it must be above 0"),
        ("exponential(1e-3, 10, 0.9, staircase='no')", "staircase='no'"),
        ("polynomial(1e-3, power=0)", "power=0"),
        ("inverse_sqrt(1e-3, timescale=0)", "timescale=0"),
        ("piecewise([10, 5], [1, 1, 1])", "later than the one before"),
        ("piecewise([], [1])", "boundaries=[]"),
        ("piecewise(10, [1])", "boundaries=10"),
        ("piecewise([10], [1, -1])", "values=[1, -1]"),
        ("piecewise([10], 1)", "values=1"),
        ("no_such_module_at_all.fn(1)", "no_such_module_at_all cannot be imported"),
        ("math.sqr(1)", "the module math has no sqr. Did you mean"),
        ("math.pi(1)", "holds no function called pi"),
        ("cosine(1e-3", "not readable"),
    ],
)
def test_refused_without_a_clock(text, words):
    with pytest.raises(UserError) as caught:
        schedules.check(text, FLAG)
    assert words in str(caught.value)
    assert str(caught.value).startswith("--group: ") and text in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cosine(1e-3, warmup=101)", "warmup is 101 steps, longer than the 100"),
        ("constant(1e-3, warmup=2epochs)", "warmup is 200 steps, longer than the 100"),
        ("one_cycle(1e-3, warmup=200)", "warmup is 200 steps"),
        ("exponential(1e-3, decay_steps=0.1%, decay_rate=0.9)", "decay_steps=0"),
        ("exponential(1, 1, 1e9)", "the rate at step 50 is inf"),
        ("piecewise([50%, 20], [1, 1, 1])", "later than the one before"),
        ("piecewise([10], [1])", "1 values for 1 boundaries"),
    ],
)
def test_refused_once_the_length_is_known(text, words):
    with pytest.raises(UserError) as caught:
        make(text)
    assert words in str(caught.value) and text in str(caught.value)


def test_epochs_need_the_number_of_examples():
    with pytest.raises(UserError, match=r"--group: 2epochs: .*examples"):
        make("cosine(1e-3, warmup=2epochs)", clock=Clock(None, 10, 100))


def test_a_group_that_never_trains_has_no_schedule():
    with pytest.raises(UserError, match="0 steps"):
        make("cosine(1e-3)", length=0)


CUSTOM = """
import keras
import tensorflow as tf

def sawtooth(peak, period):
    return lambda step: peak * tf.cast(step % period, tf.float64) / period

def plain(rate):
    return lambda step: rate

def table(points):
    assert all(isinstance(step, int) for step in points)
    return lambda step: 0.5

class Halving(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, initial, every=10):
        self.initial, self.every = initial, every
    def __call__(self, step):
        return self.initial / 2.0 ** keras.ops.cast(step // self.every, "float64")

def fails(rate):
    raise KeyError("lost")

def negative(rate):
    return lambda step: -rate

def vector(rate):
    return lambda step: [rate, rate]

def number(rate):
    return rate

def uncast(rate):
    return lambda step: rate * step
"""


@pytest.fixture
def custom(tmp_path, monkeypatch):
    (tmp_path / "my_schedules.py").write_text(CUSTOM)
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_custom_schedules_by_dotted_path(custom, float64):
    # period=20% of 100 steps
    saw = rates(make("my_schedules.sawtooth(0.1, period=20%)"), [0, 5, 19, 25])
    np.testing.assert_allclose(saw, [0, 0.025, 0.095, 0.025], rtol=1e-12)
    assert rates(make("my_schedules.plain(0.1)"), [3]).tolist() == [0.1]
    assert rates(make("my_schedules.Halving(0.1)"), [9, 10, 20]).tolist() == [0.1, 0.05, 0.025]
    assert rates(make("my_schedules.table([1epoch, 5%])"), [0])
    restarts = "keras.optimizers.schedules.CosineDecayRestarts(1.0, first_decay_steps=10%, t_mul=1)"
    np.testing.assert_allclose(rates(make(restarts), [0, 5, 10, 15]), [1, 0.5, 1, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("my_schedules.sawtooth(0.1)", "period must be given"),
        ("my_schedules.sawtooth(0.1, perod=1)", "Did you mean period?"),
        ("my_schedules.sawtoth(0.1)", "Did you mean sawtooth?"),
        ("my_broken.fn(0.1)", "my_broken cannot be imported (ZeroDivisionError"),
        ("my_schedules.fails(0.1)", "the schedule raised KeyError at"),
        ("my_schedules.negative(0.1)", "the rate at step 0 is -0.1"),
        ("my_schedules.vector(0.1)", "one finite number"),
        ("my_schedules.uncast(0.1)", "the step is an int64 tensor"),
        ("my_schedules.number(0.1)", "returned 0.1, not a function"),
    ],
)
def test_custom_schedules_that_cannot_be_used(custom, text, words):
    with pytest.raises(UserError) as caught:
        make(text)
    assert words in str(caught.value) and text in str(caught.value)
