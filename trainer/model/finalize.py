"""Layers that compute with copies of their variables, as Keras's preprocessing layers do."""

from collections.abc import Iterable

import keras

from trainer.model.names import ModelVariable


def finalize(variables: Iterable[ModelVariable]) -> None:
    """Lets the layers of these variables copy the values again; to be called after values were assigned.

    `Normalization` and lookups by tf-idf keep what they compute with in tensors of their own, which
    `finalize_state` makes of the variables. A restored mean would otherwise be there and not be used.

    Args:
      variables: of the model, all or some.
    """
    layers = {id(layer): layer for v in variables for layer in (*v.above, v.layer)}
    for layer in layers.values():
        if isinstance(layer, keras.Layer) and callable(finalize := getattr(layer, "finalize_state", None)):
            finalize()
