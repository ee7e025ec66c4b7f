"""The names that a PyTorch file of weights may hold: a fixed table, nothing is imported.

Storages and dtypes by NumPy's names, and the few functions that its pickle calls, here as functions that
build records.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

# PyTorch's storage classes and dtypes by NumPy's names.
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_DTYPES = (
    "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool "
    "complex64 complex128 float8_e4m3fn float8_e5m2"
).split()
_ALIASES = {"half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32"}


@dataclass(frozen=True)
class Storage:
    """A run of bytes in the file: its key, the dtype of its numbers (None for bytes), how many."""

    key: str
    dtype: str | None
    size: int


@dataclass(frozen=True)
class Tensor:
    """A tensor: where it lies in which storage, in numbers and not in bytes."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def last(self) -> int:
        """Where its last number lies in the storage."""
        steps = zip(self.shape, self.stride, strict=True)
        return self.offset + sum((count - 1) * step for count, step in steps)

    @property
    def contiguous(self) -> bool:
        """Whether its numbers lie one after another in C order."""
        sizes = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        steps = zip(self.shape, self.stride, sizes, strict=True)
        return all(count == 1 or step == wanted for count, step, wanted in steps)


@dataclass(frozen=True)
class Name:
    """A name of the table, before it is called."""

    module: str
    name: str


def look_up(module: object, name: object) -> Name | str:
    """What a name of the pickle stands for: a `Name` to call or refer to, or a dtype by NumPy's name.

    Raises:
      ValueError: a name that a file of weights has no need of.
    """
    if (module == "torch" and name in _STORAGES) or (module, name) == ("torch.storage", "UntypedStorage"):
        return Name(str(module), str(name))
    if module == "torch" and (name in _DTYPES or name in _ALIASES):
        return _ALIASES.get(str(name), str(name))
    if (module, name) in CALLS:
        return Name(str(module), str(name))
    raise ValueError(
        f"its pickle names {module}.{name}, which is no part of a dictionary of weights (a whole model or "
        "other Python objects were saved)"
    )


def storage_dtype(name: Name) -> str | None:
    """The dtype of a storage class's numbers; None for plain bytes."""
    return _STORAGES.get(name.name)


def _ints(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(isinstance(v, int) and v >= 0 for v in values):
        raise ValueError(f"a tensor of it has the shape {values!r}")
    return tuple(int(v) for v in values)


def _tensor(storage: object, offset: object, shape: object, stride: object, *more: object) -> Tensor:
    """`_rebuild_tensor_v2`; behind two arguments of no matter here, notes on how to read the numbers."""
    if not isinstance(storage, Storage) or not isinstance(offset, int) or offset < 0:
        raise ValueError("a tensor of it has no storage")
    if storage.dtype is None:
        raise ValueError("a tensor of it has no dtype")
    if any(more[2:]):
        raise ValueError(f"a tensor of it is to be read in an unusual way ({more[2]!r})")
    sizes, steps = _ints(shape), _ints(stride)
    if len(sizes) != len(steps):
        raise ValueError(f"a tensor of it has the shape {sizes} and the strides {steps}")
    return Tensor(storage, storage.dtype, offset, sizes, steps)


def _typed_tensor(storage: object, *more: object) -> Tensor:
    """`_rebuild_tensor_v3`, which states the dtype of plain bytes."""
    *place, grad, hooks, dtype = more[:6]
    if not isinstance(storage, Storage) or not isinstance(dtype, str):
        raise ValueError("a tensor of it has no dtype")
    tensor = _tensor(replace(storage, dtype=dtype), *place, grad, hooks, *more[6:])
    return replace(tensor, storage=storage)


def _parameter(data: object, *more: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter of it is no tensor")
    return data


def _ordered(*items: object) -> dict[Any, Any]:
    if items:
        raise ValueError("its pickle fills a dictionary in an unusual way")
    return {}


CALLS: Mapping[tuple[object, object], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): lambda sizes: _ints(sizes),
}
