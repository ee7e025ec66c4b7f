"""Which features of the data a loss takes for numbers of classes, and how many classes the model has."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

# What leaves every value of a tensor as it is. Anything else, such as a mask, may make a label good.
_KEEPS = frozenset("Identity Cast Reshape Squeeze ExpandDims Transpose StopGradient".split())
_LOSS = "SparseSoftmaxCrossEntropyWithLogits"


@tf.autograph.experimental.do_not_convert  # no user's code in it
def classes_of(graph: Any, features: Mapping[str, Any]) -> dict[str, int]:
    """`{feature: classes}` of the whole-numbered features that come unchanged to a cross entropy.

    Args:
      graph: in which the loss was just traced.
      features: of the batch, as the data have it: the tensors that went into the trace.
    """
    names = {value.name: name for name, value in features.items() if tf.is_tensor(value)}
    found: dict[str, int] = {}
    for op in graph.get_operations():
        if op.type != _LOSS:
            continue
        logits, labels = op.inputs
        feature, classes = names.get(_origin(labels).name), logits.shape[-1]
        if feature and classes:
            found[feature] = min(classes, found.get(feature, classes))
    return found


def _origin(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor whose values `tensor` has."""
    while _keeps(tensor.op):
        tensor = tensor.op.inputs[0]
    return tensor


def _keeps(op: Any) -> bool:
    if op.type != "StridedSlice":  # `labels[:, None]` is one
        return op.type in _KEEPS
    before, after = (x.shape.num_elements() for x in (op.inputs[0], op.outputs[0]))
    return before is not None and before == after
