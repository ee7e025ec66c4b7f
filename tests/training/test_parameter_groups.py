"""Groups in a loop of one's own move the weights as a run does, on one replica and on two."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import trainer
from tests.support import harness

RULES = ["conv/.* adamw(weight_decay=0.1) cosine(1e-2) from=4", ".*/bias frozen", ".* sgd(momentum=0.9) 0.1"]
STEPS, BATCH = 8, 6


def build():
    return keras.Sequential(
        [
            keras.Input([6, 6, 1]),
            keras.layers.Conv2D(3, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm", trainable=False),
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="head"),
        ]
    )


def losses(model, batch):
    logits = model(batch["image"], training=True)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)


def own_loop(strategy, arrays):
    """A hand-written loop over the same rows as the harness's."""
    keras.backend.clear_session()
    harness.use_precision("float64")
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = build()
        groups = trainer.parameter_groups(model, RULES, steps=STEPS, clip_norm=0.5)
    rows = {name: tf.constant(a) for name, a in arrays.items()}
    for phase in groups.phases:
        variables = groups.trainable(phase.start)

        def replica(batch, phase=phase, variables=variables):
            context = tf.distribute.get_replica_context()
            size = BATCH // context.num_replicas_in_sync
            at = context.replica_id_in_sync_group * size
            own = {k: tf.ensure_shape(v[at : at + size], [size, *v.shape[1:]]) for k, v in batch.items()}
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(losses(model, own)) / BATCH
            groups.apply(phase.start, tape.gradient(loss, variables))

        step = tf.function(lambda batch, replica=replica: strategy.run(replica, args=(batch,)))
        for k in range(phase.start, phase.stop):
            step({name: a[k * BATCH : (k + 1) * BATCH] for name, a in rows.items()})
    return groups, {name: v.numpy() for name, v in trainer.named_variables(model).items()}


@pytest.mark.slow(but=1)
@pytest.mark.parametrize("replicas", [1, 2])
def test_it_moves_the_weights_as_a_run_does(replicas):
    arrays = harness.digits(STEPS * BATCH, "float64", side=6)
    strategy = harness.mirrored() if replicas == 2 else tf.distribute.get_strategy()
    groups, values = own_loop(strategy, arrays)
    loss = lambda model, batch, training: (losses(model, batch), {})  # noqa: E731
    made = harness.make(build, loss, RULES, arrays, STEPS, batch=BATCH, precision="float64", clip_norm=0.5)
    made.train(0, STEPS)
    for name, value in made.values().items():
        np.testing.assert_allclose(values[name], value, rtol=0, atol=1e-12, err_msg=name)
    assert int(groups.step.numpy()) == STEPS
    assert set(groups.state) == {
        "step",
        *(f"optimizer/conv/kernel/{slot}" for slot in ("momentums", "velocities", "iterations")),
        *(f"optimizer/conv/bias/{slot}" for slot in ("momentums", "velocities", "iterations")),
        *(f"optimizer/{v}/{slot}" for v in ("head/kernel",) for slot in ("momentums", "iterations")),
    }


def test_what_does_not_fit_is_refused():
    model = build()
    with pytest.raises(trainer.UserError, match="no rule covers"):
        trainer.parameter_groups(model, ["conv/.* sgd 0.1"], steps=3)
    groups = trainer.parameter_groups(model, [".* sgd 0.1"], steps=3)
    with pytest.raises(trainer.UserError, match="steps 0 to 2"):
        groups.trainable(3)
    with pytest.raises(trainer.UserError, match="does not depend on conv/kernel"):
        groups.apply(0, [None] * len(groups.trainable(0)))
