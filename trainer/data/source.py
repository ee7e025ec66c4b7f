"""Where examples come from: the protocol of a source, and a split of one."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from trainer.data.padding import Pad, mask_of, named, varies
from trainer.errors import UserError, listing, near
from trainer.model.graphs import strange_writes, traced

Decode = Callable[[dict[str, Any]], dict[str, Any]]


class InOrder(Protocol):
    """Elements that can only be read in a row: files of records, a `tf.data.Dataset`."""

    @property
    def keeps_order(self) -> bool:
        """Whether whoever made them gave them an order that is to be kept."""

    def ordered(self) -> tf.data.Dataset:
        """Each once, in their own order."""

    def shuffled(self, seed: int, start: int) -> tf.data.Dataset:
        """From position `start` on, epoch after epoch, each in an order that (seed, epoch) gives."""


class Source(Protocol):
    """A data set of one kind, a file of `sources/` each.

    An *element* is what the source reads for one example, undecoded: the number of a row, or a serialized
    record. A split is a name, a part of one (`train[:90%]`) or a sum of such, as TFDS writes them.
    """

    @property
    def name(self) -> str:
        """What a flag calls it."""

    @property
    def full_name(self) -> str:
        """Name and version, for the plan and the checkpoints."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the log: what was inferred, or that this set stands in for another."""

    @property
    def remedy(self) -> str:
        """A sentence on what to do where its examples cannot be read."""

    @property
    def features(self) -> Any:
        """What an example is made of, as a model's `check(model, features)` gets it."""

    @property
    def prepared(self) -> bool:
        """Whether examples can be read at once."""

    @property
    def in_memory(self) -> bool:
        """Whether examples are in the host's memory, decoded, or mapped into it."""

    def prepare(self) -> None:
        """Makes examples ready to be read, unless they are. UserError where that fails."""

    def fingerprint(self) -> str:
        """Of the examples of a prepared source: another where they changed, as far as seconds can tell."""

    def sizes(self) -> Mapping[str, int]:
        """`{split: examples}`; {} where that is not yet known."""

    def spec(self) -> dict[str, Any]:
        """Shape and type of each part of one example; a first dimension of None differs among examples."""

    def elements(self, split: str) -> np.ndarray | InOrder:
        """Of a split: int64 numbers where any element can be had at any time, else a way through them."""

    def example(self, element: tf.Tensor) -> dict[str, Any]:
        """One element, decoded. Traced."""

    def examples(self, elements: tf.Tensor) -> dict[str, Any]:
        """A group of elements [group], decoded: [group, ...], a RaggedTensor where lengths differ. Traced."""

    def arrays(self, split: str) -> dict[str, Any] | None:
        """The whole split as arrays [examples, ...] where they are in memory; None where not."""


@dataclass(frozen=True)
class Split:
    """A split as a model sees it.

    Attributes:
      source: what it is a split of.
      name: such as `train[:90%]`.
      decode: the model module's own, of one example; None for examples as the source has them.
      flag: that names the split, for messages.
      pads: by feature, how examples of different lengths are brought to one.
      bad: what becomes of examples that cannot be used, a value of --bad_examples.
      classes: by feature that the model takes for numbers of classes, how many it has.
    """

    source: Source
    name: str
    decode: Decode | None = None
    flag: str = "--train_split"
    pads: Mapping[str, Pad] = field(default_factory=dict)
    bad: str = "refuse"
    classes: Mapping[str, int] = field(default_factory=dict)

    def size(self) -> int | None:
        """How many examples; None where that is known only once the source is prepared.

        Raises:
          UserError: no such split, or an empty one.
        """
        sizes = self.source.sizes()
        if not sizes:
            return None
        known = f"There is: {listing(f'{n} ({size})' for n, size in sizes.items())}."
        try:
            examples = sum(stop - start for _, start, stop in parts(self.name, sizes))
        except (ValueError, AssertionError, KeyError) as error:
            remedy = _cut(self, sizes) if self.flag == "--eval_split" else ""
            raise UserError(
                f"{self.flag}={self.name}: not a split of {self.source.name}. {known}{remedy}"
            ) from error
        if examples <= 0:
            raise UserError(f"{self.flag}={self.name}: has no examples in {self.source.name}. {known}")
        return examples

    @property
    def examples(self) -> int:
        """How many examples, of a source that is prepared."""
        size = self.size()
        assert size is not None, self.name
        return size

    @functools.cached_property
    def traced(self) -> Any:
        """The model's `decode`, traced; None where it has none.

        Raises:
          UserError: it raises, draws random numbers, or writes a variable: a resume would meet others.
        """
        if self.decode is None:
            return None
        what = f"--dataset={self.source.name}: the model's decode"
        found = traced(self.decode, self.source.spec(), what)
        if written := strange_writes(found.graph, ()):
            raise UserError(
                f"{what} writes {listing(written)}, whose value no checkpoint holds. An example must be a "
                "function of what is stored alone."
            )
        return found

    @functools.cached_property
    def _layout(self) -> dict[str, Any]:
        """As `layout`."""
        name, spec = self.source.name, self.source.spec()
        if self.traced is not None:
            spec = self.traced.structured_outputs
        if not isinstance(spec, dict):
            raise UserError(f"--dataset={name}: an example is {spec}, not a dict of tensors.")
        for path, part in named(spec):
            self._check_part(path, part)
        self._check_pads(spec)
        return tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), spec)

    def layout(self) -> dict[str, Any]:
        """Shape and type of one decoded example, unbatched; reads no data.

        Raises:
          UserError: an example cannot be put into a batch, as its shape varies and no rule pads it.
        """
        return dict(self._layout)

    def spec(self) -> dict[str, Any]:
        """As `layout`, and `<feature>_mask` for each feature that is padded: what a batch is made of."""
        layout = self.layout()
        return {**layout, **{mask_of(name): tf.TensorSpec([None], tf.bool) for name in self.padded}}

    @property
    def padded(self) -> list[str]:
        """Features whose examples differ in length."""
        return [name for name, part in self.layout().items() if not isinstance(part, dict) and varies(part)]

    def elements(self) -> np.ndarray | InOrder:
        """As of the source."""
        return self.source.elements(self.name)

    def _check_part(self, path: str, part: Any) -> None:
        """Refuses a part of an example that no batch can have."""
        if not isinstance(part, tf.TensorSpec | tf.Tensor):
            raise UserError(f"--dataset={self.source.name}: {path} is {part}, not a tensor. Give the model "
                            "module a decode(example) that makes it one.")  # fmt: skip
        if part.shape.is_fully_defined():
            return
        if varies(part) and path not in self.pads and "/" not in path:
            raise UserError(
                f"--dataset={self.source.name}: {path} {_shown(part)} differs in length from example to "
                "example "
                f"and cannot be batched. Have it padded, --pad='{path} multiple=16', or give the model "
                "module a decode(example) that makes its shape fixed."
            )
        if not varies(part) or "/" in path:
            raise UserError(
                f"--dataset={self.source.name}: {path} {_shown(part)} varies from example to example and "
                "cannot be batched: only a first dimension is padded. Give the model module a "
                "decode(example) that makes its shape fixed."
            )

    def _check_pads(self, spec: Mapping[str, Any]) -> None:
        """Refuses a rule that pads nothing, and a mask that would hide a feature."""
        for name, pad in self.pads.items():
            if name not in spec:
                raise UserError(f"--pad={pad.text}: there is no feature {name}. {near(name, spec)}")
            if isinstance(spec[name], dict) or not varies(spec[name]):
                raise UserError(
                    f"--pad={pad.text}: {name} {_shown(spec[name])} has one length. Remove the rule."
                )
            if mask_of(name) in spec:
                raise UserError(
                    f"--pad={pad.text}: the data have a feature {mask_of(name)} of their own, which is the "
                    "name of the mask. Rename it."
                )


def _shown(part: Any) -> str:
    shape = "" if isinstance(part, dict) else [size for size in part.shape]
    return "(nested)" if isinstance(part, dict) else f"{part.dtype.name}{shape}"


def _cut(split: Split, sizes: Mapping[str, int]) -> str:
    """A way out for who has no split to evaluate on."""
    if split.name.partition("[")[0] in sizes:
        return ""
    first = next(iter(sizes))
    return (
        f" Keep a part of {first} out of training, --train_split={first}[:90%] --eval_split={first}[90%:], "
        "or "
        "evaluate on nothing, --eval_split=none."
    )


def parts(split: str, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """(name, first, last + 1) of each part of a split.

    Raises:
      ValueError, AssertionError, KeyError: it is not of TFDS's grammar, or there is no such name.
    """
    import tensorflow_datasets as tfds

    infos = {name: tfds.core.SplitInfo(name, [size], 0) for name, size in sizes.items()}
    found = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    ends = [sizes[part.splitname] if part.to is None else part.to for part in found]
    return [(part.splitname, part.from_ or 0, end) for part, end in zip(found, ends, strict=True)]


def place_of(number: int, sizes: Mapping[str, int]) -> tuple[str, int]:
    """The split and the place in it of an element, where the splits are numbered in a row."""
    for name, size in sizes.items():
        if number < size:
            return name, number
        number -= size
    raise IndexError(number)


def shared(one: str, other: str, sizes: Mapping[str, int]) -> int:
    """How many examples of split `other` are in split `one`, too."""
    count = 0
    for name, first, stop in parts(other, sizes):
        seen = np.zeros(max(stop - first, 0), bool)
        for known, start, end in parts(one, sizes):
            if known == name:
                seen[max(start - first, 0) : max(end - first, 0)] = True
        count += int(seen.sum())
    return count
