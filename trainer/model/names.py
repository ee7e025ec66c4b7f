"""The one naming of variables: groups, restore, checkpoints, plan and reports use these names only.

In a functional or sequential Keras model a layer is known by its own name. Everywhere else (subclassed
models and layers, `tf.Module`) it is known by the attribute that holds it: `blocks/0/kernel`. Keras's
`path` is not used: it repeats in nested models and depends on what the process built before.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from trainer.errors import UserError


@dataclass(frozen=True)
class ModelVariable:
    """A variable of the model under its name.

    Attributes:
      name: path along the model's own tree, such as `enc_a/conv1/kernel`.
      value: the `tf.Variable` (a `MirroredVariable` under several replicas).
      keras: the Keras variable around it; None for a plain `tf.Variable`.
      trainable: as the model declares it at the time of the walk.
      random: whether it is the state of a random-number generator.
      layer: the layer or module that owns it.
      aliases: further names of a shared variable.
      above: the layers and modules that it lies in, on every way that leads to it.
      assigned: whether a forward pass writes it, as far as a trace of the loss has told.
    """

    name: str
    value: tf.Variable
    keras: keras.Variable | None
    trainable: bool
    random: bool
    layer: Any
    aliases: tuple[str, ...] = ()
    above: tuple[Any, ...] = ()
    assigned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Static shape."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> tf.DType:
        """Storage dtype."""
        return tf.as_dtype(self.value.dtype)

    @property
    def handle(self) -> Any:
        """What a Keras optimizer takes: the Keras variable where there is one."""
        return self.value if self.keras is None else self.keras

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.value.shape.num_elements())

    @property
    def bytes(self) -> int:
        """Bytes of one copy."""
        return self.size * self.dtype.size


def named_variables(model: Any) -> dict[str, tf.Variable]:
    """`{name: tf.Variable}` of all variables of a `keras.Model` or `tf.Module`, in the model's order.

    Raises:
      UserError: as `walk`.

    Example:
      >>> import keras, trainer
      >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1, name="head")])
      >>> list(trainer.named_variables(model))
      ['head/kernel', 'head/bias']
    """
    return {v.name: v.value for v in walk(model)}


def walk(model: Any) -> list[ModelVariable]:
    """All variables of `model`, each once, in the order of its layers.

    Raises:
      UserError: no variables (an unbuilt model), two variables of one name, or a variable that the
        model tracks and that no attribute or layer leads to.
    """
    found: dict[int, ModelVariable] = {}
    names: dict[str, int] = {}
    aliases: dict[int, list[str]] = {}
    above: dict[int, list[Any]] = {}
    for name, variable, owners in _leaves(model, "", (model,), set()):
        value = variable.value if isinstance(variable, keras.Variable) else variable
        key = id(value)
        if names.setdefault(name, key) != key:
            raise UserError(
                f"--model: two variables have the name {name!r}. Give the layers or attributes that "
                "hold them different names."
            )
        above.setdefault(key, []).extend(owners)
        if key in found:
            if name != found[key].name and name not in aliases[key]:
                aliases[key].append(name)
            continue
        _check_shape(name, value)
        aliases[key] = []
        wrapped = variable if isinstance(variable, keras.Variable) else None
        found[key] = ModelVariable(
            name=name,
            value=value,
            keras=wrapped,
            trainable=bool(variable.trainable),
            random=is_random(variable),
            layer=owners[-1],
        )
    _check_complete(model, found)
    return [replace(v, aliases=tuple(aliases[key]), above=tuple(above[key])) for key, v in found.items()]


def _leaves(
    node: Any, path: str, owners: tuple[Any, ...], above: set[int]
) -> Iterator[tuple[str, keras.Variable | tf.Variable, tuple[Any, ...]]]:
    """(name, variable, layers around it) along the tree; `above` are the nodes on the way (no circles)."""
    if isinstance(node, keras.Variable | tf.Variable):
        yield path, node, owners
        return
    if id(node) in above:
        return
    above = above | {id(node)}
    if isinstance(node, keras.Layer | tf.Module) and node is not owners[-1]:
        owners = (*owners, node)
    for segment, child in _children(node):
        yield from _leaves(child, _join(path, segment), owners, above)


def _join(path: str, segment: str) -> str:
    return f"{path}/{segment}" if path and segment else path or segment


# Attributes by which Keras keeps its own books; following them would give every layer a second name.
_KERAS_BOOKS = frozenset(
    "_layers _metrics _tracker _functional _operations _operations_by_depth _nodes _inbound_nodes "
    "_outbound_nodes _trainable_variables _non_trainable_variables _seed_generators _losses _loss_ids "
    "_loss_tracker _compile_metrics _compile_loss optimizer _optimizer _parent_path _nodes_by_depth "
    "_self_unconditional_dependency_names _self_unconditional_checkpoint_dependencies "
    "_self_tracked_trackables _tracked _inputs _outputs _inputs_struct _outputs_struct "
    "_call_context_args _build_shapes_dict".split()
)


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    """(segment, child) of a node, in the order in which they were made."""
    if isinstance(node, keras.Sequential) or _is_functional(node):
        for layer in node.layers:
            yield layer.name, layer
        known = {id(layer) for layer in node.layers}
        for name, child in _attributes(node):
            if id(child) not in known:
                yield name, child
    elif isinstance(node, keras.random.SeedGenerator):
        yield node.state.name, node.state
    elif isinstance(node, keras.Layer | tf.Module):
        yield from _attributes(node)
    elif isinstance(node, dict):
        for key, child in node.items():
            yield str(key), child
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield str(index), child


def _attributes(node: Any) -> Iterator[tuple[str, Any]]:
    for attribute, child in list(vars(node).items()):
        if attribute in _KERAS_BOOKS or not isinstance(
            child,
            keras.Variable
            | tf.Variable
            | keras.Layer
            | tf.Module
            | keras.random.SeedGenerator
            | dict
            | list
            | tuple,
        ):
            continue
        segment = attribute.lstrip("_")
        if isinstance(child, keras.Variable) and not re.fullmatch(r"variable(_\d+)?", child.name):
            segment = child.name
        elif isinstance(child, keras.random.SeedGenerator):
            segment = "" if attribute == "seed_generator" else segment
        yield segment, child


def _is_functional(node: Any) -> bool:
    return isinstance(node, keras.Model) and hasattr(node, "_operations_by_depth")


def is_random(variable: Any) -> bool:
    """Whether `variable` is the state of a Keras seed generator."""
    return isinstance(variable, keras.Variable) and variable.name.endswith("seed_generator_state")


def _check_shape(name: str, value: tf.Variable) -> None:
    """A variable that may change its shape fits no slot, no plan and no packed reduce."""
    if not value.shape.is_fully_defined():
        raise UserError(
            f"--model: the variable {name} has the shape {value.shape}, which is not fixed. Make it with a "
            "fixed shape: as large as it may become, with what counts of it in another variable."
        )


def _check_complete(model: Any, found: dict[int, ModelVariable]) -> None:
    tracked = list(model.variables)
    if isinstance(model, keras.Layer) and not model.built:
        raise UserError(
            f"--model: {model.name} is not built, so its variables do not exist yet. Let `build` call "
            "the model once on a sample, or `model.build(input_shape)`, before it returns."
        )
    if not found:
        raise UserError("--model: the model has no variables; there is nothing to train.")
    for variable in tracked:
        value = variable.value if isinstance(variable, keras.Variable) else variable
        if id(value) not in found:
            raise UserError(
                f"--model: the variable {variable.name!r} belongs to the model, but no attribute, "
                "list, tuple, dict or layer leads to it. Keep it in an attribute, so that it has a name."
            )
