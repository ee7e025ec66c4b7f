"""`--mode=export`: a checkpoint's weights as a SavedModel, and as `.keras` where the model is Keras's.

`--export_to` becomes the SavedModel, with `model.keras` in it. The signature `serving_default` takes batches
of what the data set's examples hold, as far as the outputs depend on it, under the same names and before
`preprocess`, which is part of it. What it gives back is what `serve(model, batch)` of the model module
returns for the preprocessed batch; without one the model is called on the features that its inputs (of a
Keras functional model) or its parameters (of any other) are named after. A single tensor is `outputs`.
"""

import dataclasses
import inspect
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.checkpoints import files
from trainer.data.records import batch_of
from trainer.data.source import Split
from trainer.errors import UserError, listing, told
from trainer.flags.config import Config
from trainer.model.module import guarded
from trainer.report.screen import Screen
from trainer.run import weights
from trainer.run.build import Built, build_model, check_dataset, check_model, open_source, training_split
from trainer.signals import Stop, stopping

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Served:
    """What an export computes: raw features of a batch to named outputs.

    Attributes:
      built: the model.
      spec: of one decoded example.
      what: the value of `--model`, for messages.
    """

    built: Built
    spec: Mapping[str, Any]
    what: str

    def __call__(self, model: Any, batch: Batch) -> dict[str, tf.Tensor]:
        """Outputs of `model` by the model module's `preprocess` and `serve`."""
        module = self.built.module
        if module.preprocess:
            batch = module.preprocess(batch, False, tf.zeros([2], tf.int32))
        if module.serve:
            outputs = module.serve(model, batch)
        else:
            arguments, named = _arguments(self.what, model, batch)
            outputs = model(*arguments, **named)
        return dict(outputs) if isinstance(outputs, Mapping) else {"outputs": outputs}

    def filled(self, model: Any, batch: Batch) -> dict[str, tf.Tensor]:
        """Outputs on a batch of what counts, with nothing in the place of the rest."""
        size = tf.shape(next(iter(batch.values())))[0]

        def nothing(s: tf.TensorSpec) -> tf.Tensor:
            return tf.fill([size, *s.shape], "" if s.dtype == tf.string else tf.zeros([], s.dtype))

        rest = {k: tf.nest.map_structure(nothing, s) for k, s in self.spec.items() if k not in batch}
        return self(model, {**rest, **batch})


def run(config: Config) -> int:
    """Writes the files aside, reads them back, compares, and renames.

    Raises:
      UserError: no such weights, a model that cannot be served, or files that do not give back the same.
    """
    target = _target(config)
    with stopping() as stop:
        config, saved, notes = weights.find(config)
        check_dataset(config)
        one = dataclasses.replace(config, strategy="one", devices="", virtual_devices=0, communication="auto")
        built, screen = build_model(one), Screen()
        split = training_split(one, built, open_source(one))
        built, _ = check_model(one, built, split, frozenset())
        for sentence in (f"{built.engine}, for the export", *split.source.notes, *notes):
            screen.note(sentence)
        origin = saved.assign(config, built, screen)
        serve = _Served(built, split.spec(), config.model_name)
        signature = _signature(serve)
        rows = _written(serve, signature, _examples(split, signature), target, screen, stop)
    takes = ", ".join(f"{name} {s.dtype.name}{list(s.shape)}" for name, s in signature.items())
    table = [("weights", origin), ("SavedModel", str(target)), ("serving_default takes", takes), *rows]
    screen.table("Export", ("what", "value"), table)
    return 0


def _written(
    serve: _Served,
    signature: Mapping[str, tf.TensorSpec],
    examples: Batch,
    target: Path,
    screen: Screen,
    stop: Stop,
) -> list[tuple[str, str]]:
    """Writes all files aside, then renames; rows for the table. A signal leaves nothing behind."""
    try:
        with files.aside(target) as aside:
            stop.request = lambda: _end(aside, stop)
            rows = [_save(serve, signature, aside, examples)]
            if isinstance(serve.built.model, keras.Model):
                rows.append(_save_keras(serve, aside, examples, screen))
            files.sync_tree(aside)
            aside.rename(target)
            stop.request = None
    except OSError as error:
        raise UserError(f"--export_to={target}: cannot be written: {error.strerror or error}.") from error
    return rows


def _end(aside: Path, stop: Stop) -> None:
    """Ends the process at a signal: TensorFlow may be busy for long, and what it writes is of no use."""
    shutil.rmtree(aside, ignore_errors=True)
    os._exit(stop.status or 1)


def _target(config: Config) -> Path:
    if not config.export_to:
        raise UserError("--mode=export: where to? Name a directory to be made: --export_to=DIR.")
    target = Path(config.export_to).expanduser()
    if os.path.lexists(target):
        raise UserError(f"--export_to={target}: is there already, and nothing is overwritten. Name another.")
    place = next(folder for folder in target.absolute().parents if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--export_to={target}: cannot be made: {place} is no directory to write in.")
    return target


# What is served


def _arguments(what: str, model: Any, batch: Batch) -> tuple[list[Any], Batch]:
    """What to call the model with: the features that its inputs or parameters are named after."""
    if isinstance(model, keras.Model) and getattr(model, "inputs", None):
        names = [tensor.name for tensor in model.inputs]
        given = {name: batch[name] for name in names if name in batch}
        if len(given) == len(names):
            return [given if len(names) > 1 else given[names[0]]], {"training": False}
    else:
        call = model.call if isinstance(model, keras.Model) else model
        parameters = inspect.signature(call).parameters if callable(call) else {}
        names = list(parameters)
        given = {name: batch[name] for name in names if name in batch}
        if given:
            return [], {**given, **({"training": False} if "training" in names else {})}
    raise UserError(
        f"--model={what}: what it is to be called on cannot be told: it takes {listing(names)}, the "
        f"examples have {listing(batch)}. Give the model module serve(model, batch), which returns a "
        "tensor or a dict of tensors for a preprocessed batch."
    )


def _signature(serve: _Served) -> dict[str, tf.TensorSpec]:
    """The features on which the outputs depend, [B, ...]: a label, say, is not among them."""
    batched = tf.nest.map_structure(lambda s: tf.TensorSpec([None, *s.shape], s.dtype), dict(serve.spec))
    traced = guarded(
        lambda: tf.function(lambda batch: serve(serve.built.model, batch)).get_concrete_function(batched),
        "--mode=export: calling the model",
    )
    found, todo = set(), [tensor.op for tensor in traced.outputs]
    while todo:
        op = todo.pop()
        if op not in found:
            found.add(op)
            todo += [tensor.op for tensor in op.inputs]
    names = [name for name in sorted(batched) for _ in tf.nest.flatten(batched[name])]
    used = {name for name, tensor in zip(names, traced.inputs, strict=False) if tensor.op in found}
    strange = [name for name in used if not isinstance(batched[name], tf.TensorSpec)]
    if strange or not used:
        raise UserError(
            f"--mode=export: the outputs depend on {listing(sorted(used))}, and a signature takes tensors by "
            "their names, at least one. Let the model module's decode flatten the examples."
        )
    return {name: batched[name] for name in batched if name in used}


def _examples(split: Split, signature: Mapping[str, Any]) -> Batch:
    """Up to eight real examples to compare on; zeros where the data are not prepared."""
    if not split.source.prepared:
        return {k: np.zeros([2, *s.shape[1:]], s.dtype.as_numpy_dtype) for k, s in signature.items()}
    name = split.name.partition("[")[0].partition("+")[0]
    whole = dataclasses.replace(split, name=name)
    arrays = batch_of(dataclasses.replace(split, name=f"{name}[:{min(8, whole.examples)}]"))
    return {name: arrays[name] for name in signature}


# Writing and reading back


def _save(
    serve: _Served, signature: Mapping[str, tf.TensorSpec], aside: Path, examples: Batch
) -> tuple[str, str]:
    """Writes the SavedModel; a row for the table."""
    holder, model = tf.Module(), serve.built.model
    holder.weights = [v.value for v in serve.built.variables]
    holder.serve = tf.function(lambda batch: serve.filled(model, batch))

    @tf.function
    def serving_default(**batch: tf.Tensor) -> dict[str, tf.Tensor]:
        return holder.serve(batch)

    named = {name: tf.TensorSpec(s.shape, s.dtype, name) for name, s in signature.items()}
    concrete = serving_default.get_concrete_function(**named)
    holder.serve(examples)  # once before, so that what an output draws at random comes out another
    wanted = holder.serve(examples)
    guarded(
        lambda: tf.saved_model.save(holder, str(aside), signatures={"serving_default": concrete}),
        "--mode=export: saving the model",
    )
    loaded = tf.saved_model.load(str(aside)).signatures["serving_default"]
    got = loaded(**{name: tf.constant(array) for name, array in examples.items()})
    return "SavedModel read back", _compared(wanted, got, "SavedModel")


def _save_keras(serve: _Served, aside: Path, examples: Batch, screen: Screen) -> tuple[str, str]:
    """Writes `model.keras` into the SavedModel's directory, unless Keras cannot read it back."""
    path, model = aside / "model.keras", serve.built.model
    wanted = serve.filled(model, examples)
    try:
        model.save(path)
        # Safe, as it is the file that was just written.
        got = serve.filled(keras.models.load_model(path, compile=False), examples)
    except OSError:  # of the disk
        raise
    except Exception as error:  # what a layer of the user's raises
        path.unlink(missing_ok=True)
        screen.warn(f"model.keras is left out, as Keras cannot read this model back: {told(error)}")
        return "model.keras", "left out"
    return "model.keras read back", _compared(wanted, got, "model.keras")


def _compared(wanted: Mapping[str, Any], got: Mapping[str, Any], what: str) -> str:
    """In words how far the outputs differ.

    Raises:
      UserError: more than rounding can explain.
    """
    gap = 0.0
    for name, tensor in wanted.items():
        one, other = tensor.numpy(), got[name].numpy()
        if one.dtype.kind in "OSU":
            same = np.array_equal(one, other)
        else:
            one, other = one.astype(np.float64), other.astype(np.float64)
            same = np.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)
            gap = max(gap, float(np.nanmax(np.abs(one - other), initial=0.0)))
        if not same:
            raise UserError(
                f"--mode=export: the {what}, read back, gives another {name} than the model, off by up to "
                f"{gap:.3g}. Nothing was exported. Outputs must depend on inputs and weights alone."
            )
    count = len(next(iter(wanted.values())))
    return f"{count} examples, largest difference {gap:.3g}"
