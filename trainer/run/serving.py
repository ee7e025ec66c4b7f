"""What a model computes for whoever uses it, in an export and in predictions: features to named outputs.

That is what `serve(model, batch)` of the model module returns for a batch that went through `preprocess`;
without one the model is called on the features that its inputs (of a Keras functional model) or its
parameters (of any other) are named after. A single tensor is `outputs`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from trainer.errors import UserError, listing
from trainer.model.module import guarded
from trainer.run.build import Built

Batch = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """Features of a batch of decoded examples to named outputs.

    Attributes:
      built: the model.
      spec: of one decoded example.
      what: the value of `--model`, for messages.
    """

    built: Built
    spec: Mapping[str, Any]
    what: str

    def __call__(self, model: Any, batch: Batch) -> dict[str, tf.Tensor]:
        """Outputs of `model` by the model module's `preprocess` and `serve`."""
        module = self.built.module
        if module.preprocess:
            batch = module.preprocess(batch, False, tf.zeros([2], tf.int32))
        if module.serve:
            outputs = module.serve(model, batch)
        else:
            arguments, named = _arguments(self.what, model, batch)
            outputs = model(*arguments, **named)
        return dict(outputs) if isinstance(outputs, Mapping) else {"outputs": outputs}

    def filled(self, model: Any, batch: Batch) -> dict[str, tf.Tensor]:
        """Outputs on a batch of what counts, with nothing in the place of the rest."""
        size = tf.shape(next(iter(batch.values())))[0]
        rest = {k: tf.nest.map_structure(lambda s: nothing(s, size), s) for k, s in self.spec.items()}
        return self(model, {**{k: v for k, v in rest.items() if k not in batch}, **batch})


def nothing(spec: tf.TensorSpec, *sizes: Any) -> tf.Tensor:
    """Zeros or empty strings [*sizes, ...] in the place of what counts for nothing."""
    empty = tf.constant("") if spec.dtype == tf.string else tf.zeros([], spec.dtype)
    return tf.fill([*sizes, *(size or 1 for size in spec.shape)], empty)


def reached(function: Callable[[Batch], Any], specs: Mapping[str, Any], what: str) -> set[str]:
    """The names of `specs` on which what `function` returns depends.

    Args:
      function: of `{name: tensor or structure of tensors}`; traced, not run.
      specs: of its argument.
      what: for the message of what it raises.

    Raises:
      UserError: it raised.
    """
    traced = guarded(lambda: tf.function(function).get_concrete_function(dict(specs)), what)
    found, todo = set(), [tensor.op for tensor in traced.outputs]
    while todo:
        op = todo.pop()
        if op not in found:
            found.add(op)
            todo += [tensor.op for tensor in op.inputs]
    names = [name for name in sorted(specs) for _ in tf.nest.flatten(specs[name])]
    return {name for name, tensor in zip(names, traced.inputs, strict=False) if tensor.op in found}


def _arguments(what: str, model: Any, batch: Batch) -> tuple[list[Any], Batch]:
    """What to call the model with: the features that its inputs or parameters are named after."""
    if isinstance(model, keras.Model) and getattr(model, "inputs", None):
        names = [tensor.name for tensor in model.inputs]
        given = {name: batch[name] for name in names if name in batch}
        if len(given) == len(names):
            return [given if len(names) > 1 else given[names[0]]], {"training": False}
    else:
        call = model.call if isinstance(model, keras.Model) else model
        parameters = inspect.signature(call).parameters if callable(call) else {}
        names = list(parameters)
        given = {name: batch[name] for name in names if name in batch}
        if given:
            return [], {**given, **({"training": False} if "training" in names else {})}
    raise UserError(
        f"--model={what}: what it is to be called on cannot be told: it takes {listing(names)}, the "
        f"examples have {listing(batch)}. Give the model module serve(model, batch), which returns a "
        "tensor or a dict of tensors for a preprocessed batch."
    )


def from_bytes(encoded: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """An encoded image (JPEG, PNG, GIF, BMP), scalar, as `spec` has it: uint8 [height, width, channels].

    Where `spec` says a height and a width, an image of another size is squeezed, bilinear.
    """
    image = tf.io.decode_image(encoded, channels=spec.shape[2] or 0, expand_animations=False)
    image.set_shape([None, None, spec.shape[2]])
    if spec.shape.is_fully_defined():
        side, found = spec.shape[:2], tf.shape(image)
        same = tf.logical_and(found[0] == side[0], found[1] == side[1])
        smaller = lambda: tf.cast(tf.round(tf.image.resize(image, side)), tf.uint8)  # noqa: E731
        image = tf.ensure_shape(tf.cond(same, lambda: image, smaller), spec.shape)
    return image


def is_image(spec: Any) -> bool:
    """Whether a feature is an image: uint8 [height, width, 1, 3 or 4]."""
    flat = isinstance(spec, tf.TensorSpec) and spec.dtype == tf.uint8
    return flat and spec.shape.rank == 3 and spec.shape[2] in (1, 3, 4)
