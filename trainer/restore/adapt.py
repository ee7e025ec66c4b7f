"""Ways to make a stored array fit a variable of another shape: what `--init_adapt` can call.

Each function takes what a user writes (`resize(axis=0)`) and gives `(source, initial) -> array`, where
`initial` is the variable's initial value, whose shape the result must have. Axes count from the last
dimension when negative. Results keep the source's dtype; arithmetic is done in double precision.
`COMBINERS` take several stored arrays, which their users name, and may only come first.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Adapter = Callable[[np.ndarray, np.ndarray], np.ndarray]
Combiner = Callable[[Sequence[np.ndarray]], np.ndarray]


def mean_channels(axis: int = -2) -> Adapter:
    """Input channels averaged into one: a first convolution [h, w, 3, out] for grey images.

    A grey image then gets a third of the response that it has as a colour image with three equal channels.
    """

    def adapter(source: np.ndarray, initial: np.ndarray) -> np.ndarray:
        return _wide(source).mean(_axis(axis, source), keepdims=True).astype(source.dtype)

    return adapter


def sum_channels(axis: int = -2) -> Adapter:
    """Input channels summed into one: a grey image gets the response of three equal channels."""

    def adapter(source: np.ndarray, initial: np.ndarray) -> np.ndarray:
        return _wide(source).sum(_axis(axis, source), keepdims=True).astype(source.dtype)

    return adapter


def repeat_channels(axis: int = -2) -> Adapter:
    """One input channel to as many as the variable has, each 1/n of it: grey images respond as before."""

    def adapter(source: np.ndarray, initial: np.ndarray) -> np.ndarray:
        along = _axis(axis, source)
        if source.shape[along] != 1:
            raise ValueError(f"axis {axis} of the source has {source.shape[along]} channels, not one")
        count = initial.shape[along]
        spread = np.repeat(_wide(source), count, along) / count
        return spread.astype(source.dtype)

    return adapter


def resize(axis: int = -2, keep: int = 0) -> Adapter:
    """Linear interpolation along one axis: a position embedding [length, width] of another length.

    Args:
      axis: the axis of the positions.
      keep: so many first positions (class tokens) are taken as they are.
    """
    return _resized(axis, keep, _linear)


def resize_grid(axis: int = -2, keep: int = 0) -> Adapter:
    """Bilinear interpolation of positions that are the rows of a square image, one after another.

    Args:
      axis: the axis of the positions.
      keep: so many first positions (class tokens) are taken as they are.
    """
    return _resized(axis, keep, _bilinear)


def rows(index: Sequence[int | None], axis: int = -1) -> Adapter:
    """A head with other classes: class i of the model is class `index[i]` of the source.

    Args:
      index: one entry for each class of the model; None keeps the initial value of that class.
      axis: the axis of the classes: the last one, for a Keras kernel and for a bias.
    """
    if not isinstance(index, list | tuple) or not all(
        entry is None or (isinstance(entry, int) and not isinstance(entry, bool)) for entry in index
    ):
        raise ValueError(f"index={index!r} is not a list of class numbers or None, like [0, 3, None]")

    def adapter(source: np.ndarray, initial: np.ndarray) -> np.ndarray:
        along = _axis(axis, source)
        classes, wanted = source.shape[along], initial.shape[along]
        if len(index) != wanted:
            raise ValueError(f"the list has {len(index)} entries and the variable {wanted} classes")
        wrong = [entry for entry in index if entry is not None and not 0 <= entry < classes]
        if wrong:
            raise ValueError(f"the source has classes 0 to {classes - 1}, the list names {wrong}")
        taken = [place for place, entry in enumerate(index) if entry is not None]
        part = np.take(source, [entry for entry in index if entry is not None], along)
        expected = [*initial.shape]
        expected[along] = len(taken)
        if list(part.shape) != expected:
            raise ValueError(f"source {list(source.shape)} differs from {list(initial.shape)} elsewhere too")
        result = initial.astype(source.dtype)
        np.moveaxis(result, along, 0)[taken] = np.moveaxis(part, along, 0)
        return result

    return adapter


def transpose(*axes: int) -> Adapter:
    """Axes in another order, as `numpy.transpose`: `transpose(1, 0)` for a matrix stored [out, in]."""
    if not all(isinstance(axis, int) and not isinstance(axis, bool) for axis in axes):
        raise ValueError(f"{axes} are not numbers of axes, like transpose(1, 0)")

    def adapter(source: np.ndarray, initial: np.ndarray) -> np.ndarray:
        order = axes or tuple(reversed(range(source.ndim)))
        if sorted(_axis(axis, source) for axis in order) != list(range(source.ndim)):
            raise ValueError(f"{list(order)} are not the axes of a source of shape {list(source.shape)}")
        return source.transpose(order)

    return adapter


def reshape(*shape: int) -> Adapter:
    """The same numbers in the same order in another shape; without one, in the variable's."""
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in shape):
        raise ValueError(f"{shape} is not a shape, like reshape(3, -1)")
    return lambda source, initial: source.reshape(shape or initial.shape)


def split(index: int, parts: int, axis: int = 0) -> Adapter:
    """One of several equal parts: `split(0, 3)` is the query of a packed query, key and value."""
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in (index, parts, axis)):
        raise ValueError("index, parts and axis are whole numbers, like split(0, 3)")
    if not 0 <= index < parts:
        raise ValueError(f"index={index} is none of {parts} parts; they count from 0")

    def adapter(source: np.ndarray, initial: np.ndarray) -> np.ndarray:
        along = _axis(axis, source)
        if source.shape[along] % parts:
            raise ValueError(
                f"axis {axis} of a source of shape {list(source.shape)} is not {parts} equal parts"
            )
        return np.split(source, parts, along)[index]

    return adapter


def as_is() -> Adapter:
    """As it is stored, said aloud: for a variable whose layout under `--init_layout` is not known."""
    return lambda source, initial: source


def flattened(shape: Sequence[int]) -> Adapter:
    """Rows of a kernel [n, out], or a vector [n], behind a flattened image in the order of [..., channels].

    Args:
      shape: what is flattened in the model, channels last: `[7, 7, 64]`.
    """
    whole = isinstance(shape, list | tuple) and all(isinstance(n, int) and n > 0 for n in shape)
    if not whole or len(shape) < 2:
        raise ValueError(f"shape={shape!r} is not a shape with channels last, like [7, 7, 64]")

    def adapter(source: np.ndarray, initial: np.ndarray) -> np.ndarray:
        if not 1 <= source.ndim <= 2 or source.shape[0] != math.prod(shape):
            raise ValueError(f"{list(source.shape)} has not the {math.prod(shape)} rows of {list(shape)}")
        first = source.reshape(shape[-1], *shape[:-1], *source.shape[1:])
        return np.moveaxis(first, 0, len(shape) - 1).reshape(source.shape)

    return adapter


def sum_of(*names: str) -> Combiner:
    """Several stored arrays added, in float64: the two biases of a recurrent layer."""

    def combiner(arrays: Sequence[np.ndarray]) -> np.ndarray:
        if len({array.shape for array in arrays}) != 1:
            raise ValueError(f"shapes {[list(array.shape) for array in arrays]} cannot be added")
        return np.sum([_wide(array) for array in arrays], axis=0).astype(arrays[0].dtype)

    return combiner


def concat(*names: str, axis: int = 0) -> Combiner:
    """Several stored arrays one after another along an axis."""
    return lambda arrays: np.concatenate(list(arrays), _axis(axis, arrays[0]))


METHODS: Mapping[str, Callable[..., Adapter]] = {
    function.__name__: function
    for function in (
        *(mean_channels, sum_channels, repeat_channels, resize, resize_grid, rows),
        *(transpose, reshape, split, flattened, as_is),
    )
}
COMBINERS: Mapping[str, Callable[..., Combiner]] = {"sum": sum_of, "concat": concat}


def _axis(axis: int, array: np.ndarray) -> int:
    if isinstance(axis, bool) or not isinstance(axis, int) or not -array.ndim <= axis < array.ndim:
        raise ValueError(f"axis={axis!r} is no axis of a source of shape {list(array.shape)}")
    return axis % array.ndim


def _wide(array: np.ndarray) -> np.ndarray:
    """In double precision, complex where it is complex."""
    return array.astype(np.result_type(array.dtype, np.float64))


def _resized(axis: int, keep: int, interpolate: Callable[[np.ndarray, int, int], np.ndarray]) -> Adapter:
    """All positions but the first `keep` interpolated to as many as the variable has."""

    def adapter(source: np.ndarray, initial: np.ndarray) -> np.ndarray:
        along = _axis(axis, source)
        if isinstance(keep, bool) or not isinstance(keep, int) or not 0 <= keep < source.shape[along]:
            raise ValueError(f"keep={keep!r} is not a number of positions below {source.shape[along]}")
        kept, rest = np.split(_wide(source), [keep], along)
        rest = interpolate(rest, along, initial.shape[along] - keep)
        return np.concatenate([kept, rest], along).astype(source.dtype)

    return adapter


def _side(positions: int) -> int:
    side = math.isqrt(max(positions, 0))
    if side == 0 or side * side != positions:
        raise ValueError(f"{positions} positions are not a square grid; use resize or another keep")
    return side


def _linear(array: np.ndarray, along: int, length: int) -> np.ndarray:
    """Linear interpolation with pixel centres aligned, as `tf.image.resize` does it."""
    old = array.shape[along]
    if length < 1 or old < 1:
        raise ValueError(f"cannot resize {old} positions to {length}")
    place = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
    left = np.floor(place).astype(int)
    right = np.minimum(left + 1, old - 1)
    shape = [1] * array.ndim
    shape[along] = length
    share = (place - left).reshape(shape)
    return np.take(array, left, along) * (1 - share) + np.take(array, right, along) * share


def _bilinear(array: np.ndarray, along: int, length: int) -> np.ndarray:
    """The same over both sides of a square grid, whose rows lie one after another."""
    old, new = _side(array.shape[along]), _side(length)
    before, after = array.shape[:along], array.shape[along + 1 :]
    grid = array.reshape(*before, old, old, *after)
    return _linear(_linear(grid, along, new), along + 1, new).reshape(*before, new * new, *after)
