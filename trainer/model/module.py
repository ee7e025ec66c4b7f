"""A model module: what a user brings, found by the name that `--model` gives, and built."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from trainer.errors import UserError, guarded, listing
from trainer.flags.calls import Call, check_call, parse_call
from trainer.model import find
from trainer.model.keras2 import refuse_keras_2


@dataclass(frozen=True)
class ModelModule:
    """The functions of a model; docs/new_model.md says what each takes and returns.

    Attributes:
      build: `(**arguments) -> keras.Model | tf.Module`, its variables created.
      loss: `(model, batch, training) -> (loss [B], {metric: value [B] or (value [B], weight [B])})`.
      preprocess: `(batch, training, seed) -> batch`, in the compiled step; `seed` is int32 [2].
      decode: `(example) -> example`, one at a time, on the host, before batching.
      check: `(model, features)`, raises ValueError where a data set does not suit.
      serve: `(model, batch) -> tensor or {name: tensor}`, what an export computes.
      depth: `(variable name) -> int`, layers between it and the head.
      outputs: `(model, batch) -> {name: [B, ...]}`, what `metrics` and predictions are made of.
      metrics: `({name: array [N, ...]}) -> {metric: number or array}`, of a whole evaluation split.
      better: `{metric: "min" or "max"}`, which end of a metric is the good one.
      name: what a message calls it.

    Example:
      >>> import keras, trainer
      >>> def build():
      ...     return keras.Sequential([keras.Input([4]), keras.layers.Dense(1, name="head")])
      >>> def loss(model, batch, training):
      ...     return (model(batch["x"])[:, 0] - batch["y"]) ** 2, {}
      >>> module = trainer.ModelModule(build=build, loss=loss)
    """

    build: Callable[..., Any]
    loss: Callable[..., Any]
    preprocess: Callable[..., Any] | None = None
    decode: Callable[..., Any] | None = None
    check: Callable[..., Any] | None = None
    serve: Callable[..., Any] | None = None
    depth: Callable[[str], int] | None = None
    outputs: Callable[..., Any] | None = None
    metrics: Callable[..., Any] | None = None
    better: Mapping[str, str] | None = None
    name: str = "a ModelModule"

    @classmethod
    def of(cls, found: Any, flag: str, name: str) -> "ModelModule":
        """The functions that `found` (a Python module, or anything with them as attributes) holds.

        Raises:
          UserError: it has no `build` or no `loss`.
        """
        if isinstance(found, ModelModule):
            return found
        for needed in ("build", "loss"):
            if not callable(getattr(found, needed, None)):
                raise UserError(
                    f"{flag}: {name} has no function `{needed}`. A model module has build(**kwargs) and "
                    "loss(model, batch, training)."
                )
        names = [f.name for f in fields(cls) if f.name != "name"]
        parts: dict[str, Any] = {part: getattr(found, part, None) for part in names}
        return cls(**parts, name=name)


def load(text: str) -> tuple[ModelModule, Call]:
    """The model module that `--model` names, imported, and the call of its `build`.

    Raises:
      UserError: no such module, one that fails to import, or one without `build` or `loss`.
    """
    flag = f"--model={text}"
    if not text:
        raise UserError(f"--model: not given. Name a file of models/: {listing(find.known())}.")
    path = re.fullmatch(r"(.*?\.py)\s*(\(.*)?", text, re.DOTALL)
    call = parse_call(f"model{path[2] or ''}" if path else text, flag)
    name = path[1] if path else call.name
    call = replace(call, name=Path(name).stem if path else name, text=text)
    module = ModelModule.of(guarded(lambda: find.find(name, flag), f"{flag}: importing {name}"), flag, name)
    check_call(call, module.build, "model", flag)
    return module, call


def build(module: ModelModule, call: Call) -> Any:
    """The model. Call it in the strategy's scope, seeds set.

    Raises:
      UserError: `build` raised, or returned neither a Keras model nor a `tf.Module`.
    """
    flag = f"--model={call.text}"
    model = guarded(lambda: module.build(*call.args, **call.kwargs), f"{flag}: its build")
    refuse_keras_2(model, flag)
    if not isinstance(model, keras.Model | tf.Module):
        raise UserError(
            f"{flag}: its build returned {type(model).__name__}, not a keras.Model or a tf.Module."
        )
    return model


@contextlib.contextmanager
def naming(text: str) -> Iterator[None]:
    """Gives the value of `--model` to the messages of functions that know the model only."""
    try:
        yield
    except UserError as error:
        head, flag, rest = str(error).partition("--model: ")
        raise UserError(f"--model={text}: {rest}" if flag and not head else str(error)) from error
