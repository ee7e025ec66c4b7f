"""Where examples come from: the protocol of a source, and a split of one."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf

from trainer.errors import UserError, guarded, listing

Decode = Callable[[dict[str, Any]], dict[str, Any]]


class Source(Protocol):
    """A data set of one kind, a file of `sources/` each.

    An *element* is what the source reads for one example, undecoded: a serialized record, a row number.
    A split is a name, a part of one (`train[:90%]`) or a sum of such, as TFDS writes them.
    """

    @property
    def name(self) -> str:
        """What a flag calls it."""

    @property
    def full_name(self) -> str:
        """Name and version, for the plan and the checkpoints."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the log, such as that this set stands in for another."""

    @property
    def remedy(self) -> str:
        """A sentence on what to do where its files are damaged."""

    @property
    def features(self) -> Any:
        """What an example is made of, as a model's `check(model, features)` gets it."""

    @property
    def prepared(self) -> bool:
        """Whether examples can be read at once."""

    def prepare(self) -> None:
        """Makes examples ready to be read, unless they are. UserError where that fails."""

    def check(self) -> None:
        """UserError where what was prepared cannot be read here."""

    def sizes(self) -> Mapping[str, int]:
        """`{split: examples}`; {} where that is not yet known."""

    def spec(self) -> dict[str, Any]:
        """Shape and type of each part of one example, unbatched."""

    def ordered(self, split: str) -> tf.data.Dataset:
        """The elements of a split, each once, in their own order."""

    def shuffled(self, split: str, seed: int, start: int) -> tf.data.Dataset:
        """Elements from position `start` on, epoch after epoch, each in an order that (seed, epoch) gives."""

    def example(self, element: Any) -> dict[str, Any]:
        """One element, decoded. Traced."""

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
    """

    source: Source
    name: str
    decode: Decode | None = None
    flag: str = "--train_split"

    def size(self) -> int | None:
        """How many examples; None where that is known only once the source is prepared.

        Raises:
          UserError: no such split, or an empty one.
        """
        sizes = self.source.sizes()
        if not sizes:
            return None
        there = f"There is: {listing(f'{n} ({size})' for n, size in sizes.items())}."
        try:
            examples = sum(stop - start for _, start, stop in parts(self.name, sizes))
        except (ValueError, AssertionError, KeyError) as error:
            raise UserError(f"{self.flag}={self.name}: not a split of {self.source.name}. {there}") from error
        if examples <= 0:
            raise UserError(f"{self.flag}={self.name}: has no examples in {self.source.name}. {there}")
        return examples

    @property
    def examples(self) -> int:
        """How many examples, of a source that is prepared."""
        size = self.size()
        assert size is not None, self.name
        return size

    def spec(self) -> dict[str, Any]:
        """Shape and type of one decoded example, unbatched; reads no data.

        Raises:
          UserError: an example cannot be put into a batch, as its shape varies.
        """
        name, spec = self.source.name, self.source.spec()
        if self.decode is not None:
            trace = tf.function(self.decode).get_concrete_function
            traced = guarded(functools.partial(trace, spec), f"--dataset={name}: the model's decode")
            spec = traced.structured_outputs
        if not isinstance(spec, dict):
            raise UserError(f"--dataset={name}: an example is {spec}, not a dict of tensors.")
        for part in tf.nest.flatten(spec):
            if not isinstance(part, tf.TensorSpec | tf.Tensor) or not part.shape.is_fully_defined():
                raise UserError(
                    f"--dataset={name}: {part} varies from example to example and cannot be "
                    "batched; give the model module a decode(example) that makes its shape fixed."
                )
        return tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), spec)

    def ordered(self) -> tf.data.Dataset:
        """As of the source."""
        return self.source.ordered(self.name)

    def shuffled(self, seed: int, start: int) -> tf.data.Dataset:
        """As of the source."""
        return self.source.shuffled(self.name, seed, start)


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
