"""What an export takes in: examples as the data set has them, decoded, or with images as encoded bytes."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from trainer.data.records import batch_of
from trainer.data.source import Split
from trainer.errors import UserError, listing
from trainer.run.serving import Batch, Served, from_bytes, is_image, nothing, reached

Specs = dict[str, tf.TensorSpec]
_RAW, _BYTES = "raw:", "bytes:"  # before features of `_examples` that are not decoded
_CALLING = "--mode=export: calling the model"


@dataclass(frozen=True)
class Signature:
    """A way to call what is exported.

    Attributes:
      name: in a SavedModel.
      about: a sentence on what it takes.
      specs: of its arguments, [B, ...].
      function: `(model, batch) -> {output: [B, ...]}`.
      examples: of its arguments, a few.
    """

    name: str
    about: str
    specs: Specs
    function: Callable[[Any, Batch], dict[str, tf.Tensor]]
    examples: Batch


def signatures(served: Served, split: Split) -> list[Signature]:
    """The ways to call the model; the first is `serving_default`.

    Raises:
      UserError: what the outputs depend on cannot be an argument.
    """
    decoded = _decoded_specs(served)
    raw = _raw_specs(served, split)
    examples = _examples(split, decoded, raw or {})
    some = {name: examples[name] for name in decoded}
    as_is, through = (
        "Examples as the data set has them.",
        "Examples as `decode` of the model module makes them.",
    )
    found = []
    if raw is None:
        about = through if split.decode else as_is
        found.append(Signature("serving_default", about, decoded, served.filled, some))
    else:
        found.append(Signature("decoded", through, decoded, served.filled, some))
        if all(spec.shape[1:].is_fully_defined() for spec in raw.values()):
            function = _through_decode(served, split, decoded, ())
            given = {name: examples[_RAW + name] for name in raw}
            about = f"{as_is[:-1]}, before `decode`, which is part of it."
            found.insert(0, Signature("serving_default", about, raw, function, given))
    source = raw or ({} if split.decode else decoded)
    if images := [name for name, spec in source.items() if _is_image(spec)]:
        specs = {n: tf.TensorSpec([None], tf.string) if n in images else s for n, s in source.items()}
        function = _through_decode(served, split, decoded, images)
        given = {n: examples[_BYTES + n if n in images else _RAW + n if raw else n] for n in source}
        about = (
            f"{listing(images)} as the bytes of a JPEG, PNG, GIF or BMP file, all else as in the data set."
        )
        name = "encoded" if found[0].name == "serving_default" else "serving_default"
        found.insert(1 if name == "encoded" else 0, Signature(name, about, specs, function, given))
    return found


def _decoded_specs(served: Served) -> Specs:
    """The decoded features on which the outputs depend, [B, ...]: a label, say, is not among them."""
    batched = tf.nest.map_structure(lambda s: tf.TensorSpec([None, *s.shape], s.dtype), dict(served.spec))
    used = reached(lambda batch: served(served.built.model, batch), batched, _CALLING)
    strange = [name for name in used if not isinstance(batched[name], tf.TensorSpec)]
    if strange or not used:
        raise UserError(
            f"--mode=export: the outputs depend on {listing(sorted(used))}, and a signature takes tensors by "
            "their names, at least one. Let the model module's decode flatten the examples."
        )
    return {name: batched[name] for name in batched if name in used}


def _raw_specs(served: Served, split: Split) -> Specs | None:
    """The features before `decode` on which the outputs depend; None where there is no `decode`, or they are
    of no fixed shape and no images."""
    own, spec = split.decode, split.source.spec()
    if own is None:
        return None

    def of_one(example: Batch) -> Any:
        batch = tf.nest.map_structure(lambda x: x[tf.newaxis], own(example))
        return served(served.built.model, batch)

    used = reached(of_one, spec, _CALLING)
    chosen = {name: spec[name] for name in spec if name in used}
    if not chosen or not all(isinstance(s, tf.TensorSpec) for s in chosen.values()):
        return None
    if not all(s.shape.is_fully_defined() or is_image(s) for s in chosen.values()):
        return None
    return {name: tf.TensorSpec([None, *s.shape], s.dtype) for name, s in chosen.items()}


def _through_decode(
    served: Served, split: Split, decoded: Specs, images: Any
) -> Callable[[Any, Batch], dict[str, tf.Tensor]]:
    """The model on features before `decode`, those of `images` encoded."""
    own, spec = split.decode, split.source.spec()
    outputs = {name: served.spec[name] for name in decoded}

    def one(example: Batch) -> Batch:
        whole = {n: example[n] if n in example else tf.nest.map_structure(nothing, spec[n]) for n in spec}
        for name in images:
            whole[name] = from_bytes(example[name], spec[name])
        found = own(whole) if own else whole
        return {name: found[name] for name in outputs}

    def function(model: Any, batch: Batch) -> dict[str, tf.Tensor]:
        return served.filled(model, tf.map_fn(one, batch, fn_output_signature=outputs))

    return function


def _is_image(spec: tf.TensorSpec) -> bool:
    return is_image(tf.TensorSpec(spec.shape[1:], spec.dtype))


def _examples(split: Split, decoded: Specs, raw: Specs) -> Batch:
    """Up to eight real examples, in all their forms; zeros where the data are not prepared."""
    images = [name for name, spec in (raw or decoded).items() if _is_image(spec)]

    def forms(example: Batch) -> Batch:
        kept = {_RAW + n: example[n] for n in raw if raw[n].shape[1:].is_fully_defined()}
        kept |= {_BYTES + n: tf.io.encode_png(example[n]) for n in images}
        return {**(split.decode(example) if split.decode else example), **kept}

    if not split.source.prepared:
        # As many pixels as an image of no fixed size needs to be one.
        example = {n: tf.nest.map_structure(nothing, s) for n, s in split.source.spec().items()}
        return tf.nest.map_structure(lambda x: tf.stack([x, x]).numpy(), forms(example))
    name = split.name.partition("[")[0].partition("+")[0]
    whole = dataclasses.replace(split, name=name)
    first = f"{name}[:{min(8, whole.examples)}]"
    return batch_of(dataclasses.replace(split, name=first, decode=forms if raw or images else split.decode))


def shown(specs: Mapping[str, tf.TensorSpec]) -> str:
    """`image uint8[None, 28, 28, 1]`, ..."""
    return ", ".join(f"{name} {s.dtype.name}{s.shape.as_list()}" for name, s in specs.items())
