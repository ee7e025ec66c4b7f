"""Keras optimizers as rules write them: `adamw(weight_decay=1e-4)`.

The framework calls `build` and `update_step` and owns what a loop owns: reduction, clipping, weight
decay, accumulation, averages and loss scale. An optimizer argument for one of those is honoured
(`weight_decay`) or refused with the flag that does it.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras

from trainer.errors import UserError, near
from trainer.flags import patterns
from trainer.flags.calls import Call, check_call, parse_call
from trainer.flags.durations import Duration

# Arguments that Keras reads in `apply`, which a loop of its own does not call, and what does it here.
_ELSEWHERE = {
    "learning_rate": "the column after the optimizer, such as constant(1e-3)",
    "clipnorm": "--clip_norm, over all groups at once",
    "clipvalue": "--clip_norm, over all groups at once",
    "global_clipnorm": "--clip_norm, over all groups at once",
    "use_ema": "--ema",
    "ema_momentum": "--ema",
    "ema_overwrite_frequency": "--ema",
    "loss_scale_factor": "--precision=mixed_float16, whose loss scale is dynamic",
    "gradient_accumulation_steps": "--accumulate",
    "name": "name=ID after the schedule",
}

Range = tuple[str, Callable[[float], bool]]  # what a number must be, and whether it is

_FINITE: Range = ("a finite number", math.isfinite)
_NOT_NEGATIVE: Range = ("a finite number, 0 or more", lambda x: 0 <= x < math.inf)
_POSITIVE: Range = ("a finite number above 0", lambda x: 0 < x < math.inf)
_NOT_POSITIVE: Range = ("a finite number, 0 or less", lambda x: -math.inf < x <= 0)
_MOMENTUM: Range = ("a number from 0 to 1", lambda x: 0 <= x <= 1)
_DECAY: Range = ("a number from 0 to less than 1", lambda x: 0 <= x < 1)  # of an average; at 1 it never moves

# Of all arguments of these names, whosever; Keras checks few of them. The others take any finite number.
_RANGES: dict[str, Range] = {
    **dict.fromkeys(("beta_1", "beta_2", "rho", "adam_beta_1", "adam_beta_2"), _DECAY),
    **dict.fromkeys(("epsilon", "epsilon_1", "epsilon_2"), _NOT_NEGATIVE),
    **dict.fromkeys(("weight_decay", "adam_weight_decay", "initial_accumulator_value"), _NOT_NEGATIVE),
    **dict.fromkeys(("l1_regularization_strength", "l2_regularization_strength"), _NOT_NEGATIVE),
    **dict.fromkeys(("l2_shrinkage_regularization_strength", "beta", "rms_rate"), _NOT_NEGATIVE),
    "momentum": _MOMENTUM,
    "clip_threshold": _POSITIVE,
    "adam_lr_ratio": _POSITIVE,
    "beta_2_decay": _NOT_POSITIVE,
    "learning_rate_power": _NOT_POSITIVE,
}


def names() -> dict[str, type[keras.optimizers.Optimizer]]:
    """`{name in a rule: Keras class}` of every Keras optimizer whose step is its `update_step`."""
    found = {}
    for name, value in vars(keras.optimizers).items():
        if not inspect.isclass(value) or not issubclass(value, keras.optimizers.Optimizer):
            continue
        # Wrappers of other optimizers, and the one whose evaluated weights are not its trained ones.
        if name in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer", "ScheduleFreeAdamW"):
            continue
        found[name.lower()] = value
    return found


def check(text: str, flag: str) -> Call:
    """Reads an optimizer and checks it against the signature of its Keras class.

    Returns:
      The call, its arguments by name.

    Raises:
      UserError: an unknown optimizer or argument, a value that no optimizer can use, or an argument that
        belongs to another flag.
    """
    call, classes = parse_call(text, flag), names()
    if call.name not in classes:
        raise UserError(f"{flag}: no optimizer is called {call.name!r}. {near(call.name, classes)}")
    for argument in call.kwargs:
        if argument in _ELSEWHERE:
            raise UserError(
                f"{flag}: {argument}= is not an argument of the optimizer here. Use {_ELSEWHERE[argument]}."
            )
    if call.args:
        raise UserError(f"{flag}: give the arguments of {call.name} by name, such as momentum=0.9.")
    signature = inspect.signature(classes[call.name])
    own = [
        p for p in signature.parameters.values() if p.name not in _ELSEWHERE and p.kind is not p.VAR_KEYWORD
    ]
    bound = check_call(call, signature.replace(parameters=own), "optimizer", flag)
    for argument, value in bound.items():
        if isinstance(value, Duration):
            raise UserError(f"{flag}: {argument}={value} of {call.name} cannot be a duration.")
        must = _must(argument, value, signature.parameters[argument].default)
        if must:
            raise UserError(f"{flag}: {argument}={value!r} of {call.name}: must be {must}.")
    return replace(call, kwargs=bound)


def _must(argument: str, value: Any, default: Any) -> str:
    """What the value of an argument must be and is not; "" where it is. The default tells of its kind."""
    if value is None and default is None:
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "True or False"
    if argument == "exclude_layers":
        listed = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        few = listed and all(patterns.few_ways(item) for item in value)
        return "" if few else "a list of parts of names, such as ['embed'], with no repeat of a repeat"
    if argument == "ns_steps":
        return "" if type(value) is int and 1 <= value <= 100 else "a whole number from 1 to 100"
    must, holds = _RANGES.get(argument, _FINITE)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if number and holds(value) else must


def make(call: Call, flag: str) -> keras.optimizers.Optimizer:
    """The Keras optimizer of a checked call, not built.

    Raises:
      UserError: what the Keras class itself refuses.
    """
    try:
        return names()[call.name](**call.kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{flag}: {call.name} refuses its arguments: {error}") from None
