"""`--mode=export`: a checkpoint's weights as a SavedModel, as `.keras`, and for TFLite.

`--export_to` becomes the SavedModel, with `model.keras`, `model.tflite` and a README.md in it that says what
each takes in. `signatures.py` has what there is to call; the outputs are those of `serving.py`.
"""

import dataclasses
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.checkpoints import files
from trainer.errors import UserError, near
from trainer.flags.config import Config
from trainer.model.module import guarded
from trainer.model.resources import resources
from trainer.noise import silent
from trainer.report.screen import Screen
from trainer.run import weights
from trainer.run.build import build_model, check_dataset, check_model, open_source, training_split
from trainer.run.serving import Served
from trainer.run.signatures import Signature, shown, signatures
from trainer.signals import Stop, stopping

FORMATS = ("saved_model", "keras", "tflite")


def run(config: Config) -> int:
    """Writes the files aside, reads them back, compares, and renames.

    Raises:
      UserError: no such weights, a model that cannot be served, or files that do not give back the same.
    """
    formats, target = _formats(config), _target(config)
    with stopping() as stop:
        config, saved, notes = weights.find(config)
        check_dataset(config)
        one = dataclasses.replace(config, strategy="one", devices="", virtual_devices=0, communication="auto")
        built, screen = build_model(one), Screen()
        if not isinstance(built.model, keras.Model) and "keras" in config.export_format:
            raise UserError(
                f"--export_format={config.export_format}: the model is no Keras model. Leave keras out."
            )
        split = training_split(one, built, open_source(one))
        built, _ = check_model(one, built, split, {})
        for sentence in (f"{built.engine}, for the export", *split.source.notes, *notes):
            screen.note(sentence)
        origin = saved.assign(config, built, screen)
        served = Served(built, split.spec(), config.model_name)
        export = _Export(served, signatures(served, split), screen, sure=bool(config.export_format))
        rows = _written(export, formats, target, stop)
    called = [(f"{s.name} takes", shown(s.specs)) for s in export.ways]
    screen.table(
        "Export", ("what", "value"), [("weights", origin), ("written to", str(target)), *called, *rows]
    )
    return 0


def _formats(config: Config) -> tuple[str, ...]:
    """What `--export_format` asks for; a SavedModel and, where it can be, `.keras` if it is not given."""
    asked = tuple(part.strip() for part in config.export_format.split(",") if part.strip())
    for name in asked:
        if name not in FORMATS:
            raise UserError(
                f"--export_format={config.export_format}: {name!r} is none. {near(name, FORMATS)}"
            )
    return asked or ("saved_model", "keras")


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


@dataclass
class _Export:
    """What is exported.

    Attributes:
      served: the model.
      ways: to call it; the first is the default.
      screen: told what is left out.
      sure: whether a format was asked for, so that it must not be left out.
    """

    served: Served
    ways: Sequence[Signature]
    screen: Screen
    sure: bool

    @property
    def plain(self) -> Signature:
        """The way that takes what the model's own code does: decoded examples."""
        return next((signature for signature in self.ways if signature.name == "decoded"), self.ways[0])

    @property
    def model(self) -> Any:
        """With its weights."""
        return self.served.built.model

    def outputs(self, signature: Signature) -> dict[str, tf.Tensor]:
        """Of the model itself, on the examples."""
        function = tf.function(lambda batch: signature.function(self.model, batch))
        function(signature.examples)  # once before, so that what an output draws at random comes out another
        return function(signature.examples)


def _written(export: _Export, formats: Sequence[str], target: Path, stop: Stop) -> list[tuple[str, str]]:
    """Writes all files aside, then renames; rows for the table. A signal leaves nothing behind."""
    savers = {"saved_model": _save, "keras": _save_keras, "tflite": _save_tflite}
    try:
        with files.aside(target) as aside:
            stop.request = lambda: _end(aside, stop)
            rows, said = [], []
            for name in formats:
                if name != "keras" or isinstance(export.model, keras.Model):
                    row, sentence = savers[name](export, aside)
                    rows.append(row)
                    said.append(sentence)
            (aside / "README.md").write_text(_readme(export, said))
            files.sync_tree(aside)
            aside.rename(target)
            stop.request = None
    except OSError as error:
        raise UserError(f"--export_to={target}: cannot be written: {error.strerror or error}.") from error
    return rows


Saved = tuple[tuple[str, str], str]  # a row for the table, and a sentence for the README


def _save(export: _Export, aside: Path) -> Saved:
    """Writes the SavedModel."""
    holder = _holder(export)
    concrete = {each.name: _concrete(export, each) for each in export.ways}
    wanted = {each.name: export.outputs(each) for each in export.ways}
    guarded(
        lambda: tf.saved_model.save(holder, str(aside), signatures=concrete),
        "--mode=export: saving the model",
    )
    loaded = tf.saved_model.load(str(aside)).signatures
    said = []
    for each in export.ways:
        given = {name: tf.constant(array) for name, array in each.examples.items()}
        said.append(
            f"{_compared(wanted[each.name], loaded[each.name](**given), f'SavedModel ({each.name})')}"
        )
    lines = [
        f"`{signature.name}` takes {shown(signature.specs)}. {signature.about}" for signature in export.ways
    ]
    sentence = "The directory is a SavedModel. Its signatures:\n\n" + "\n".join(f"- {line}" for line in lines)
    return ("SavedModel read back", said[0]), sentence


def _concrete(export: _Export, signature: Signature) -> Any:
    """A signature as a concrete function with named arguments."""

    @tf.function
    def call(**batch: tf.Tensor) -> dict[str, tf.Tensor]:
        return signature.function(export.model, batch)

    named = {name: tf.TensorSpec(s.shape, s.dtype, name) for name, s in signature.specs.items()}
    return call.get_concrete_function(**named)


def _save_keras(export: _Export, aside: Path) -> Saved:
    """Writes `model.keras` into the directory, unless Keras cannot read it back and nobody asked for it."""
    path, model, signature = aside / "model.keras", export.model, export.plain
    wanted = signature.function(model, signature.examples)
    try:
        model.save(path)
        # Safe, as it is the file that was just written.
        got = signature.function(keras.models.load_model(path, compile=False), signature.examples)
    except Exception as error:  # what a layer of the user's raises
        path.unlink(missing_ok=True)
        said = f"model.keras is left out, as Keras cannot read this model back: {error}"
        if export.sure:
            raise UserError(f"--export_format: {said}") from error
        export.screen.warn(said)
        return ("model.keras", "left out"), ""
    takes = "what `preprocess` of the model module makes of a batch, for which it has no code"
    sentence = f"`model.keras` is the Keras model alone: it takes {takes}."
    return ("model.keras read back", _compared(wanted, got, "model.keras")), sentence


def _save_tflite(export: _Export, aside: Path) -> Saved:
    """Writes `model.tflite`, of TFLite's own operations.

    Raises:
      UserError: the model needs others; names them.
    """
    signature, path, holder = export.plain, aside / "model.tflite", _holder(export)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([_concrete(export, signature)], holder)
    try:
        with silent():  # the whole stack for each operation
            content = converter.convert()
    except Exception as error:  # of the converter, or of MLIR
        ops = re.search(r"(?:Select|Custom) ops?: ([\w, ]+)", str(error))
        lacking = f"TFLite has no {ops[1]}" if ops else " ".join(str(error).split())[:300]
        raise UserError(
            f"--export_format={','.join(FORMATS)}: tflite: {lacking}. Let `serve` of the model module do "
            "without, on what `decode` and `preprocess` make, or leave tflite out."
        ) from error
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this interpreter will move into a package of its own
        call = tf.lite.Interpreter(model_path=str(path)).get_signature_runner()
    given = {name: np.asarray(array) for name, array in signature.examples.items()}
    got = {name: tf.constant(array) for name, array in call(**given).items()}
    sentence = f"`model.tflite` takes {shown(signature.specs)}. {signature.about}"
    return ("model.tflite read back", _compared(export.outputs(signature), got, "model.tflite")), sentence


def _holder(export: _Export) -> tf.Module:
    """What keeps the variables and tables of the model."""
    holder, module = tf.Module(), export.served.built.module
    holder.weights = [v.value for v in export.served.built.variables]
    functions = [f for f in (module.preprocess, module.serve, module.decode) if f is not None]
    holder.tables = resources(export.model, *functions)
    return holder


def _readme(export: _Export, said: Sequence[str]) -> str:
    """What is in the directory, and what each takes and gives."""
    outputs = export.outputs(export.plain)
    gives = ", ".join(f"{n} {t.dtype.name}{[None, *t.shape[1:]]}" for n, t in outputs.items())
    parts = [
        f"# {export.served.what}",
        *(s for s in said if s),
        f"Each gives {gives}: B examples in, B rows out.",
    ]
    return "\n\n".join(parts) + "\n"


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
