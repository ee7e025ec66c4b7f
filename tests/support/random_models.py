"""Small random models, the same from one seed in Keras 3 and in tf_keras, and near relatives of them."""

import random
from types import ModuleType
from typing import Any

import numpy as np

RELATIVES = ("same", "other order", "more", "fewer", "wider", "other names")


def make(keras: ModuleType, seed: int, relative: str = "same") -> Any:
    """The model of a seed, or a near relative of it, with random weights and state.

    Functional or subclassed; with several layers of a class, nested and shared ones, made in another
    order than they are used.

    Args:
      keras: `keras` or `tf_keras`.
      seed: decides the structure; a relative follows the same decisions but for what it is named after.
      relative: one of `RELATIVES`.
    """
    # Names that Keras makes up begin anew; without the garbage collection, which is most of its time.
    keras.backend.clear_session(**({"free_memory": False} if keras.__name__ == "keras" else {}))
    chance = random.Random(seed)
    maker = _Maker(keras, chance, relative, seed)
    model = maker.subclassed() if chance.random() < 0.3 else maker.functional()
    generator = np.random.default_rng([seed, RELATIVES.index(relative)])
    model.set_weights([generator.normal(size=w.shape).astype(np.float32) for w in model.get_weights()])
    return model


class _Maker:
    def __init__(self, keras: ModuleType, chance: random.Random, relative: str, seed: int) -> None:
        self.keras, self.layers = keras, keras.layers
        self.chance, self.relative, self.seed = chance, relative, seed
        self.count = 0

    def functional(self, depth: int = 0) -> Any:
        """Maps [4] to [4]."""
        blocks = [self.dense(), *(self.block(depth) for _ in range(self.chance.randint(1, 4)))]
        if not depth and self.relative == "more":
            blocks.append(self.dense())
        if not depth and self.relative == "fewer" and len(blocks) > 1:
            blocks.pop()
        order = list(range(len(blocks)))
        self.chance.shuffle(order)
        if not depth and self.relative == "other order":
            random.Random(self.seed + 1).shuffle(order)
        if self.chance.random() < 0.3:
            order.append(self.chance.choice(order))  # a shared layer
        x = inputs = self.layers.Input((4,))
        for place in order:
            x = blocks[place](x)
        model = self.keras.Model(inputs, x)
        if depth and self.chance.random() < 0.3:
            return self.keras.Sequential([self.layers.Input((4,)), model, self.dense()])
        return model

    def subclassed(self) -> Any:
        """Maps [4] to [4], with layers in attributes, a list and a dictionary."""
        maker, keras = self, self.keras
        count = self.chance.randint(1, 3)

        class Net(keras.Model):
            def __init__(self) -> None:
                super().__init__()
                self.stem = maker.dense()
                self.blocks = [maker.block(1) for _ in range(count)]
                self.by_name = {"a": maker.dense(), "b": maker.norm()}
                self._hidden = maker.dense()
                if maker.relative == "more":
                    self.blocks.append(maker.dense())
                if maker.relative == "other order":
                    random.Random(maker.seed + 1).shuffle(self.blocks)
                if maker.chance.random() < 0.3:
                    self.again = self.stem

            def call(self, x: Any) -> Any:
                x = self._hidden(self.stem(x))
                for block in [*self.blocks, *self.by_name.values()]:
                    x = block(x)
                return x

        net = Net()
        net(np.zeros((1, 4), np.float32))
        return net

    def block(self, depth: int) -> Any:
        """A layer or model that maps [4] to [4]."""
        kinds = [self.dense, self.dense, self.norm, self.wide, self.dropout]
        kinds += [] if depth > 1 else [lambda: self.functional(depth + 1)]
        kinds += [self.recurrent]
        return self.chance.choice(kinds)()

    def name(self, kind: str) -> dict[str, str]:
        """A name of one's own for some layers, for others the one that Keras makes up."""
        self.count += 1
        own = f"{kind}{self.count}" + ("_x" if self.relative == "other names" else "")
        return {"name": own} if self.chance.random() < 0.5 else {}

    def dense(self) -> Any:
        """Many have one shape."""
        return self.layers.Dense(4, use_bias=self.chance.random() < 0.8, **self.name("fc"))

    def norm(self) -> Any:
        """With statistics or without."""
        if self.chance.random() < 0.5:
            return self.layers.BatchNormalization(**self.name("bn"))
        return self.layers.LayerNormalization(**self.name("ln"))

    def dropout(self) -> Any:
        """Only random state."""
        return self.layers.Dropout(0.5, **self.name("drop"))

    def wide(self) -> Any:
        """Two layers in a Sequential."""
        width = 7 if self.relative == "wider" else 6
        inner = [self.layers.Dense(width, **self.name("up")), self.layers.Dense(4, **self.name("down"))]
        return self.keras.Sequential([self.layers.Input((4,)), *inner])

    def recurrent(self) -> Any:
        """A recurrent layer over four steps."""
        kind = self.chance.choice([self.layers.LSTM, self.layers.GRU])
        around = [self.layers.Input((4,)), self.layers.Reshape((4, 1)), kind(4, **self.name("memory"))]
        return self.keras.Sequential(around)
