"""A model module whose numbers do not depend on how many replicas it runs on, for `verify_distribution`.

What differs from replica to replica by its nature is taken out: batch statistics and random masks run as in
evaluation, and what `preprocess` draws depends on the example and not on the place where it lies.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from trainer.model.module import ModelModule
from trainer.run.assemble import Assembled
from trainer.run.build import Built


def unlike(built: Built) -> list[str]:
    """Layers that differ from replica to replica by their nature, by name."""
    names = {v.name.rpartition("/")[0] for v in built.variables if v.random}
    normalised = (v for v in built.variables if isinstance(v.layer, keras.layers.BatchNormalization))
    return sorted(names | {v.name.rpartition("/")[0] for v in normalised})


def draws_always(assembled: Assembled) -> bool:
    """Whether `preprocess` uses its `seed` although it is not training."""
    preprocess = assembled.built.module.preprocess
    if preprocess is None:
        return False
    seeds = []

    def trace(batch: Any, seed: tf.Tensor) -> Any:
        seeds.append(seed)
        return preprocess(batch, False, seed)

    tf.function(trace).get_concrete_function(_single(assembled.split.spec(), 0), tf.TensorSpec([2], tf.int32))
    return any(seed.consumers() for seed in seeds)


def _single(parts: Any, batched: int) -> Any:
    """Specs of a batch of one, of the specs or tensors of an example, or of a batch of them (`batched` 1)."""
    return tf.nest.map_structure(lambda x: tf.TensorSpec([1, *x.shape[batched:]], x.dtype), parts)


def _one_by_one(preprocess: Callable[..., Any]) -> Callable[..., Any]:
    """`preprocess` of each example by itself: what it draws depends on the example, not on its place."""

    def apply(batch: Any, training: Any, seed: Any) -> Any:
        del training, seed
        one = tf.function(lambda b, seed: preprocess(b, False, seed))
        traced = one.get_concrete_function(_single(batch, 1), tf.TensorSpec([2], tf.int32))

        def example(parts: Any) -> Any:
            values = traced(tf.nest.map_structure(lambda x: x[None], parts), _seed(parts))
            return tf.nest.map_structure(lambda x: x[0], values)

        out = traced.structured_outputs
        return tf.map_fn(
            example,
            batch,
            fn_output_signature=tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), out),
        )

    return apply


def _seed(example: Any) -> tf.Tensor:
    """int32 [2] that depends on all numbers and texts of an example."""
    total = tf.constant(0.0, tf.float64)
    for place, part in enumerate(tf.nest.flatten(example)):
        values = tf.strings.to_hash_bucket_fast(part, 1 << 30) if part.dtype == tf.string else part
        flat = tf.reshape(tf.cast(values, tf.float64), [-1])
        total += tf.reduce_sum(flat * tf.cos(tf.range(tf.size(flat), dtype=tf.float64) + place))
    return tf.bitcast(total, tf.int32)


def comparable(built: Built, draws: bool) -> ModelModule:
    """The model module without what differs from replica to replica by its nature."""
    module, still = built.module, bool(unlike(built))
    preprocess = module.preprocess
    same = None
    if preprocess and draws:
        same = _one_by_one(preprocess)
    elif preprocess:  # its random numbers are each replica's own
        same = lambda b, training, seed: preprocess(b, False, seed)  # noqa: E731
    loss = lambda m, b, training: module.loss(m, b, training and not still)  # noqa: E731
    return dataclasses.replace(module, loss=loss, preprocess=same)
