"""What the functions of a model module must return."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.errors import UserError, listing

# Fields of the lines of metrics.jsonl, and tags of the curves.
RESERVED = frozenset(
    "kind step epoch weights examples loss learning_rate examples_per_second skipped_steps".split()
)
_RETURNS = "(loss [B], {metric: value [B] or (value [B], weight [B])})"
_LOSS = "It is [B] or (loss [B], weight [B]), or {name: either}"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")

Term = tuple[tf.Tensor, tf.Tensor | None]  # losses [B], and weights [B]; None where each counts as one


@dataclass(frozen=True)
class Means:
    """The means that a loss yields: of itself and of its metrics.

    Attributes:
      metrics: their names, sorted.
      losses: names of the losses; "" for one that has none.
      weighted: names of the losses that have weights.
    """

    metrics: tuple[str, ...] = ()
    losses: tuple[str, ...] = ("",)
    weighted: frozenset[str] = frozenset()

    @property
    def apart(self) -> tuple[str, ...]:
        """Losses whose mean is no mean over examples, or is one of several."""
        return () if self.losses == ("",) and not self.weighted else self.losses

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers, as the records have them."""
        return ("loss", *(f"loss/{name}" for name in self.losses if name), *self.metrics)


@tf.autograph.experimental.do_not_convert  # no user's code in it
def terms_of(loss: Any) -> dict[str, Term]:
    """What a model's `loss` returned first: losses and weights by name, "" where it has none."""
    named = loss if isinstance(loss, Mapping) else {"": loss}
    return {name: value if isinstance(value, tuple) else (value, None) for name, value in named.items()}


@tf.autograph.experimental.do_not_convert  # no user's code in it
def some_losses(terms: Mapping[str, Term]) -> tf.Tensor:
    """The losses [B] of one of `terms`, all of which have its rows and its dtype."""
    return next(iter(terms.values()))[0]


@tf.autograph.experimental.do_not_convert  # no user's code in it
def rows_of(batch: Any) -> int | None:
    """How many rows the parts of a batch have; None where they differ or are not known."""
    sizes = {x.shape[0] for x in tf.nest.flatten(batch) if tf.is_tensor(x) and x.shape.rank}
    return sizes.pop() if len(sizes) == 1 else None


@tf.autograph.experimental.do_not_convert  # no user's code in it
def checked(result: Any, size: int | None) -> dict[str, Term]:
    """The losses in what a model's `loss` returned, its metrics checked with them.

    Args:
      result: what it returned.
      size: B, rows of the batch; None where that is not known.

    Raises:
      UserError: something else than (loss, {metric: value [B] or (value [B], weight [B])}), a loss that is
        neither [B] nor ([B], weight [B]) nor a dictionary of such, or weights of which one is negative or
        none is above 0.
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
        _check_weights(f"the metric {name!r}", value)
    named = result[0] if isinstance(result[0], Mapping) else {"": result[0]}
    if not named:
        raise UserError(f"--model: its loss returned no loss, but {{}}. {_LOSS}.")
    for name, value in named.items():
        if isinstance(result[0], Mapping) and not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise UserError(
                f"--model: a loss is called {name!r}. A name may hold letters, digits, '_', '.' and '-'."
            )
        _check_loss(f"the loss {name}".rstrip(), value, size)
    return terms_of(result[0])


@tf.autograph.experimental.do_not_convert  # no user's code in it
def _check_loss(what: str, value: Any, size: int | None) -> None:
    if isinstance(value, tuple) and len(value) != 2:
        raise UserError(f"--model: {what} has {len(value)} parts. {_LOSS}.")
    losses, weights = value if isinstance(value, tuple) else (value, None)
    _check_vector(what, losses, size)
    if not losses.dtype.is_floating:
        raise UserError(f"--model: {what} is {losses.dtype.name}, not a float.")
    if not isinstance(value, tuple):
        return
    _check_vector(f"the weight of {what}", weights, size)
    if not (weights.dtype.is_floating or weights.dtype.is_integer or weights.dtype.is_bool):
        raise UserError(f"--model: the weight of {what} is {weights.dtype.name}, and no number.")
    known = tf.get_static_value(weights)
    if known is not None and np.any(known < 0):
        raise UserError(
            f"--model: the weights of {what} are negative ({known.min():g}). A weight is 0 or more: change "
            "the sign of the loss to climb it."
        )
    _check_weights(what, (losses, weights))


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
    if name in RESERVED or name.partition("/")[0] in ("learning_rate", "ema", "loss"):
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
def _check_weights(what: str, value: Any) -> None:
    weights = tf.get_static_value(value[1]) if isinstance(value, tuple) else None
    if weights is not None and not np.any(weights):
        raise UserError(
            f"--model: the weights of {what} are all 0, so that its mean is nothing. Give an "
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
