"""What a model module says of a whole split: rows of `outputs`, and `metrics` of all of them at once.

`outputs(model, batch) -> {name: [B, ...]}` gives numbers for each example; `metrics({name: array [N, ...]})`
gives numbers (shown, logged, to stop and to keep the best by), arrays (a confusion matrix: for tables and
the report; uint8 [height, width, 1 or 3] is an image) and texts (a line that a language model wrote). Where
`outputs` has `logits` [B, C] and `labels` [B], a confusion matrix and a table of the classes are there
without more.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.errors import UserError, listing
from trainer.model import scores
from trainer.model.graphs import traced
from trainer.model.module import ModelModule, guarded

CLASSES = ("confusion_matrix", "per_class")  # what is there for logits and labels
MOST_CLASSES = 1000  # of a confusion matrix, which has as many squared cells


class Evaluation(NamedTuple):
    """The result of an evaluation; without numbers where it was stopped before its end.

    Attributes:
      numbers: `{"loss": mean, metric: number, "examples": count}`.
      arrays: `{name: array}`, what is no number.
      rows: `{name: array [N, ...]}`, the outputs of the whole split in its order; {} where there are none.
      weightless: in words, which numbers are NaN because no example gave them a weight.
    """

    numbers: dict[str, float]
    arrays: dict[str, np.ndarray]
    rows: Mapping[str, np.ndarray] = {}
    weightless: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """`outputs` and `metrics` of a model module, checked.

    Attributes:
      function: `(model, batch) -> {name: [B, ...]}`.
      specs: shape and type of each output's row.
      metrics: `({name: array [N, ...]}) -> {metric: number or array}`; None where the module has none.
      names: of the numbers that an evaluation yields; None where only one can tell.
    """

    function: Callable[..., Any]
    specs: Mapping[str, tf.TensorSpec]
    metrics: Callable[..., Any] | None
    names: tuple[str, ...] | None

    @property
    def bytes(self) -> int:
        """Of one row."""
        return sum(s.shape.num_elements() * s.dtype.size for s in self.specs.values())

    def rows(self, model: Any, batch: Any) -> dict[str, tf.Tensor]:
        """The outputs of a batch, in the types that are gathered."""
        return {name: widened(value) for name, value in self.function(model, batch).items()}

    def of_split(self, rows: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """(numbers, arrays) of all rows of a split, in its order.

        Raises:
          UserError: `metrics` raised, or returned something else.
        """
        numbers: dict[str, float] = {}
        arrays = _of_classes(rows) if has_classes(self.specs) else {}
        own = self.metrics
        if own is None:
            return numbers, arrays
        found = guarded(lambda: own(dict(rows)), "--model: its metrics")
        if not isinstance(found, Mapping):
            raise UserError(f"--model: its metrics returned {type(found).__name__}, not {{metric: number}}.")
        for name, value in found.items():
            array = np.asarray(value)
            if isinstance(value, str):
                arrays[str(name)] = array
                continue
            if array.dtype.kind not in "biuf":
                raise UserError(
                    f"--model: its metrics returned {name!r}: {value!r}, no number, array or text."
                )
            if array.ndim:
                arrays[str(name)] = array
            else:
                numbers[str(name)] = float(array)
        return numbers, arrays


def widened(value: tf.Tensor) -> tf.Tensor:
    """A tensor as float32 or float64, or as int64: types that every device and worker can gather."""
    if value.dtype.is_floating:
        return value if value.dtype.size >= 4 else tf.cast(value, tf.float32)
    return tf.cast(value, tf.int64) if value.dtype.is_integer or value.dtype.is_bool else value


def has_classes(specs: Mapping[str, Any]) -> bool:
    """Whether there are `logits` [B, C] and whole-numbered `labels` [B], in `{name: spec of a row}`."""
    logits, labels = specs.get("logits"), specs.get("labels")
    return (
        logits is not None
        and labels is not None
        and logits.shape.rank == 1
        and 1 < logits.shape[0] <= MOST_CLASSES
        and labels.shape.rank == 0
        and labels.dtype.is_integer
    )


def check(
    module: ModelModule,
    model: Any,
    spec: Mapping[str, tf.TensorSpec],
    batch: int,
    others: Sequence[str],
) -> Outputs | None:
    """The module's `outputs` and `metrics`, traced on a batch of the data's shapes; None where it has none.

    Args:
      module: the model module.
      model: what its `build` returned.
      spec: of one decoded example.
      batch: examples of one replica's batch.
      others: metrics of its `loss`.

    Raises:
      UserError: they do not go together, return something else, or have a name that is taken.
    """
    if module.outputs is None:
        if module.metrics is not None:
            raise UserError("--model: it has metrics and no outputs(model, batch) to compute them from.")
        return None
    specs = _traced(module, model, spec, batch)
    if module.metrics is None and not has_classes(specs):
        raise UserError(
            f"--model: its outputs ({listing(specs)}) are of no use: add metrics(outputs), or return logits "
            "[B, C] and labels [B] for a table of the classes."
        )
    found = Outputs(module.outputs, specs, module.metrics, None)
    names = _names(found)
    if names is not None:
        check_names(names, others)
    numbers = tuple(n for n, is_number in names.items() if is_number) if names is not None else None
    return Outputs(module.outputs, specs, module.metrics, numbers)


def check_names(names: Mapping[str, Any], others: Sequence[str]) -> None:
    """Refuses a metric of the whole split that has the name of another."""
    taken = [name for name in names if name in ("loss", "examples", *others)]
    if taken:
        raise UserError(f"--model: its metrics return {listing(taken)}, a name that is taken. Rename it.")


def _traced(
    module: ModelModule, model: Any, spec: Mapping[str, tf.TensorSpec], batch: int
) -> dict[str, tf.TensorSpec]:
    """Shape and type of each output's row."""
    batched = tf.nest.map_structure(lambda s: tf.TensorSpec([batch, *s.shape], s.dtype), dict(spec))

    def outputs(batch: Any) -> Any:
        if module.preprocess:
            batch = module.preprocess(batch, False, tf.zeros([2], tf.int32))
        with keras.StatelessScope():
            return _checked(module.outputs(model, batch))  # type: ignore[misc]

    found = traced(outputs, batched, "--model: its outputs").structured_outputs
    return {name: _row(name, value, batch) for name, value in found.items()}


@tf.autograph.experimental.do_not_convert  # no user's code in it
def _checked(found: Any) -> dict[str, tf.Tensor]:
    if not isinstance(found, Mapping) or not found or not all(map(tf.is_tensor, found.values())):
        raise UserError(
            f"--model: its outputs returned {type(found).__name__}, not {{name: tensor [B, ...]}}."
        )
    return {name: widened(value) for name, value in found.items()}


def _row(name: str, value: Any, batch: int) -> tf.TensorSpec:
    if not value.dtype.is_floating and not value.dtype.is_integer:
        raise UserError(f"--model: its outputs return {name} as {value.dtype.name}. Return numbers.")
    if not value.shape.rank or value.shape[0] not in (None, batch) or not value.shape[1:].is_fully_defined():
        raise UserError(
            f"--model: its outputs return {name} of shape {value.shape}. Return [{batch}, ...] of fixed "
            "shape: one row an example (tf.ensure_shape states it)."
        )
    return tf.TensorSpec(value.shape[1:], value.dtype)


def _names(outputs: Outputs) -> dict[str, bool] | None:
    """`{name: whether it is a number}` of what `metrics` returns for made-up rows; None where it raises."""
    size = 8

    def made_up(spec: tf.TensorSpec) -> np.ndarray:
        count = size * spec.shape.num_elements()
        values = np.arange(count) % 2 if spec.dtype.is_integer else np.linspace(0.1, 0.9, count)
        return values.reshape([size, *spec.shape]).astype(spec.dtype.as_numpy_dtype)

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            numbers, arrays = outputs.of_split({n: made_up(s) for n, s in outputs.specs.items()})
    except UserError:
        return None
    return {**dict.fromkeys(numbers, True), **dict.fromkeys(arrays, False)}


def _of_classes(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    logits = rows["logits"]
    matrix = scores.confusion_matrix(rows["labels"], logits.argmax(1), logits.shape[1])
    return dict(zip(CLASSES, (matrix, scores.per_class(matrix)), strict=True))
