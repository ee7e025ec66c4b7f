"""Keras optimizers as rules write them: `adamw(weight_decay=1e-4)`.

The framework calls `build` and `update_step` and owns what a loop owns: reduction, clipping, weight
decay, accumulation, averages and loss scale. An optimizer argument for one of those is honoured
(`weight_decay`) or refused with the flag that does it.
"""

import inspect
from dataclasses import replace

import keras

from trainer.errors import UserError, near
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
      UserError: an unknown optimizer or argument, or an argument that belongs to another flag.
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
    return replace(call, kwargs=bound)


def make(call: Call, flag: str) -> keras.optimizers.Optimizer:
    """The Keras optimizer of a checked call, not built.

    Raises:
      UserError: what the Keras class itself refuses.
    """
    try:
        return names()[call.name](**call.kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{flag}: {call.name} refuses its arguments: {error}") from None
