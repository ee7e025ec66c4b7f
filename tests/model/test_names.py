"""Names are complete, stable between processes, and reach every corner of a model."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from trainer.errors import UserError
from trainer.model.frozen import FrozenLayers
from trainer.model.names import named_variables, walk


def encoder(name: str) -> keras.Model:
    image = keras.Input((4,))
    x = layers.Dense(3, name="conv1")(image)
    return keras.Model(image, layers.BatchNormalization(name="bn")(x), name=name)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [layers.Dense(3), layers.Dense(3)]
        self.heads = {"a": layers.Dense(2), "b": (layers.Dense(2),)}
        self._attention = layers.MultiHeadAttention(1, 2)
        self.drop = layers.Dropout(0.5)
        self.tied = self.blocks[0]
        self.scale = self.add_weight(shape=(3,), name="scale")

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.blocks[1](self.blocks[0](x)) * self.scale
        x = self.drop(self._attention(x, x), training=training)
        return self.heads["a"](x) + self.heads["b"][0](x)


class Plain(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [layers.Dense(2)]
        self.layers[0].build((1, 4))
        self.inner = encoder("inner")
        self.w = tf.Variable(1.0)
        self.same = self.w


def test_nested_models_with_equal_layer_names() -> None:
    image = keras.Input((4,))
    model = keras.Model(image, encoder("enc_a")(image) + encoder("enc_b")(image))
    names = list(named_variables(model))
    assert names == [
        f"{e}/{v}"
        for e in ("enc_a", "enc_b")
        for v in (
            "conv1/kernel",
            "conv1/bias",
            "bn/gamma",
            "bn/beta",
            "bn/moving_mean",
            "bn/moving_variance",
        )
    ]
    assert len({v.path for v in model.variables}) < len(names)  # Keras's own paths repeat


def test_lists_dicts_tuples_and_private_attributes() -> None:
    model = Subclassed()
    model(tf.zeros([1, 2, 3]))
    found = {v.name: v for v in walk(model)}
    assert set(found) >= {
        "blocks/0/kernel",
        "blocks/1/bias",
        "heads/a/kernel",
        "heads/b/0/kernel",
        "attention/query_dense/kernel",
        "scale",
        "drop/seed_generator_state",
    }
    assert len(found) == len(model.variables)
    assert found["blocks/0/kernel"].aliases == ("tied/kernel",)
    assert [v.name for v in found.values() if v.random] == ["drop/seed_generator_state"]
    assert not found["drop/seed_generator_state"].trainable


def test_names_do_not_depend_on_what_was_built_before() -> None:
    model = Subclassed()
    model(tf.zeros([1, 2, 3]))
    again = Subclassed()
    again(tf.zeros([1, 2, 3]))
    assert list(named_variables(model)) == list(named_variables(again))


def test_module_that_holds_keras_layers() -> None:
    found = {v.name: v for v in walk(Plain())}
    assert list(found)[:4] == ["layers/0/kernel", "layers/0/bias", "inner/conv1/kernel", "inner/conv1/bias"]
    assert found["w"].aliases == ("same",)
    assert found["w"].keras is None and found["layers/0/kernel"].keras is not None


def test_two_variables_of_one_name_are_refused() -> None:
    class Twins(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = {"b": tf.Variable(1.0)}
            self._a = {"b": tf.Variable(2.0)}

    with pytest.raises(UserError, match="two variables have the name 'a/b'"):
        walk(Twins())


def test_unbuilt_model_is_refused() -> None:
    with pytest.raises(UserError, match="is not built"):
        walk(keras.Sequential([layers.Dense(2)], name="late"))


def test_model_without_variables_is_refused() -> None:
    with pytest.raises(UserError, match="has no variables"):
        walk(tf.Module())


def test_frozen_layers_follow_their_variables_and_the_models_own_word() -> None:
    model = keras.Sequential(
        [
            layers.Input((4,)),
            encoder("inner"),
            layers.BatchNormalization(name="own"),
            layers.Dense(1, name="head"),
        ]
    )
    model.get_layer("own").trainable = False
    frozen = FrozenLayers(walk(model))
    bn, own = model.get_layer("inner").get_layer("bn"), model.get_layer("own")
    frozen.enter(frozenset({"head/kernel"}))
    assert not bn.trainable and not own.trainable
    frozen.enter(frozenset({"inner/bn/gamma"}))
    assert bn.trainable and not own.trainable


def test_batch_normalization_without_parameters_follows_its_state() -> None:
    image = keras.Input((4,))
    x = layers.Dense(3, name="fc")(image)
    x = layers.BatchNormalization(center=False, scale=False, name="bn")(x)
    inner = keras.Model(image, x, name="inner")
    model = keras.Sequential([layers.Input((4,)), inner, layers.Dense(1, name="head")])
    frozen = FrozenLayers(walk(model))
    frozen.enter(frozenset({"head/kernel"}), frozenset({"inner/bn/moving_mean", "inner/bn/moving_variance"}))
    assert not inner.get_layer("bn").trainable
    frozen.enter(frozenset({"head/kernel"}))
    assert inner.get_layer("bn").trainable
