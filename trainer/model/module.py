"""What a model module must hold, checked before any data is read: `build`, `loss`, and what they return."""

import contextlib
import importlib
import importlib.util
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

import keras
import tensorflow as tf

from trainer.errors import UserError, listing, near
from trainer.flags.calls import Call, check_call, parse_call
from trainer.model.names import ModelVariable

T = TypeVar("T")


def load(text: str) -> tuple[ModuleType, Call]:
    """The model module that `--model` names, imported, and the call of its `build`.

    Raises:
      UserError: no such module, one that fails to import, or one without `build` or `loss`.
    """
    flag = f"--model={text}"
    if not text:
        raise UserError(f"--model: not given. Name a file of models/: {listing(_known())}.")
    call = parse_call(text, flag)
    path = call.name if "." in call.name else f"models.{call.name}"
    try:
        found = importlib.util.find_spec(path)
    except ModuleNotFoundError as error:
        raise UserError(f"{flag}: there is no package {error.name!r} on the Python path.") from None
    if found is None:
        raise UserError(f"{flag}: there is no model module {path}. {near(call.name, _known())}")
    module = guarded(lambda: importlib.import_module(path), f"{flag}: importing {path}")
    for name in ("build", "loss"):
        if not callable(getattr(module, name, None)):
            raise UserError(
                f"{flag}: {path} has no function `{name}`. A model module has build(**kwargs) and "
                "loss(model, batch, training)."
            )
    check_call(call, module.build, "model", flag)
    return module, call


def _known() -> list[str]:
    import models

    return [m.name for m in pkgutil.iter_modules(models.__path__)]


def build(module: Any, call: Call) -> Any:
    """The model. Call it in the strategy's scope, seeds set.

    Raises:
      UserError: `build` raised, or returned neither a Keras model nor a `tf.Module`.
    """
    flag = f"--model={call.text}"
    model = guarded(lambda: module.build(*call.args, **call.kwargs), f"{flag}: its build")
    if not isinstance(model, keras.Model | tf.Module):
        raise UserError(
            f"{flag}: its build returned {type(model).__name__}, not a keras.Model or a tf.Module."
        )
    return model


def guarded(function: Callable[[], T], what: str) -> T:
    """`function()`; what the user's own code raises becomes a message with the line it came from.

    Raises:
      UserError: `function` raised.
    """
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        frames: list[Any] = traceback.extract_tb(error.__traceback__)
        kind, reason = type(error).__name__, str(error)
        if staged := getattr(error, "ag_error_metadata", None):  # code that AutoGraph has rewritten
            frames = staged.translated_stack[::-1]
            kind, _, reason = staged.cause_message.partition(": ")
            if kind == UserError.__name__:
                raise UserError(reason) from None
        own = [f for f in frames if not re.search(r"site-packages|<frozen|__autograph_generated", f.filename)]
        where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
        raise UserError(f"{what} raised {kind}{where}: {' '.join(reason.split())[:1000]}") from error


@contextlib.contextmanager
def naming(text: str) -> Iterator[None]:
    """Gives the value of `--model` to the messages of functions that know the model only."""
    try:
        yield
    except UserError as error:
        head, flag, rest = str(error).partition("--model: ")
        raise UserError(f"--model={text}: {rest}" if flag and not head else str(error)) from error


def check_features(module: Any, model: Any, features: Any, what: str) -> None:
    """Lets the module's own `check(model, features)`, where it has one, refuse a data set by ValueError.

    Args:
      module: the model module.
      model: what its `build` returned.
      features: of the data set, as TFDS has them.
      what: the flags, for the message.

    Raises:
      UserError: it raised.
    """

    def check() -> None:
        try:
            module.check(model, features)
        except ValueError as error:
            raise UserError(f"{what}: {error}.") from error

    if hasattr(module, "check"):
        guarded(check, f"{what}: the model's check")


def check_precision(model: Any, variables: Sequence[ModelVariable], precision: str) -> None:
    """Refuses a model whose variables or layers do not have the precision asked for.

    Raises:
      UserError: names the first such variable.
    """
    storage = tf.float64 if precision == "float64" else tf.float32
    for v in variables:
        if v.trainable and v.dtype != storage:
            raise UserError(
                f"--precision={precision}: {v.name} is {v.dtype.name}. Let the model's build make its "
                f"variables in keras.config.floatx(), which is {storage.name} then."
            )
    if precision.startswith("mixed"):
        half = precision.removeprefix("mixed_")
        layers = [v.layer for v in variables if isinstance(v.layer, keras.Layer)]
        if not any(layer.compute_dtype == half for layer in layers):
            raise UserError(
                f"--precision={precision}: no Keras layer of the model computes in {half}. Mixed precision "
                "is a policy of Keras layers; a plain tf.Module takes --precision=float32 or float64."
            )


def check_loss(
    module: Any,
    model: Any,
    variables: Sequence[ModelVariable],
    trained: frozenset[str],
    spec: Mapping[str, tf.TensorSpec],
    batch: int,
    strategy: tf.distribute.Strategy,
) -> tuple[str, ...]:
    """Traces the loss and its gradient on a batch of the data's shapes; runs nothing.

    Args:
      module: the model module.
      model: what its `build` returned.
      variables: of the model.
      trained: names of those that some group trains.
      spec: of one decoded example.
      batch: examples of one replica's batch.
      strategy: in whose scope the model was built.

    Returns:
      Names of the metrics, sorted.

    Raises:
      UserError: `loss` raises, returns something else than (loss [B], {metric: [B]}), uses a trainable
        variable that has no name here, or does not depend on a variable that is to be trained.
    """
    seen: dict[str, Any] = {}

    def trace(batch: Any) -> None:
        preprocess = getattr(module, "preprocess", None)
        if preprocess:
            batch = preprocess(batch, True, tf.zeros([2], tf.int32))
        with tf.GradientTape() as tape, keras.StatelessScope(collect_losses=True) as scope:
            seen["loss"] = module.loss(model, batch, True)
            losses = _checked(seen["loss"], _batch_size(batch))
            total = tf.reduce_sum(losses) + sum(tf.cast(x, losses.dtype) for x in scope.losses)
        seen["watched"] = tape.watched_variables()
        wanted = [v for v in variables if v.name in trained]
        slopes = tape.gradient(total, [v.value for v in wanted])
        seen["loose"] = [v.name for v, s in zip(wanted, slopes) if s is None]  # noqa: B905

    batched = {k: tf.TensorSpec([batch, *s.shape], s.dtype) for k, s in spec.items()}

    def on_replicas(batch: Any) -> None:
        strategy.run(trace, args=(batch,))

    guarded(lambda: tf.function(on_replicas).get_concrete_function(batched), "--model: its loss")
    known = {id(v.value) for v in variables}
    strange = [w.name for w in seen["watched"] if id(_container(w)) not in known]
    if strange:
        raise UserError(
            f"--model: its loss uses the trainable variable {listing(strange)}, to which no attribute of the "
            "model leads. Make it in build, and keep it in the model."
        )
    if seen["loose"]:
        raise UserError(
            f"--group: the loss does not depend on {listing(seen['loose'])}, so there is no gradient to "
            "train it by. Add a rule before the others that freezes it, such as "
            f"--group='{seen['loose'][0]} frozen'."
        )
    return tuple(sorted(seen["loss"][1]))


def _container(variable: Any) -> Any:
    """The MirroredVariable of which `variable` is one replica's copy, or the variable itself."""
    container = getattr(variable, "_distributed_container", None)
    return container() if container else variable


@tf.autograph.experimental.do_not_convert  # no user's code in it
def _batch_size(batch: Any) -> int | None:
    sizes = {x.shape[0] for x in tf.nest.flatten(batch) if x.shape.rank}
    return sizes.pop() if len(sizes) == 1 else None


@tf.autograph.experimental.do_not_convert  # no user's code in it
def _checked(result: Any, size: int | None) -> tf.Tensor:
    shape = "(loss [B], {metric: value [B] or (value [B], weight [B])})"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise UserError(f"--model: its loss returned {type(result).__name__}, not {shape}.")
    for name, value in result[1].items():
        if name == "loss" or not isinstance(name, str):
            raise UserError(f"--model: a metric is called {name!r}; give it another name, such as accuracy.")
        if isinstance(value, tuple) and len(value) != 2:
            raise UserError(f"--model: the metric {name!r} has {len(value)} parts. loss returns {shape}.")
        for part in value if isinstance(value, tuple) else (value,):
            _check_vector(f"the metric {name!r}", part, size, shape)
    _check_vector("the loss", result[0], size, shape)
    if not result[0].dtype.is_floating:
        raise UserError(f"--model: the loss is {result[0].dtype.name}, not a float.")
    return result[0]


def _check_vector(what: str, value: Any, size: int | None, shape: str) -> None:
    if not tf.is_tensor(value) or value.shape.rank != 1 or (size and value.shape[0] not in (None, size)):
        got = f"shape {value.shape}" if tf.is_tensor(value) else type(value).__name__
        raise UserError(
            f"--model: {what} has {got}, but one value per example ([{size or 'B'}]) is needed: the trainer "
            f"divides by the global batch. loss returns {shape}."
        )
