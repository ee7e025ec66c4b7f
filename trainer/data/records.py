"""Reading a split: its elements decoded in groups, and the whole of it as arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.source import Split
from trainer.errors import UserError

GROUP = 64  # elements that are decoded by one call: half the time of one call each


def decoder(split: Split) -> Callable[[Any], dict[str, Any]]:
    """Makes examples, [group, ...], of a group of elements; traceable."""
    spec, decode = split.spec(), split.decode

    def one(element: Any) -> dict[str, Any]:
        example = split.source.example(element)
        return example if decode is None else decode(example)

    return lambda elements: tf.map_fn(one, elements, fn_output_signature=spec, parallel_iterations=1)


def load(split: Split) -> dict[str, Any]:
    """The decoded split as NumPy arrays [examples, ...], in order.

    Raises:
      UserError: the source holds more or fewer examples than it says.
    """
    size, spec = split.examples, split.spec()
    if split.decode is None and (arrays := split.source.arrays(split.name)) is not None:
        return arrays
    arrays = tf.nest.map_structure(lambda s: np.empty([size, *s.shape], s.dtype.as_numpy_dtype), spec)
    decoded = split.ordered().batch(GROUP).map(decoder(split), tf.data.AUTOTUNE, deterministic=True)
    filled = 0
    for part in decoded.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        rows = len(tf.nest.flatten(part)[0])
        for array, values in zip(tf.nest.flatten(arrays), tf.nest.flatten(part), strict=True):
            array[filled : filled + rows] = values[: max(0, size - filled)]
        filled += rows
    if filled != size:
        raise UserError(
            f"--dataset={split.source.name}: {split.name} has {filled} examples and should have {size}; the "
            f"files are damaged. {split.source.remedy}"
        )
    return arrays
