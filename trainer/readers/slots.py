"""What optimizers of TensorFlow 1 keep beside a variable, told by its name.

    conv/kernel/Adam, conv/kernel/Adam_1     slots of conv/kernel
    beta1_power, OptimizeLoss/beta2_power    powers
    conv/kernel/ExponentialMovingAverage     its average

Files made from such checkpoints (`.npz`, `.safetensors`) often keep the names, with `:0` or without.
"""

import re
from collections.abc import Collection

_AVERAGE = "/ExponentialMovingAverage"
_SLOT = re.compile(
    r"(.+)/(Adam|Adam_1|AdamW|AdamW_1|Adamax|Adamax_1|Nadam|Nadam_1|Momentum|RMSProp|RMSProp_1|RMSProp_2|Adagrad"
    r"|Adadelta|Adadelta_1|Ftrl|Ftrl_1|LAMB|LAMB_1|adam_m|adam_v|ExponentialMovingAverage|[a-zA-Z]+_momentum)"
)
_POWER = re.compile(r"(.*/)?beta[12]_power(_\d+)?")
_RATE = ("learning_rate", "lr")


def bare(name: str) -> str:
    """A name without the number of the output that made it: `conv/kernel:0` is `conv/kernel`."""
    return name.removesuffix(":0")


def owner(name: str, names: Collection[str]) -> str | None:
    """The variable among `names` that a slot or average belongs to; None for a name that is none of these."""
    slot = _SLOT.fullmatch(bare(name))
    if not slot:
        return None
    # Some optimizers open a scope of their own: OptimizeLoss/conv/kernel/Adam of conv/kernel.
    parts = slot.group(1).split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((held for tail in tails for held in (tail, tail + ":0") if held in names), None)


def is_average(name: str) -> bool:
    """Whether the name is that of a variable's average."""
    return bare(name).endswith(_AVERAGE)


def is_counter(name: str) -> bool:
    """Whether the name is that of a number that an optimizer keeps of itself."""
    return bool(_POWER.fullmatch(bare(name))) or bare(name) in _RATE
