"""Learning rates: `cosine(1e-3, warmup=5%)` becomes a pure function of the step.

Each schedule is a function below; its signature is what users write and what their arguments are
checked against. Steps count from the start of the group; `length`, which users never write, is the
number of steps the group trains. With `warmup`, the rate rises linearly from 0 to the schedule's
first rate over that many steps, and then the schedule starts, with what is left of `length`.
Durations may stand wherever steps do; here `%` is a share of `length`.

Everything is computed in float64 and cast to `keras.config.floatx()` at the end, so that steps
beyond 2**24 stay apart. The shapes are `keras.optimizers.schedules` where Keras has them; they get
their numbers as `np.float64`, because Keras takes a Python float to float32 first.
"""

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_type_hints

import keras
import numpy as np
import tensorflow as tf

from trainer.errors import UserError, blame, message_of, near
from trainer.flags.calls import Call, check_call, parse_call, signature_of, signature_text
from trainer.flags.durations import Clock, Duration
from trainer.groups.schedule_arguments import (
    Boundaries,
    Period,
    Positive,
    Rate,
    Rates,
    Steps,
    Switch,
)

Schedule = Callable[[tf.Tensor], tf.Tensor]


class _PeakOver(int):
    """A default that depends on `peak`, shown in signatures as what it is."""

    def __repr__(self) -> str:
        return f"peak/{int(self)}"


def constant(rate: Rate, warmup: Steps = 0, *, length: int) -> Schedule:
    """The same rate throughout. A bare number is short for it."""
    return _warmed(warmup, lambda step: tf.constant(rate, tf.float64))


def linear(initial: Rate, end: Rate = 0.0, warmup: Steps = 0, *, length: int) -> Schedule:
    """A straight line from `initial` to `end`."""
    return polynomial(initial, end, 1.0, warmup, length=length)


def cosine(peak: Rate, warmup: Steps = 0, end: Rate = 0.0, *, length: int) -> Schedule:
    """Half a cosine from `peak` down to `end` (Loshchilov & Hutter 2017, without restarts)."""
    return _warmed(warmup, _half_cosine(peak, end, length - warmup))


def one_cycle(
    peak: Rate,
    warmup: Steps = Duration(30.0, "%"),  # type: ignore[assignment]  # noqa: B008 (it is frozen)
    start: Rate = _PeakOver(25),  # noqa: B008
    end: Rate = _PeakOver(10_000),  # noqa: B008
    *,
    length: int,
) -> Schedule:
    """Half a cosine from `start` up to `peak` over `warmup`, and half a cosine down to `end`.

    Smith & Topin 2018, in the two-phase form of fastai.
    """
    start, end = (peak / x if isinstance(x, _PeakOver) else x for x in (start, end))
    up = _half_cosine(start, peak, warmup)
    down = _half_cosine(peak, end, length - warmup)
    return lambda step: tf.where(step < warmup, up(step), down(tf.maximum(step - warmup, 0)))


def exponential(
    initial: Rate,
    decay_steps: Period,
    decay_rate: Positive,
    staircase: Switch = False,
    warmup: Steps = 0,
    *,
    length: int,
) -> Schedule:
    """`initial * decay_rate ** (step / decay_steps)`; `staircase` rounds the exponent down."""
    decay = keras.optimizers.schedules.ExponentialDecay
    return _warmed(warmup, decay(np.float64(initial), decay_steps, np.float64(decay_rate), staircase))


def polynomial(
    initial: Rate, end: Rate = 0.0, power: Positive = 1.0, warmup: Steps = 0, *, length: int
) -> Schedule:
    """`(initial - end) * (1 - step / length) ** power + end`."""
    decay = keras.optimizers.schedules.PolynomialDecay
    rates = np.float64(initial), max(1, length - warmup), np.float64(end), np.float64(power)
    return _warmed(warmup, decay(*rates))


def inverse_sqrt(peak: Rate, timescale: Period = 10_000, warmup: Steps = 0, *, length: int) -> Schedule:
    """`peak / sqrt(1 + step / timescale)`; with timescale = warmup, that of Vaswani et al. 2017."""
    return _warmed(warmup, lambda step: peak / tf.sqrt(1.0 + tf.cast(step, tf.float64) / timescale))


def piecewise(boundaries: Boundaries, values: Rates, warmup: Steps = 0, *, length: int) -> Schedule:
    """`values[0]` up to and including step `boundaries[0]`, then `values[1]`, and so on, as Keras.

    Like every schedule it starts after `warmup`: the boundaries count from there.
    """
    if len(values) != len(boundaries) + 1:
        raise ValueError(
            f"there are {len(values)} values for {len(boundaries)} boundaries; "
            f"there must be one value more than boundaries"
        )
    decay = keras.optimizers.schedules.PiecewiseConstantDecay
    return _warmed(warmup, decay([np.int64(b) for b in boundaries], [np.float64(v) for v in values]))


_SCHEDULES = (
    constant, linear, cosine, one_cycle, exponential, polynomial, inverse_sqrt, piecewise
)  # fmt: skip


def names() -> dict[str, str]:
    """`{name: signature}` of every schedule, as users write it."""
    return {f.__name__: signature_text(f.__name__, _signature(f)) for f in _SCHEDULES}


def check(text: str, flag: str) -> Call:
    """Reads a schedule and checks all that needs no clock: name, arguments, rates.

    `text` is a number or a call; a dotted name is a function (or class) outside the framework,
    which is imported to check the arguments against its signature.

    Returns:
      The call, its arguments by name.

    Raises:
      UserError: naming `flag`, the text and what is wrong with it.
    """
    try:
        call = Call("constant", (float(text),), {}, text)
    except ValueError:
        call = parse_call(text, flag)
    function = _function(call, flag)
    bound = check_call(call, _signature(function), "schedule", flag)
    _valid(function, bound, call, flag)
    return replace(call, args=(), kwargs=bound)


def build(call: Call, clock: Clock, length: int, flag: str) -> Schedule:
    """The schedule of a checked call, for a group that trains `length` steps.

    A custom schedule is called with its arguments, durations as steps, and returns a function of
    the step; `decay_steps=100%` hands it the length.

    Returns:
      A pure function, traceable in a `tf.function`: the step since the group's start (int64 scalar
      tensor) -> the learning rate (scalar tensor in `keras.config.floatx()`).

    Raises:
      UserError: an argument that does not fit the length, a custom schedule that fails, or a rate
        that is negative or not finite at the first, middle or last step.
    """
    if length < 1:
        raise UserError(f"{flag}: {call.text}: the group trains for {length} steps.")
    function = _function(call, flag)
    signature = _signature(function)
    values = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
    values = _resolved(values | call.kwargs, replace(clock, total=length), flag)
    values = _valid(function, values, call, flag)
    if function in _SCHEDULES:
        if values["warmup"] > length:
            raise UserError(
                f"{flag}: {call.text}: warmup is {values['warmup']} steps, longer than the "
                f"{length} that the group trains."
            )
        values["length"] = length
    try:
        rate = _cast(function(**values), keras.config.floatx())
        _try(rate, length)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A custom schedule may raise anything.
        hint = " (the step is an int64 tensor)" if isinstance(error, TypeError) else ""
        what = message_of(error) if isinstance(error, ValueError) else f"the schedule {blame(error)}{hint}"
        raise UserError(f"{flag}: {call.text}: {what.removesuffix('.')}.") from error
    return rate


def _half_cosine(first: float, last: float, steps: int) -> Schedule:
    """From `first` at step 0 to `last` at `steps`, both exactly, and `last` ever after."""
    decay = keras.optimizers.schedules.CosineDecay(np.float64(1.0), max(1, steps))

    def rate(step: tf.Tensor) -> tf.Tensor:
        share = decay(step)
        return first * share + last * (1.0 - share)

    return rate


def _warmed(warmup: int, schedule: Schedule) -> Schedule:
    """`schedule`, begun after `warmup` steps of a line from 0 to its first rate."""
    if not warmup:
        return schedule

    def rate(step: tf.Tensor) -> tf.Tensor:
        ramp = tf.minimum(tf.cast(step, tf.float64) / warmup, 1.0)
        return ramp * schedule(tf.maximum(step - warmup, 0))

    return rate


def _cast(schedule: Schedule, dtype: str) -> Schedule:
    if not callable(schedule):
        raise ValueError(f"it returned {schedule!r}, not a function of the step")

    def rate(step: tf.Tensor) -> tf.Tensor:
        value = schedule(step)
        # A Python number goes to dtype at once: tf.cast would take it through float32.
        return tf.cast(value, dtype) if tf.is_tensor(value) else tf.convert_to_tensor(value, dtype)

    return rate


def _try(rate: Schedule, length: int) -> None:
    """Raises ValueError if the rate is unusable at the first, the middle or the last step."""
    for step in sorted({0, length // 2, length - 1}):
        with tf.init_scope():  # eager, wherever the caller is
            value = rate(tf.constant(step, tf.int64)).numpy()
        if value.shape or not math.isfinite(value) or value < 0:
            raise ValueError(f"the rate at step {step} is {value}; it must be one finite number, 0 or more")


def _function(call: Call, flag: str) -> Callable[..., Any]:
    """The schedule's function, or what a dotted name stands for."""
    for function in _SCHEDULES:
        if function.__name__ == call.name:
            return function
    module, _, attribute = call.name.rpartition(".")
    where = f"{flag}: {call.text}"
    if not module:
        known = [f.__name__ for f in _SCHEDULES]
        raise UserError(f"{where}: no schedule is called {call.name}. {near(call.name, known)}")
    try:
        imported = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # Importing runs the user's module: it may raise anything.
        raise UserError(
            f"{where}: {module} cannot be imported ({blame(error).removeprefix('raised ')}). "
            "Its folder must be the working directory or on PYTHONPATH."
        ) from error
    found = getattr(imported, attribute, None)
    if not callable(found):
        what = "has no" if found is None else "holds no function called"
        hint = near(attribute, vars(imported))
        raise UserError(f"{where}: the module {module} {what} {attribute}. {hint}")
    return found


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """What users may write: of our own schedules, all but `length`."""
    signature = signature_of(function)
    if function not in _SCHEDULES:
        return signature
    shown = [p for p in signature.parameters.values() if p.name != "length"]
    return signature.replace(parameters=shown)


def _valid(function: Callable[..., Any], values: dict[str, Any], call: Call, flag: str) -> dict[str, Any]:
    """`values` as their kinds make them; those of a custom schedule are its own affair."""
    if function not in _SCHEDULES:
        return values
    kinds = get_type_hints(function, include_extras=True)
    valid = {}
    for name, value in values.items():
        try:
            keep = isinstance(value, _PeakOver)
            valid[name] = value if keep else kinds[name].__metadata__[0](value)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{flag}: {call.text}: {name}={value!r}: {error}.") from None
    return valid


def _resolved(value: Any, clock: Clock, flag: str) -> Any:
    """`value` with steps in place of durations, inside lists and dictionaries too."""
    if isinstance(value, Duration):
        return clock.steps(value, flag)
    if isinstance(value, dict):
        return {key: _resolved(item, clock, flag) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolved(item, clock, flag) for item in value)
    return value
