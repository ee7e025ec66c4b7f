"""The bundled models: names, numbers by hand, precision, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from models import mnist_cnn, mnist_mlp


@pytest.fixture(autouse=True)
def float32():
    """As in a new process, whatever a test before left."""
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def float64(float32):
    for precision in ("float64", "float32"):
        keras.config.set_floatx(precision)
        keras.config.set_dtype_policy(precision)
        if precision == "float64":
            yield


def batch(size=6):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, 28, 28, 1), np.uint8)
    return {"image": tf.constant(image), "label": tf.constant(rng.integers(0, 10, size))}


def features(classes=10, shape=(28, 28, 1)):
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=classes),
        }
    )


def ready(module, data):
    return module.preprocess(data, training=True, seed=tf.zeros(2, tf.int32))


def test_cnn_layers_and_parameters():
    model = mnist_cnn.build()
    names = ["image", "conv1", "pool1", "conv2", "pool2", "flatten", "dense1", "logits"]
    assert [layer.name for layer in model.layers] == names
    assert model.layers[1].kernel.shape == (3, 3, 1, 32)
    # 32*9+32, 64*9*32+64, 5*5*64*64+64, 64*10+10
    assert model.count_params() == 320 + 18496 + 102464 + 650


def test_cnn_options():
    model = mnist_cnn.build(filters=4, dense=5, classes=3, dropout=0.5, batch_norm=True)
    names = [layer.name for layer in model.layers]
    assert names[1:5] == ["conv1", "bn1", "relu1", "pool1"]
    assert names[-2:] == ["dropout", "logits"]
    assert model.output_shape == (None, 3)
    data = ready(mnist_cnn, batch())
    plain, _ = mnist_cnn.loss(model, {**data, "label": data["label"] % 3}, training=False)
    dropped, _ = mnist_cnn.loss(model, {**data, "label": data["label"] % 3}, training=True)
    assert np.abs(plain - dropped).max() > 1e-3


@pytest.mark.parametrize("module", [mnist_cnn, mnist_mlp])
def test_loss_against_numpy(module):
    keras.utils.set_random_seed(1)
    model, data = module.build(), batch()
    rescaled = ready(module, data)
    np.testing.assert_allclose(rescaled["image"], data["image"].numpy() / 255, rtol=1e-6)
    losses, metrics = module.loss(model, rescaled, training=False)
    logits = np.asarray(model(rescaled["image"]), np.float64)
    label = data["label"].numpy()
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), label]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"], logits.argmax(-1) == label)
    assert losses.dtype == metrics["accuracy"].dtype == tf.float32


def test_mlp_forward_by_hand():
    model = mnist_mlp.build(hidden=8)
    x = np.random.default_rng(2).random((3, 28, 28, 1), np.float32)
    h = x.reshape(3, 784)
    for layer in (model.hidden1, model.hidden2):
        h = np.maximum(h @ layer.w.numpy() + layer.b.numpy(), 0)
    expected = h @ model.logits.w.numpy() + model.logits.b.numpy()
    np.testing.assert_allclose(model(x, training=True), expected, rtol=1e-5, atol=1e-6)
    assert [v.shape for v in model.trainable_variables] == [
        (8,),
        (784, 8),
        (8,),
        (8, 8),
        (10,),
        (8, 10),
    ]


@pytest.mark.parametrize("module", [mnist_cnn, mnist_mlp])
def test_float64_all_through(module, float64):
    model = module.build()
    losses, metrics = module.loss(model, ready(module, batch()), training=True)
    assert losses.dtype == metrics["accuracy"].dtype == tf.float64
    assert {v.dtype for v in model.trainable_variables} <= {tf.float64, "float64"}


def test_mixed_precision_has_a_float32_loss():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = mnist_cnn.build()
    finally:
        keras.config.set_dtype_policy("float32")
    data = ready(mnist_cnn, batch())
    assert model(data["image"]).dtype == tf.bfloat16
    assert mnist_cnn.loss(model, data, training=True)[0].dtype == tf.float32


@pytest.mark.parametrize("module", [mnist_cnn, mnist_mlp])
def test_start_values_follow_the_seed(module):
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return [v.numpy() for v in module.build().trainable_variables]

    first, again, other = weights(1), weights(1), weights(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    kernels = [(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1]
    assert kernels and not any(np.array_equal(a, b) for a, b in kernels)


def test_mlp_layers_start_differently():
    model = mnist_mlp.build(hidden=10)
    assert not np.array_equal(model.hidden2.w, model.logits.w)
    limit = np.sqrt(6 / (784 + 10))  # Glorot and Bengio 2010
    assert 0.95 * limit < np.abs(model.hidden1.w).max() <= limit


@pytest.mark.parametrize("module", [mnist_cnn, mnist_mlp])
def test_check(module):
    model = module.build()
    module.check(model, features())
    module.check(model, features(classes=7))
    with pytest.raises(ValueError, match=r"0 to 99 .* 10 classes.*classes=100"):
        module.check(model, features(classes=100))
    with pytest.raises(ValueError, match="28x28x1"):
        module.check(model, features(shape=(32, 32, 3)))
    text = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    with pytest.raises(ValueError, match="the data has text"):
        module.check(model, text)
