"""Reading a split: its elements decoded in groups, and the whole of it as arrays."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.bad import blamed, checked, refuse_bad, refuse_classes
from trainer.data.padding import dense, mask_of, signature, varies
from trainer.data.source import Split, place_of
from trainer.data.stored import Flat, Stored
from trainer.errors import UserError
from trainer.model.graphs import host_functions

PROBED = 16  # examples that are decoded beforehand, twice, where Python does it
TOGETHER = 1024  # elements that are passed over at a time
Check = Callable[[dict[str, Any]], dict[str, Any]]
GROUP = 64  # elements that are decoded by one call: half the time of one call each


def decoder(split: Split, check: Check | None = None) -> Callable[[Any], dict[str, Any]]:
    """Makes examples, [group, ...], of a group of elements; traceable.

    Args:
      split: what they are of.
      check: looks at examples as the source has them, before the model's own `decode`.
    """
    source, decode, check = split.source, split.decode, check or dict
    if decode is None:
        return lambda elements: check(source.examples(elements))
    layout = signature(split.layout())
    spec = source.spec()
    if all(part.shape.is_fully_defined() or varies(part) for part in tf.nest.flatten(spec)):

        def examples(elements: Any) -> dict[str, Any]:
            group = check(source.examples(elements))
            return tf.map_fn(decode, group, fn_output_signature=layout, parallel_iterations=1)

        return examples

    def one(element: Any) -> dict[str, Any]:
        return decode(check(source.example(element)))

    return lambda elements: tf.map_fn(one, elements, fn_output_signature=layout, parallel_iterations=1)


def load(split: Split) -> dict[str, Any]:
    """The decoded split as arrays [examples, ...], in order; `Flat` where lengths differ.

    Raises:
      UserError: the source holds more or fewer examples than it says, or one that cannot be used.
    """
    if split.decode is None and (arrays := split.source.arrays(split.name)) is not None:
        refuse_bad(arrays, split.source.name, split.name, split.bad)  # those that are mapped, too
        _check_classes(split, arrays)
        return arrays
    size, layout = split.examples, split.layout()
    columns = [_Column(spec, size) for spec in tf.nest.flatten(layout)]
    decode = decoder(split)
    groups = grouped(split).map(lambda e: tf.nest.flatten(decode(e)), tf.data.AUTOTUNE, deterministic=True)
    with telling(split, lambda: elements_of(split)):
        for part in groups.prefetch(tf.data.AUTOTUNE):
            for column, values in zip(columns, part, strict=True):
                column.add(values)
    filled = columns[0].filled
    if filled != size:
        raise UserError(
            f"--dataset={split.source.name}: {split.name} has {filled} examples and should have {size}; the "
            f"files are damaged. {split.source.remedy}"
        )
    arrays = tf.nest.pack_sequence_as(layout, [column.stored for column in columns])
    refuse_bad(arrays, split.source.name, split.name, split.bad)
    _check_classes(split, arrays)
    return arrays


def check_examples(split: Split, whole: bool) -> None:
    """Looks at what can be had before anything is compiled: labels in memory, and whether `decode` repeats.

    Args:
      split: of a prepared source.
      whole: whether all of it will be drawn from memory.

    Raises:
      UserError: a label for which the model has no output, or examples that are decoded as others when they
        are decoded again.
    """
    source = split.source
    if split.decode is None:
        arrays = source.arrays(split.name) if whole and split.classes else None
        _check_classes(split, arrays or {})
    elif host_functions(split.traced.graph):
        decode, some = tf.function(decoder(split)), elements_of(split).take(PROBED).batch(PROBED)
        with telling(split, lambda: elements_of(split)):
            one, other = ([tf.nest.flatten(decode(group)) for group in some] for _ in range(2))
        if _bytes(one) != _bytes(other):
            raise UserError(
                f"--dataset={source.name}: the model's decode makes another example of split {split.name} "
                "each time, so that no run could be repeated or resumed. Leave what is random to preprocess, "
                "which has a seed."
            )


def _check_classes(split: Split, arrays: dict[str, Any]) -> None:
    if split.bad != "keep":
        refuse_classes(arrays, split.classes, split.source.name, split.name)


def _bytes(groups: Any) -> list[Any]:
    flat = [part for group in groups for part in group]
    arrays = [getattr(part, "flat_values", part).numpy() for part in flat]
    return [a.tolist() if a.dtype == object else a.tobytes() for a in arrays]


def some_of(split: Split, rows: np.ndarray) -> dict[str, Any]:
    """A few decoded examples of a split, [rows, ...], by their places in it, int64 [rows].

    Elements that can only be read in a row are read up to the last of them, and decoded no more than these.

    Raises:
      UserError: one of them cannot be read or decoded.
    """
    found = split.elements()
    if isinstance(found, np.ndarray):
        chosen: Any = found[rows]
    else:
        at, wanted = 0, dict[int, Any]()
        for group in found.ordered().batch(TOGETHER).take(-(-(max(rows) + 1) // TOGETHER)):
            wanted |= {row: group[row - at] for row in rows if at <= row < at + TOGETHER}
            at += TOGETHER
        chosen = tf.stack([wanted[row] for row in rows])
    elements = tf.data.Dataset.from_tensor_slices(chosen)
    decode = decoder(split)
    with telling(split, lambda: elements):
        # Only code of the user's own may need a trace, which takes longer than a few examples do.
        return (decode if split.decode is None else tf.function(decode))(tf.constant(chosen))


def batch_of(split: Split) -> dict[str, Any]:
    """The decoded split as one batch, as a model sees it: padded, with masks."""
    arrays = load(split)
    for name in split.padded:
        flat, pad = arrays[name], split.pads[name]
        ragged = tf.RaggedTensor.from_row_lengths(flat.values, flat.lengths)
        values, mask = dense(ragged, pad, split.layout()[name])
        arrays = {**arrays, name: values.numpy(), mask_of(name): mask.numpy()}
    return arrays


def elements_of(split: Split) -> tf.data.Dataset:
    """The elements of a split, each once, in order."""
    found = split.elements()
    return tf.data.Dataset.from_tensor_slices(found) if isinstance(found, np.ndarray) else found.ordered()


def grouped(split: Split) -> tf.data.Dataset:
    """As `elements_of`, some at a time."""
    return elements_of(split).batch(GROUP)


@contextlib.contextmanager
def telling(split: Split, elements: Callable[[], tf.data.Dataset]) -> Iterator[None]:
    """What goes wrong in reading or decoding becomes a message that names the example.

    TensorFlow does not say which of the examples in work it was. They are tried again, one by one.

    Raises:
      UserError: one of `elements` cannot be read or decoded.
    """
    try:
        yield
    except (tf.errors.OpError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        refusal = fault(split, elements())
        raise (refusal or error) from error


def checking(split: Split, alone: bool = False) -> Check | None:
    """What looks at examples that are read as they go; None where they are to be taken as they are."""
    return functools.partial(checked, alone=alone) if split.bad != "keep" else None


def fault(split: Split, elements: tf.data.Dataset) -> UserError | None:
    """The first of `elements` that cannot be read, decoded or used, as a message; None where all can."""
    for alone in (False, True):
        found = _first_fault(split, elements, tf.function(decoder(split, checking(split, alone))))
        if found is not None:
            return found
    return None


def _first_fault(split: Split, elements: tf.data.Dataset, decode: Any) -> UserError | None:
    iterator, element = iter(elements.batch(1)), None
    try:
        while (element := next(iterator, None)) is not None:
            decode(element)
            element = None
    except (tf.errors.OpError, ValueError) as error:
        text = str(getattr(error, "message", error))
        if own := re.search(r"UserError: (--.*?)(?:\n|$)", text):  # a source's own message
            return UserError(own[1])
        where = f"--dataset={split.source.name}: {_place(split, element)}"
        if bad := blamed(text):
            return UserError(f"{where}, {bad}. Mend the data, or give --bad_examples=keep to train on it.")
        return UserError(f"{where}, cannot be read: {_reason(text)} {split.source.remedy}")
    return None


def _reason(text: str) -> str:
    """What an op says, without TensorFlow's report around it."""
    lines = [x for x in text.splitlines() if not re.match(r'\s+File "|Detected at|Graph exec|\s*\[\[', x)]
    reason = " ".join(" ".join(lines).partition("Traceback (most recent call last)")[0].split())
    return re.sub(r"^\{\{function_node.*?\}\}\s*|\s*\[Op:\w+\]|\[\[\{\{.*", "", reason)[:400]


def _place(split: Split, element: Any) -> str:
    """`split train, example 17`, counted from 0, and its file where it has one of its own."""
    if element is not None and element.dtype == tf.int64:
        number, own_file = int(element[0]), getattr(split.source, "file", None)
        name, at = place_of(number, split.source.sizes())
        return f"split {name}, example {at}" + (f" ({own_file(number)})" if own_file else "")
    at = -1
    with contextlib.suppress(tf.errors.OpError):  # read in order, up to the same one
        for at, other in enumerate(elements_of(split)):
            if element is not None and bool(tf.reduce_all(other == element[0])):
                return f"split {split.name}, example {at}"
    return f"split {split.name}, example {at + 1}"


class _Column:
    """One part of the examples of a split, filled group by group."""

    def __init__(self, spec: tf.TensorSpec, size: int) -> None:
        self.spec, self.size, self.filled = spec, size, 0
        self.parts: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        if not varies(spec):
            self.array = np.empty((size, *spec.shape), spec.dtype.as_numpy_dtype)

    def add(self, values: Any) -> None:
        """The next group."""
        if varies(self.spec):
            self.parts.append(values.flat_values.numpy())
            self.lengths.append(values.row_lengths().numpy())
            rows = len(self.lengths[-1])
        else:
            group = values.numpy()
            rows = len(group)
            self.array[self.filled : self.filled + rows] = group[: max(0, self.size - self.filled)]
        self.filled += rows

    @property
    def stored(self) -> Stored:
        """All of it."""
        if not varies(self.spec):
            return self.array
        return Flat(np.concatenate(self.parts), np.concatenate(self.lengths))
