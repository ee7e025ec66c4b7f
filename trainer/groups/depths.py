"""How deep in the model a variable lies, for `--layer_decay`: counted in blocks, as BEiT and timm do.

    embedding (deepest) | block 0 | block 1 | ... | block 11 (1) | head (0)

Siblings that a model numbers are a level each, and whatever lies inside one shares its level (`blocks.py`).
What is unnumbered comes before the first level (deepest), after the last (0), or shares the level before it.
A numbered layer of vectors alone, such as a normalisation, is no level of its own either. Where a model
numbers nothing, each layer is a level.

Literature: Clark et al. 2020 (ELECTRA); Bao et al. 2022 (BEiT), whose code has `get_num_layer_for_vit`.
"""

import re
from collections.abc import Callable, Hashable, Sequence

from trainer.errors import UserError, near
from trainer.flags.patterns import check_bounded
from trainer.model.blocks import blocks
from trainer.model.names import ModelVariable


def depths(
    variables: Sequence[ModelVariable],
    depth: Callable[[str], int] | None = None,
    by: re.Pattern[str] | None = None,
    flag: str = "--layer_decay",
) -> dict[str, int]:
    """How many levels lie above each trainable variable's: 0 for the head.

    Args:
      variables: in the model's own order of layers.
      depth: the model module's own `depth(name)`, where it has one.
      by: of whole names; what it captures tells the levels apart. It goes before `depth`.
      flag: with its value, for messages.

    Raises:
      UserError: `by` matches no variable, or `depth` returns something other than an integer of at least 0.
    """
    trainable = [v for v in variables if v.trainable]
    names = [v.name for v in trainable]
    if by is not None:
        check_bounded([(flag, by)], [name for v in trainable for name in (v.name, *v.aliases)])
        captured = [_captured(by, v) for v in trainable]
        if not any(captured):
            raise UserError(
                f"{flag}: by={by.pattern} matches no variable. It must match the whole name. "
                f"{near(by.pattern, names)}"
            )
        return _depths(names, captured, set(captured))
    if depth is not None:
        return _stated(names, depth)
    layers = [name.rpartition("/")[0] for name in names]
    keys: Sequence[Hashable]
    for keys in (list(blocks(names).values()), layers):
        pairs = zip(keys, trainable, strict=True)
        opening: set[Hashable] = {key for key, v in pairs if key is not None and len(v.shape) > 1}
        if opening:
            return _depths(names, keys, opening)
    return _depths(names, layers, set(layers))


def _captured(by: re.Pattern[str], variable: ModelVariable) -> Hashable:
    """What `by` captures of the variable's name, or of the first alias that it matches; None for no match."""
    matches = (by.fullmatch(name) for name in (variable.name, *variable.aliases))
    return next((match.groups() for match in matches if match), None)


def _stated(names: Sequence[str], depth: Callable[[str], int]) -> dict[str, int]:
    result = {name: depth(name) for name in names}
    for name, value in result.items():
        if not isinstance(value, int) or value < 0:
            raise UserError(
                f"--layer_decay: the model's depth({name!r}) is {value!r}; it must be an integer, 0 "
                "for the head and more for the layers before it."
            )
    return result


def _depths(names: Sequence[str], keys: Sequence[Hashable], opening: set[Hashable]) -> dict[str, int]:
    """Depths by name, of levels that come in the order of their first variable.

    Args:
      names: of variables.
      keys: of each, what tells its level; None where it is unnumbered.
      opening: the keys that are levels; others share the level before them.
    """
    level: dict[Hashable, int] = {}
    result, current, count, last = {}, -1, 0, -1
    for i, (name, key) in enumerate(zip(names, keys, strict=True)):
        if key is not None:
            if key not in level and key in opening:
                level[key], count = count, count + 1
            current = level.setdefault(key, current)
            last = i
        result[name] = current
    head = names[last + 1 :]
    top = count if head else count - 1
    return {name: top - at for name, at in result.items()} | dict.fromkeys(head, 0)
