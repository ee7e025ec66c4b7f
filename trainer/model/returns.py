"""What the functions of a model module must return."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.errors import UserError, listing

# Fields of the lines of metrics.jsonl, and tags of the curves.
RESERVED = frozenset(
    "kind step epoch weights examples loss learning_rate examples_per_second skipped_steps".split()
)
_RETURNS = "(loss [B], {metric: value [B] or (value [B], weight [B])})"


@tf.autograph.experimental.do_not_convert  # no user's code in it
def rows_of(batch: Any) -> int | None:
    """How many rows the parts of a batch have; None where they differ or are not known."""
    sizes = {x.shape[0] for x in tf.nest.flatten(batch) if tf.is_tensor(x) and x.shape.rank}
    return sizes.pop() if len(sizes) == 1 else None


@tf.autograph.experimental.do_not_convert  # no user's code in it
def losses_of(result: Any, size: int | None) -> tf.Tensor:
    """The losses [B] in what a model's `loss` returned, its metrics checked with them.

    Args:
      result: what it returned.
      size: B, rows of the batch; None where that is not known.

    Raises:
      UserError: something else than (loss [B], {metric: value [B] or (value [B], weight [B])}).
    """
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise UserError(f"--model: its loss returned {type(result).__name__}, not {_RETURNS}.")
    for name, value in result[1].items():
        _check_name(name)
        if isinstance(value, tuple) and len(value) != 2:
            raise UserError(f"--model: the metric {name!r} has {len(value)} parts. loss returns {_RETURNS}.")
        for part in value if isinstance(value, tuple) else (value,):
            _check_vector(f"the metric {name!r}", part, size)
            _check_real(name, part)
        _check_weights(name, value)
    _check_vector("the loss", result[0], size)
    if not result[0].dtype.is_floating:
        raise UserError(f"--model: the loss is {result[0].dtype.name}, not a float.")
    return result[0]


def _check_vector(what: str, value: Any, size: int | None) -> None:
    if not tf.is_tensor(value) or value.shape.rank != 1 or (size and value.shape[0] not in (None, size)):
        got = f"shape {value.shape}" if tf.is_tensor(value) else type(value).__name__
        if tf.is_tensor(value) and value.shape.rank is None:
            got = "a shape that is known only when it runs (say it: tf.ensure_shape(value, [None]))"
        raise UserError(
            f"--model: {what} has {got}, but one value per example ([{size or 'B'}]) is needed: the trainer "
            f"divides by the global batch. loss returns {_RETURNS}."
        )


@tf.autograph.experimental.do_not_convert  # no user's code in it
def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise UserError(f"--model: a metric is called {name!r}; give it another name, such as accuracy.")
    if name in RESERVED or name.partition("/")[0] in ("learning_rate", "ema"):
        raise UserError(
            f"--model: a metric is called {name!r}, which the records of a run use for something else (as "
            f"they do {listing(sorted(RESERVED - {name}))}). Give it another name, such as my_{name}."
        )


@tf.autograph.experimental.do_not_convert  # no user's code in it
def _check_real(name: str, value: tf.Tensor) -> None:
    if not (value.dtype.is_floating or value.dtype.is_integer or value.dtype.is_bool):
        remedy = "Return its real part, its absolute value, or both under two names."
        raise UserError(
            f"--model: the metric {name!r} is {value.dtype.name}, and a metric is a real number. "
            f"{remedy if value.dtype.is_complex else 'Return numbers.'}"
        )


@tf.autograph.experimental.do_not_convert  # no user's code in it
def _check_weights(name: str, value: Any) -> None:
    weights = tf.get_static_value(value[1]) if isinstance(value, tuple) else None
    if weights is not None and not np.any(weights):
        raise UserError(
            f"--model: the weights of the metric {name!r} are all 0, so that its mean is nothing. Give an "
            "example that counts a weight above 0."
        )


@tf.autograph.experimental.do_not_convert  # no user's code in it
def check_rows(raw: Mapping[str, Any], batch: Any) -> None:
    """Refuses a `preprocess` that makes more or fewer rows of a part of a batch.

    Args:
      raw: what it was given.
      batch: what it returned.

    Raises:
      UserError: names the part.
    """
    for name in raw if isinstance(batch, Mapping) else ():
        one, other = rows_of(raw[name]), rows_of(batch.get(name))
        if one and other and one != other:
            raise UserError(
                f"--model: its preprocess makes {other} rows of the {one} of {name!r}. A batch must keep its "
                "examples, one row each: give those that are not to count a weight of 0, and let what is "
                "longer per example have a dimension of its own."
            )
