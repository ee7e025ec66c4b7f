"""Models of `tf_keras` (Keras 2, as Hugging Face's TensorFlow models are) are refused by name.

Their layers, variables and dropout are another library's: freezing, statistics and random state would be
other than this program says. Their files restore like any others.
"""

from typing import Any

from trainer.errors import UserError


def refuse_keras_2(model: Any, flag: str) -> None:
    """Refuses a model that is one of `tf_keras`, or has layers of it.

    Args:
      model: any object.
      flag: where it comes from, for the message: `--model=NAME`.

    Raises:
      UserError: with the way to convert.
    """
    parts = [model, *getattr(model, "submodules", ()), *getattr(model, "layers", ())]
    old = next((part for part in parts if _of_keras_2(part)), None)
    if old is not None:
        raise UserError(
            f"{flag}: {getattr(old, 'name', 'it')} is a {type(old).__name__} of Keras 2 (tf_keras), which is "
            "not trained here. Unset TF_USE_LEGACY_KERAS and build the same layers under the same names with "
            "`import keras`; to take the weights along, model.save_weights('old.h5') and --init_from=old.h5."
        )


def _of_keras_2(part: Any) -> bool:
    return any(kind.__module__.split(".")[0] == "tf_keras" for kind in type(part).__mro__)
