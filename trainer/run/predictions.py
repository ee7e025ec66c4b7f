"""What a model says of examples: those of a split of any source, or of what has no labels at all."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.checkpoints.manifest import Entry
from trainer.data.feed import Feed
from trainer.data.padding import parse_pads
from trainer.data.source import Source, Split
from trainer.data.sources.arrays import Arrays
from trainer.errors import UserError, listing
from trainer.flags.config import Config
from trainer.model.module import guarded
from trainer.run import build
from trainer.run.assemble import evaluation
from trainer.run.build import Built
from trainer.run.serving import Batch, Served, from_bytes, is_image, nothing, reached
from trainer.training.prediction import predicted, predictor

_NAMES = re.compile(
    r"ids?|.*_ids?|keys?|names?|paths?|files?|file_?names?|.*_file"
)  # features that name examples
_KEPT = "kept:"  # before a feature that goes past the model into the file
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")

Specs = Mapping[str, tf.TensorSpec]


@dataclass(frozen=True)
class Predictions:
    """A model and the examples that it is to look at.

    Attributes:
      config: the flags.
      built: the model, with its weights.
      split: of the examples, prepared.
      recorded: spec of an example of the run's own data, before `decode`, as far as it is known.
    """

    config: Config
    built: Built
    split: Split
    recorded: Specs

    @cached_property
    def _missing(self) -> dict[str, tf.TensorSpec]:
        """Features of the run's data that these have not."""
        here = self.split.source.spec()
        return {name: spec for name, spec in self.recorded.items() if name not in here}

    @cached_property
    def _files(self) -> dict[str, tf.TensorSpec]:
        """Images that are encoded here, or paths, and decoded in the run's data."""
        here = self.split.source.spec()
        return {n: s for n, s in self.recorded.items() if is_image(s) and n in here and _is_text(here[n])}

    @cached_property
    def _names(self) -> list[str]:
        """Features that name the examples."""
        return [n for n, s in self.split.source.spec().items() if _NAMES.fullmatch(n) and _is_name(s)]

    def _decoded(self, example: Batch, missing: Batch) -> Batch:
        """An example as the model takes it, what names it beside."""
        own = self.split.decode
        whole = {**missing, **example}
        for name, spec in self._files.items():
            whole[name] = from_bytes(tf.io.read_file(example[name]), spec)
        decoded = own(whole) if own else whole
        return {**decoded, **{_KEPT + name: example[name] for name in self._names}}

    @cached_property
    def decoded(self) -> Split:
        """The split with all that the model asks for; what is not there is zeros."""
        if not (self._missing or self._files or self._names):
            return self.split

        def decode(example: Batch) -> Batch:
            return self._decoded(example, {name: nothing(spec) for name, spec in self._missing.items()})

        return replace(self.split, decode=decode)

    def check(self) -> None:
        """Refuses data that lack what the outputs depend on, or that the model cannot be called on.

        Raises:
          UserError: names what is lacking.
        """
        source = self.split.source
        what = f"--mode=predict: calling the model on {source.name}"
        if not self._missing:
            return
        served = self.served

        def outputs(parts: dict[str, Batch]) -> Any:
            decoded = self._decoded({k: v for k, v in parts["example"].items()}, parts["missing"])
            batch = {k: tf.nest.map_structure(lambda x: x[tf.newaxis], v) for k, v in decoded.items()}
            kept = {k: v for k, v in batch.items() if not k.startswith(_KEPT)}
            return served(self.built.model, kept)

        specs = {"example": source.spec(), "missing": self._missing}
        lacking = [n for n in self._missing if self._needs(outputs, specs, n, what)]
        if lacking:
            raise UserError(
                f"--dataset={source.name}: the model's outputs depend on {listing(lacking)}, which is not "
                f"among {listing(source.spec())}."
            )

    def _needs(self, outputs: Any, specs: Mapping[str, Any], name: str, what: str) -> bool:
        """Whether the outputs depend on this missing feature."""
        rest = {n: s for n, s in specs["missing"].items() if n != name}

        def of_one(parts: Batch) -> Any:
            filled = {n: nothing(s) for n, s in rest.items()}
            return outputs({"example": parts["example"], "missing": {**filled, name: parts["one"]}})

        return "one" in reached(of_one, {"example": specs["example"], "one": specs["missing"][name]}, what)

    @cached_property
    def served(self) -> Served:
        """The model."""
        spec = {n: s for n, s in self.decoded.spec().items() if not n.startswith(_KEPT)}
        return Served(self.built, spec, self.config.model_name)

    def feed(self) -> Feed:
        """Every example once, in order."""
        return evaluation(self.config, self.built, self.decoded)

    def rows(self, feed: Feed) -> Iterator[dict[str, np.ndarray]]:
        """What names the examples, and the outputs, some rows at a time and in order."""
        served, model = self.served, self.built.model

        def function(batch: Batch) -> dict[str, tf.Tensor]:
            kept = {n.removeprefix(_KEPT): v for n, v in batch.items() if n.startswith(_KEPT)}
            rest = {n: v for n, v in batch.items() if not n.startswith(_KEPT)}
            outputs = served(model, rest)
            return {**kept, **{name: _widened(value) for name, value in outputs.items()}}

        size = feed.batch // self.built.share.replicas
        specs = {k: tf.TensorSpec([size, *s.shape], s.dtype) for k, s in self.decoded.spec().items()}
        what = f"--mode=predict: calling the model on {self.split.source.name}"
        traced = guarded(lambda: tf.function(function).get_concrete_function(specs), what)
        rows = {name: _row(name, t, size) for name, t in traced.structured_outputs.items()}
        yield from predicted(predictor(self.built.strategy, function, rows, feed), feed)


def recorded(entry: Entry | None) -> dict[str, tf.TensorSpec]:
    """Spec of an example of a run's data, as its checkpoint tells; {} where it does not."""
    found = entry.meta.get("example") if entry else None
    specs = {}
    for name, described in found.items() if isinstance(found, dict) else ():
        try:
            shape, dtype = described
            specs[str(name)] = tf.TensorSpec(shape, tf.as_dtype(dtype))
        except (TypeError, ValueError):
            continue
    return specs


def describe(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint tells of an example: `{feature: [shape, dtype]}`, but for nested features."""
    flat = {name: s for name, s in spec.items() if isinstance(s, tf.TensorSpec) and s.shape.rank is not None}
    return {name: [s.shape.as_list(), s.dtype.name] for name, s in flat.items()}


def opened(config: Config, specs: Specs) -> Source:
    """The source that `--dataset` names: lines on standard input, a folder of images, or as for training.

    Args:
      config: the flags.
      specs: of an example of the run's data, as far as it is known.

    Raises:
      UserError: it cannot be had.
    """
    given = config.dataset
    if given == "-":
        return Arrays("-", train=_lines(sys.stdin.read().splitlines(), specs))
    if isinstance(given, str) and (folder := Path(given).expanduser()).is_dir():
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
        if files:
            image = next((name for name, spec in specs.items() if is_image(spec)), "image")
            columns = {image: [str(f) for f in files], "file": [str(f.relative_to(folder)) for f in files]}
            return Arrays(given, train={name: np.array(text, object) for name, text in columns.items()})
    return build.open_source(config)


def split_of(config: Config, built: Built, source: Source, named: bool) -> Split:
    """The examples to look at: `--eval_split` of a source that has it, else all of one that has no splits.

    Args:
      config: the flags.
      built: the model.
      source: the data.
      named: whether `--eval_split` was given for these data.

    Raises:
      UserError: a source of several splits, and none of them named.
    """
    sizes = source.sizes()
    asked = config.eval_split
    first = re.split(r"[\[+]", asked)[0]
    if not named and len(sizes) == 1 and first not in sizes:
        asked = next(iter(sizes))
    if asked == "none":
        raise UserError(f"--eval_split=none: which examples of {source.name}? There is: {listing(sizes)}.")
    pads = parse_pads(config.pad)
    split = Split(source, asked, built.module.decode, "--eval_split", pads, config.bad_examples)
    split.size()  # refuses what there is not
    return split


def _lines(lines: list[str], specs: Specs) -> dict[str, np.ndarray]:
    """Lines of text as the one feature that is text; lines of JSON objects as features.

    Raises:
      UserError: no line, or it cannot be told which feature they are.
    """
    if not lines:
        raise UserError("--dataset=-: there is nothing on standard input. Give a line an example.")
    if lines[0].lstrip().startswith("{"):
        try:
            objects = [json.loads(line) for line in lines]
            columns = {name: [found[name] for found in objects] for name in objects[0]}
            return {n: _array(n, values, specs) for n, values in columns.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--dataset=-: not one JSON object of the same features a line: {error!r}."
            ) from None
    texts = [n for n, spec in specs.items() if _is_text(spec) and not _NAMES.fullmatch(n)]
    if len(texts) > 1:
        raise UserError(
            f"--dataset=-: the run's data have the texts {listing(texts)}; which a line is cannot be told. "
            f"Give a JSON object a line: {{{texts[0]!r}: ...}}."
        )
    return {texts[0] if texts else "text": np.array(lines, object)}


def _array(name: str, values: list[Any], specs: Specs) -> np.ndarray:
    if all(isinstance(value, str) for value in values):
        return np.array(values, object)
    dtype = specs[name].dtype.as_numpy_dtype if name in specs and not _is_text(specs[name]) else None
    return np.array(values, dtype)


def _is_text(spec: Any) -> bool:
    return isinstance(spec, tf.TensorSpec) and spec.dtype == tf.string and spec.shape.rank == 0


def _is_name(spec: Any) -> bool:
    flat = isinstance(spec, tf.TensorSpec) and spec.shape.rank == 0
    return flat and (spec.dtype == tf.string or spec.dtype.is_integer)


def _widened(value: tf.Tensor) -> tf.Tensor:
    """Half precision as float32, which files have."""
    narrow = value.dtype.is_floating and value.dtype.size < 4
    return tf.cast(value, tf.float32) if narrow else value


def _row(name: str, tensor: tf.Tensor, size: int) -> tf.TensorSpec:
    if not tensor.shape.rank or tensor.shape[0] not in (None, size):
        raise UserError(
            f"--mode=predict: {name} has shape {tensor.shape}, which is no row an example: [{size}, ...] is."
        )
    return tf.TensorSpec(tensor.shape[1:], tensor.dtype)
