"""One all-reduce a step: gradients, loss and metrics packed into one vector and taken apart again."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def pack(tensors: Sequence[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """All elements of `tensors`, in order, as one vector of `dtype`."""
    return tf.concat([tf.reshape(tf.cast(t, dtype), [-1]) for t in tensors], 0)


def unpack(vector: tf.Tensor, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Takes `pack`'s vector apart into tensors of the shapes and dtypes of `like`, all static."""
    parts = tf.split(vector, [t.shape.num_elements() for t in like])
    return [tf.cast(tf.reshape(p, t.shape), t.dtype) for p, t in zip(parts, like, strict=True)]


def all_reduce(
    context: tf.distribute.ReplicaContext, gradients: Sequence[Any], others: Sequence[tf.Tensor]
) -> tuple[list[Any], list[tf.Tensor]]:
    """The sums over all replicas: everything dense in one reduce, each `tf.IndexedSlices` in its own."""
    total = tf.distribute.ReduceOp.SUM
    like = [*(g for g in gradients if not isinstance(g, tf.IndexedSlices)), *others]
    dense = iter(unpack(context.all_reduce(total, pack(like, like[0].dtype)), like))
    reduced = [
        context.all_reduce(total, g) if isinstance(g, tf.IndexedSlices) else next(dense) for g in gradients
    ]
    return reduced, list(dense)


def shrink(norm: tf.Tensor, most: float) -> tf.Tensor:
    """The factor that brings gradients of this global norm to at most `most` (Pascanu et al. 2013)."""
    limit = tf.constant(most, norm.dtype)
    return limit / tf.maximum(norm, limit)


def square_sums(groups: Sequence[Sequence[Any]]) -> tf.Tensor:
    """[groups]: sums of squares over all elements; each row of a `tf.IndexedSlices` must be there once."""
    values = [[g.values if isinstance(g, tf.IndexedSlices) else g for g in group] for group in groups]
    return 2 * tf.stack([tf.add_n([tf.nn.l2_loss(part) for part in parts]) for parts in values])


def distinct(gradient: Any) -> Any:
    """`gradient`; of a `tf.IndexedSlices`, rows that are there more than once are added up.

    A norm and every optimizer that squares a gradient need that, and Keras's do not see to it.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, positions = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, positions, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def scaled(gradient: Any, factor: tf.Tensor) -> Any:
    """`gradient` times a scalar; a `tf.IndexedSlices` stays one."""
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values * tf.cast(factor, gradient.values.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return gradient * tf.cast(factor, gradient.dtype)
