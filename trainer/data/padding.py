"""Examples of different lengths: the rule that pads a feature, and the order that puts like to like."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.errors import UserError, near

Permute = Callable[[int, int, int], np.ndarray]


@dataclass(frozen=True)
class Pad:
    """How the examples of one feature are brought to one length: that of the longest in the global batch.

    Attributes:
      feature: its name.
      multiple: the length is rounded up to a multiple of this.
      most: longer examples are cut to this length; None for no limit.
      value: what the rest is filled with.
      bucket: batches among which examples are sorted by length, so that like goes with like; 0 for none.
      text: as the flag has it.
    """

    feature: str
    multiple: int = 1
    most: int | None = None
    value: float = 0
    bucket: int = 0
    text: str = ""

    def length(self, longest: tf.Tensor) -> tf.Tensor:
        """The padded length, an int32 scalar, where the longest example has `longest`."""
        longest = tf.maximum(tf.cast(longest, tf.int32), 1)
        rounded = -(-longest // self.multiple) * self.multiple
        return rounded if self.most is None else tf.minimum(rounded, self.most)


def parse_pads(texts: Sequence[str]) -> dict[str, Pad]:
    """The rules of `--pad`, by feature: `FEATURE [multiple=N] [max=N] [value=X] [bucket=BATCHES]`.

    Raises:
      UserError: a rule that cannot be read, or two of one feature.
    """
    pads: dict[str, Pad] = {}
    for text in texts:
        name, *options = text.split() or [""]
        if not name or "=" in name:
            raise UserError(f"--pad={text}: begins with the name of a feature, such as 'tokens multiple=16'.")
        if name in pads:
            raise UserError(f"--pad={text}: {name} has a rule already, {pads[name].text!r}. Keep one.")
        values: dict[str, Any] = {}
        for option in options:
            key, _, value = option.partition("=")
            if key not in ("multiple", "max", "value", "bucket") or key in values:
                raise UserError(
                    f"--pad={text}: {option}. {near(key, ('multiple', 'max', 'value', 'bucket'))}"
                )
            values[key] = _number(value, key, text)
        most, multiple = values.get("max"), values.get("multiple", 1)
        if most is not None and most % multiple:
            raise UserError(f"--pad={text}: max={most} is not a multiple of {multiple}.")
        pads[name] = Pad(name, multiple, most, values.get("value", 0), values.get("bucket", 0), text)
    if len([pad for pad in pads.values() if pad.bucket]) > 1:
        raise UserError("--pad: examples can be sorted by one feature only. Keep one bucket=.")
    return pads


def _number(value: str, key: str, text: str) -> Any:
    if re.fullmatch(r"[0-9]{1,9}", value, re.ASCII) and (int(value) > 0 or key == "value"):
        return int(value)
    if key == "value" and re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", value, re.ASCII):
        return float(value) if "." in value else int(value)
    raise UserError(
        f"--pad={text}: {key}={value} is not a {'number' if key == 'value' else 'whole number above 0'}."
    )


def mask_of(feature: str) -> str:
    """Name of the mask of a padded feature: bool, True where there is an example."""
    return f"{feature}_mask"


def varies(part: Any) -> bool:
    """Whether a part of an example (its spec) has a first dimension that differs, and only that."""
    shape = part.shape
    return bool(shape.rank) and shape[0] is None and shape[1:].is_fully_defined()


def dense(values: tf.RaggedTensor, pad: Pad, like: tf.TensorSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """(padded [rows, length, ...], mask bool [rows, length]) of examples of different lengths."""
    lengths = tf.cast(values.row_lengths(), tf.int32)
    length = pad.length(tf.reduce_max(lengths))
    fill = tf.cast(pad.value, like.dtype) if like.dtype != tf.string else tf.constant("")
    filled = longer(values.to_tensor(fill)[:, :length], length, pad.value)
    return tf.ensure_shape(filled, [values.shape[0], *like.shape]), tf.sequence_mask(lengths, length)


def longer(value: tf.Tensor, length: tf.Tensor, fill: Any) -> tf.Tensor:
    """`value` [rows, l, ...] with as much of `fill` behind each row as makes it `length` long."""
    more = [[0, 0], [0, tf.maximum(length - tf.shape(value)[1], 0)], *[[0, 0]] * (value.shape.rank - 2)]
    fill = tf.constant("") if value.dtype == tf.string else tf.cast(fill, value.dtype)
    return tf.pad(value, more, constant_values=fill)


def bucketed(permute: Permute, lengths: np.ndarray, batch: int, window: int) -> Permute:
    """An order in which a batch's examples are of like length, and yet near to that of `permute`.

    Of every `window` batches in a row the examples are sorted by length and cut into batches, and these
    are put into an order that (seed, epoch) gives. No example moves farther than `window` batches.
    """

    def permuted(seed: int, examples: int, epoch: int) -> np.ndarray:
        chosen = permute(seed, examples, epoch)
        first = -epoch * examples % batch  # what is left of a batch that began in the epoch before
        draw = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=1 << 64)
        pieces = [chosen[:first]]
        for start in range(first, examples, window * batch):
            piece = chosen[start : start + window * batch]
            piece = piece[np.argsort(lengths[piece], kind="stable")]
            whole = len(piece) // batch
            # The rest, which no batch of this epoch fills, stays at the end: the longest ones.
            batches = piece[: whole * batch].reshape(whole, batch)
            order = np.argsort(draw.random_raw(whole), kind="stable") if whole else np.arange(0)
            pieces += [batches[order].ravel(), piece[whole * batch :]]
        return np.concatenate(pieces)

    return permuted


def signature(spec: Any) -> Any:
    """What `tf.map_fn` returns where its function returns examples of `spec`."""

    def one(part: tf.TensorSpec) -> Any:
        if varies(part):
            return tf.RaggedTensorSpec(part.shape, part.dtype, ragged_rank=0)
        return part

    return tf.nest.map_structure(one, spec)


def named(spec: Any, before: str = "") -> list[tuple[str, Any]]:
    """(path, part) of each part of an example, in the order of `tf.nest.flatten`."""
    if isinstance(spec, Mapping):
        return [pair for name in sorted(spec) for pair in named(spec[name], f"{before}{name}/")]
    if isinstance(spec, list | tuple):
        return [pair for i, part in enumerate(spec) for pair in named(part, f"{before}{i}/")]
    return [(before.removesuffix("/"), spec)]
