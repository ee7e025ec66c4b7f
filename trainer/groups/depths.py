"""How deep in the model a variable lies, for `--layer_decay`."""

from collections.abc import Callable, Sequence

from trainer.errors import UserError
from trainer.model.names import ModelVariable


def depths(variables: Sequence[ModelVariable], depth: Callable[[str], int] | None = None) -> dict[str, int]:
    """How many layers lie between each trainable variable's layer and the head, which has 0.

    Args:
      variables: in the model's own order of layers.
      depth: the model module's own `depth(name)`, where it has one.

    Raises:
      UserError: `depth` returns something other than an integer of at least 0.
    """
    trainable = [v for v in variables if v.trainable]
    if depth is not None:
        result = {v.name: depth(v.name) for v in trainable}
        for name, value in result.items():
            if not isinstance(value, int) or value < 0:
                raise UserError(
                    f"--layer_decay: the model's depth({name!r}) is {value!r}; it must be an integer, 0 "
                    "for the head and more for the layers before it."
                )
        return result
    # A layer's first variable places it. A plain module has no layers: its variables' folders stand in.
    owners = dict.fromkeys(v.name.rpartition("/")[0] for v in reversed(trainable))
    above = {owner: index for index, owner in enumerate(owners)}
    return {v.name: above[v.name.rpartition("/")[0]] for v in trainable}
