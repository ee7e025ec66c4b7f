"""`--mode=export`: a checkpoint's weights as a SavedModel, and as `.keras` where the model is Keras's.

`--export_to` becomes the SavedModel, with `model.keras` in it. The signature `serving_default` takes batches
of what the data set's examples hold, as far as the outputs depend on it, under the same names and before
`preprocess`, which is part of it. What it gives back is what `serve(model, batch)` of the model module
returns for the preprocessed batch; without one the model is called on the features that its inputs (of a
Keras functional model) or its parameters (of any other) are named after. A single tensor is `outputs`.
"""

import dataclasses
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.checkpoints import files
from trainer.data.records import load
from trainer.data.source import Split
from trainer.errors import UserError, listing
from trainer.flags.config import Config
from trainer.model.module import guarded
from trainer.report.screen import Screen
from trainer.run import weights
from trainer.run.build import build_model, check_dataset, check_model, open_source, training_split
from trainer.run.serving import Batch, Served, reached
from trainer.signals import stopping


def run(config: Config) -> int:
    """Writes the files aside, reads them back, compares, and renames.

    Raises:
      UserError: no such weights, a model that cannot be served, or files that do not give back the same.
    """
    target = _target(config)
    with stopping():
        config, saved, notes = weights.find(config)
        check_dataset(config)
        one = dataclasses.replace(config, strategy="one", devices="", virtual_devices=0, communication="auto")
        built, screen = build_model(one), Screen()
        split = training_split(one, built, open_source(one))
        check_model(one, built, split, frozenset())
        for sentence in (f"{built.engine}, for the export", *split.source.notes, *notes):
            screen.note(sentence)
        origin = saved.assign(config, built, screen)
        serve = Served(built, split.spec(), config.model_name)
        signature = _signature(serve)
        rows = _written(serve, signature, _examples(split, signature), target, screen)
    takes = ", ".join(f"{name} {s.dtype.name}{list(s.shape)}" for name, s in signature.items())
    table = [("weights", origin), ("SavedModel", str(target)), ("serving_default takes", takes), *rows]
    screen.table("Export", ("what", "value"), table)
    return 0


def _written(
    serve: Served, signature: Mapping[str, tf.TensorSpec], examples: Batch, target: Path, screen: Screen
) -> list[tuple[str, str]]:
    """Writes all files aside, then renames; rows for the table."""
    aside = target.with_name(f".tmp-{target.name}-{secrets.token_hex(4)}")
    try:
        rows = [_save(serve, signature, aside, examples)]
        if isinstance(serve.built.model, keras.Model):
            rows.append(_save_keras(serve, aside, examples, screen))
        files.sync_tree(aside)
        aside.rename(target)
    except OSError as error:
        raise UserError(f"--export_to={target}: cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return rows


def _target(config: Config) -> Path:
    if not config.export_to:
        raise UserError("--mode=export: where to? Name a directory to be made: --export_to=DIR.")
    target = Path(config.export_to).expanduser()
    if os.path.lexists(target):
        raise UserError(f"--export_to={target}: is there already, and nothing is overwritten. Name another.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--export_to={target}: cannot be made: {error.strerror}.") from error
    return target


# What is served


def _signature(serve: Served) -> dict[str, tf.TensorSpec]:
    """The features on which the outputs depend, [B, ...]: a label, say, is not among them."""
    batched = tf.nest.map_structure(lambda s: tf.TensorSpec([None, *s.shape], s.dtype), dict(serve.spec))
    called = lambda batch: serve(serve.built.model, batch)  # noqa: E731
    used = reached(called, batched, "--mode=export: calling the model")
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
    arrays = load(dataclasses.replace(split, name=f"{name}[:{min(8, whole.examples)}]"))
    return {name: arrays[name] for name in signature}


# Writing and reading back


def _save(
    serve: Served, signature: Mapping[str, tf.TensorSpec], aside: Path, examples: Batch
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


def _save_keras(serve: Served, aside: Path, examples: Batch, screen: Screen) -> tuple[str, str]:
    """Writes `model.keras` into the SavedModel's directory, unless Keras cannot read it back."""
    path, model = aside / "model.keras", serve.built.model
    wanted = serve.filled(model, examples)
    try:
        model.save(path)
        # Safe, as it is the file that was just written.
        got = serve.filled(keras.models.load_model(path, compile=False), examples)
    except Exception as error:  # what a layer of the user's raises
        path.unlink(missing_ok=True)
        screen.warn(f"model.keras is left out, as Keras cannot read this model back: {error}")
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
