"""What a traced function would do behind the loop's back: write variables, and draw random numbers."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.errors import UserError, guarded, listing
from trainer.model.names import ModelVariable

_READS = {"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp"}
_WRITES = ("Assign", "ResourceScatter", "ResourceStridedSliceAssign", "ResourceApply", "ResourceSparseApply")
# Ops that draw from a generator of TensorFlow's own, whose state is no part of a run.
_DRAWS = re.compile(
    r"RandomStandardNormal|RandomUniform(Int)?|TruncatedNormal|ParameterizedTruncatedNormal|Multinomial|"
    r"RandomGamma|RandomPoisson(V2)?|RandomShuffle|RandomCrop|RngReadAndSkip|RngSkip|Stateful(?!Partitioned).*|"
    r".*CandidateSampler|SampleDistortedBoundingBox(V2)?|FractionalMaxPool|FractionalAvgPool|RandomIndexShuffle"
)
_HOST = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def written(graph: Any, variables: Sequence[ModelVariable]) -> frozenset[str]:
    """Names of the plain variables that a function writes."""
    consumers = _consumers(graph)
    return frozenset(
        v.name
        for v in variables
        if v.keras is None
        and any(t not in _READS for copy in _copies(v.value) for t in consumers.get(id(copy.handle), ()))
    )


def strange_writes(graph: Any, variables: Sequence[ModelVariable]) -> list[str]:
    """Handles of the variables that a function writes and that are none of the model's."""
    known = {id(copy.handle) for v in variables for copy in _copies(v.value)}
    names = {id(outer): _name_of(outer) for outer, _ in graph.captures}
    return sorted(
        {
            names[key]
            for key, types in _consumers(graph).items()
            if key not in known and any(t.startswith(_WRITES) for t in types)
        }
    )


def traced(function: Callable[..., Any], spec: Any, what: str) -> Any:
    """The concrete function of a user's function, which may draw from nothing that is no part of the run.

    Args:
      function: of one argument.
      spec: of that.
      what: whose it is, for messages.

    Raises:
      UserError: it raises, or draws out of a generator which no checkpoint holds; with the user's own lines.
    """
    keras.random.normal([0])  # makes Keras's own generator, which takes its seed from Python's
    before = _host_generators()
    concrete = guarded(lambda: tf.function(function).get_concrete_function(spec), what)
    check_draws(concrete.graph, what)
    if _host_generators() != before:
        raise UserError(
            f"{what} draws from NumPy's or Python's generator while it is traced, so that every step "
            "would get the same numbers. Draw with tf.random.stateless_* from the `seed` of preprocess."
        )
    return concrete


def check_draws(graph: Any, what: str) -> None:
    """Refuses a function that draws from a generator which no checkpoint holds.

    Args:
      graph: of the traced function.
      what: whose it is, for the message.

    Raises:
      UserError: names the ops and the user's own lines.
    """
    found = [f"{op.type}{_at(op)}" for op in operations(graph) if _DRAWS.fullmatch(op.type)]
    if found:
        raise UserError(
            f"{what} draws random numbers by {listing(dict.fromkeys(found), 4)}, out of a generator that is "
            "no part of the run: they would be others after a restart. Draw in preprocess, with "
            "tf.random.stateless_* (or tf.image.stateless_*) from its `seed`, or in a Keras layer from a "
            "keras.random.SeedGenerator, which the trainer seeds from the step."
        )


def host_functions(graph: Any) -> list[str]:
    """Ops that call Python, each with the user's own line; what they draw there cannot be seen."""
    return [f"{op.type}{_at(op)}" for op in operations(graph) if op.type in _HOST]


def for_effect(ops: Sequence[Any]) -> list[Any]:
    """Of `ops` those that may be run for their effect: assertions, host functions, what holds such."""
    return [
        op
        for op in ops
        if op.op_def.is_stateful
        and not op.type.startswith(("Collective", "Nccl"))
        and not any(x.dtype == tf.resource for x in op.inputs)
    ]


def operations(graph: Any) -> Iterator[Any]:
    """All ops of a traced function and of the functions that it calls, each once."""
    seen: set[str] = set()
    rest = [graph]
    while rest:
        inner = rest.pop()
        for op in inner.get_operations():
            yield op
            for name in _called(op):
                if name not in seen:
                    seen.add(name)
                    found = getattr(_function(inner, name), "graph", None)
                    rest += [found] if found is not None else []


def own_line(frames: Any) -> str:
    """` at FILE:LINE` of the innermost frame that is the user's own; empty where none is.

    Args:
      frames: with `filename` and `lineno`, outermost first.
    """
    own = [f for f in frames if not is_foreign(f.filename)]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def is_foreign(file: str) -> bool:
    """Whether a file of Python code is a library's, or this program's, and not the user's own."""
    return bool(_LIBRARIES.search(file)) or is_own(file)


def is_own(file: str) -> bool:
    """Whether a file of Python code is this program's."""
    return Path(file).is_relative_to(_PROGRAM)


_LIBRARIES = re.compile(r"site-packages|dist-packages|<frozen|__autograph_generated|^/usr/lib/python")
_PROGRAM = Path(__file__).resolve().parents[1]


def _host_generators() -> tuple[Any, ...]:
    _, keys, position, *_ = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), position


def _at(op: Any) -> str:
    try:
        return own_line(op.traceback)
    except (AttributeError, KeyError, ValueError):
        return ""


def _called(op: Any) -> Iterator[str]:
    for attribute in op.node_def.attr.values():
        if attribute.HasField("func"):
            yield attribute.func.name
        for function in attribute.list.func:
            yield function.name


def _function(graph: Any, name: str) -> Any:
    try:
        return graph._get_function(name)
    except (AttributeError, KeyError, ValueError, tf.errors.OpError):
        return None


def _consumers(graph: Any) -> dict[int, set[str]]:
    """By the id of a captured handle, the types of the ops that use it, in inner functions too."""
    return {
        id(outer): set(_uses(graph, inner)) for outer, inner in graph.captures if inner.dtype == tf.resource
    }


def _uses(graph: Any, handle: tf.Tensor) -> Iterator[str]:
    for op in handle.consumers():
        called = list(_called(op))
        if not called:
            yield op.type
        for name in called:
            inner = getattr(_function(graph, name), "graph", None)
            if inner is None:  # what it does with it cannot be seen
                yield op.type
                continue
            first = len(op.inputs) - len(inner.inputs)  # a condition or the number of a branch comes before
            for given, taken in zip(list(op.inputs)[first:], inner.inputs, strict=True):
                if given is handle:
                    yield from _uses(inner, taken)


def _copies(variable: Any) -> Sequence[tf.Variable]:
    return getattr(variable, "values", None) or (variable,)


def _name_of(handle: Any) -> str:
    found = re.search(r'ResourceHandle\(name="([^"]*)"', str(handle))
    return found[1].rpartition("/")[0] or found[1] if found else "a variable"
