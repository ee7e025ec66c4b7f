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
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import contract, pipelines, saved, setup
from trainer.config import Config
from trainer.data import Dataset
from trainer.errors import UserError, listing
from trainer.report import Reporter
from trainer.setup import Built
from trainer.signals import stopping

Batch = dict[str, Any]
Serve = Callable[[Batch], dict[str, tf.Tensor]]


def run(config: Config) -> int:
    """Writes the files aside, reads them back, compares, and renames.

    Raises:
      UserError: no such weights, a model that cannot be served, or files that do not give back the same.
    """
    target = _target(config)
    with stopping():
        config, weights, told = saved.find(config)
        setup.check_dataset(config)
        one = dataclasses.replace(config, strategy="one", devices="", virtual_devices=0, communication="auto")
        built = setup.build_model(one)
        reporter = Reporter(None, 1, 1)
        dataset, _ = setup.open_data(one, built, frozenset())
        for sentence in (f"{built.engine}, for the export", *dataset.notes, *told):
            reporter.note(sentence)
        origin = weights.assign(config, built, reporter)
        serve = _server(config, built, built.model)
        spec = dataset.element_spec(getattr(built.module, "decode", None))
        signature = _signature(serve, spec)
        examples = _examples(config, built, dataset, signature)
        aside = target.with_name(f".tmp-{target.name}-{secrets.token_hex(4)}")
        try:
            rows = _save(built, serve, spec, signature, aside, examples, reporter)
            if built.keras_model:
                rows += _save_keras(config, built, spec, aside, examples, reporter)
            _sync(aside)
            aside.rename(target)
        except OSError as error:
            raise UserError(f"--export_to={target}: cannot be written: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    takes = ", ".join(f"{name} {s.dtype.name}{[None, *s.shape]}" for name, s in signature.items())
    table = [("weights", origin), ("SavedModel", str(target)), ("serving_default takes", takes), *rows]
    reporter.table("Export", ("what", "value"), table)
    return 0
