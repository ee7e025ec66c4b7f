"""What a trainer keeps is named as such, whatever the writer, the format and the optimizer."""

import keras
import pytest
import tensorflow as tf

from trainer.readers import open_source

OPTIMIZERS = ["SGD", "Adam", "AdamW", "Nadam", "RMSprop", "Adagrad", "Ftrl"]
SAVERS = {
    "weights.h5": lambda model, path: model.save_weights(path + ".weights.h5"),
    "keras": lambda model, path: model.save(path + ".keras"),
    "h5": lambda model, path: model.save(path + ".h5"),
    "checkpoint": lambda model, path: tf.train.Checkpoint(
        model=model, optimizer=model.optimizer, epoch=tf.Variable(3)
    ).write(path),
    "saved model": lambda model, path: tf.saved_model.save(model, path),
}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("saver", SAVERS)
@pytest.mark.parametrize("old", [False, True])
def test_only_weights_are_weights(tmp_path, saver, old):
    writer = pytest.importorskip("tf_keras") if old else keras
    for number, name in enumerate(OPTIMIZERS if saver != "saved model" else OPTIMIZERS[1:3]):
        x = inputs = writer.layers.Input((3,))
        x = writer.layers.Dropout(0.5)(writer.layers.Dense(4, name="a")(x))
        model = writer.Model(inputs, writer.layers.Dense(2, name="b")(x))
        optimizer = getattr(writer.optimizers, name)(**({"momentum": 0.9} if name == "SGD" else {}))
        model.compile(optimizer, "mse", metrics=["mae"])
        optimizer.build(model.trainable_variables)
        path = str(tmp_path / f"m{number}")
        SAVERS[saver](model, path)
        found = next(p for p in tmp_path.iterdir() if p.name.startswith(f"m{number}"))
        source = open_source(str(found))
        shapes = sorted(spec.shape for spec in source.specs.values())
        assert shapes == [(2,), (3, 4), (4,), (4, 2)], (name, list(source.specs))
        assert source.ignored or saver == "saved model"
