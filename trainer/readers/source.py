"""What every reader gives back: named arrays, read one by one, and what was set aside."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from trainer.errors import UserError, near
from trainer.readers import buffers, slots

# A path component that marks what a trainer or a random generator keeps, not what a network knows.
_STATE_PARTS = frozenset(
    "optimizer optimizers _optimizer optimizer_weights metrics _metrics _compile_metrics "
    "compile_metrics loss_tracker _loss_tracker seed_generator _random_generator".split()
)
_STATE_LAST = re.compile(r"(.*_)?seed_generator_state|_?state_var|rng_state|(.*[./])?num_batches_tracked")
_TORCH = re.compile(
    r"([^/]*\.)?(weight|running_mean|running_var|num_batches_tracked|in_proj_(weight|bias)"
    r"|(weight|bias)_[ih]h(_l\d+(_reverse)?)?)"
)
_COUNTERS = frozenset("step steps global_step iteration iterations save_counter epoch epochs counter".split())


@dataclass(frozen=True)
class Spec:
    """Shape and dtype (as NumPy spells it: `float32`, `bfloat16`) of one array in a file."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Bytes of the array in memory."""
        return size(self.shape) * np_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class KerasFile:
    """How one of Keras's HDF5 files is laid out, for what Keras itself would take from it.

    Attributes:
      paths: `{name of a weight: its path in the file}`.
      specs: `{path: Spec}` of everything in the file, state included.
      groups: paths of all groups.
      layers: of a legacy file: (layer's name, paths of its weights), in the file's order.
      named: whether the file stores names of layers that count (a legacy `.h5`, a `.keras` file of a
        functional or sequential model); where not, it stores positions.
    """

    paths: Mapping[str, str]
    specs: Mapping[str, Spec]
    groups: frozenset[str]
    layers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    named: bool = False


@dataclass(frozen=True)
class Edges:
    """The object graph that a TensorFlow checkpoint stores.

    Attributes:
      children: for each node, `{edge: node}`; node 0 is the root.
      names: `{node: name of the weight that it is}`.
    """

    children: tuple[Mapping[str, int], ...]
    names: Mapping[int, str]


@dataclass(frozen=True)
class WeightsFile:
    """The weights in a file, by name, without having read them.

    Attributes:
      kind: the format in plain words.
      path: as the user gave it.
      specs: `{name: Spec}` of the weights, in the file's order.
      ignored: what is never taken and never missed: optimizer state, counters, random state.
      flag: the flag that named the path, for messages.
      fetch: gives an array, or where its bytes are stored as they are, these, open.
      keras: the layout of a Keras file, None for others.
      edges: the object graph of a TensorFlow checkpoint, None for others.
      torch: whether its names look like PyTorch's.
      neutral: whether the format says nothing of who made the arrays, so that any layout may be stated.
    """

    kind: str
    path: str
    specs: Mapping[str, Spec]
    ignored: tuple[str, ...]
    flag: str
    fetch: Callable[[str], np.ndarray | AbstractContextManager[IO[bytes]]] = field(repr=False)
    keras: KerasFile | None = field(default=None, repr=False)
    edges: Edges | None = field(default=None, repr=False)
    torch: bool = False
    neutral: bool = False

    @property
    def positional(self) -> bool:
        """Whether the file stores positions in a Keras model, so that its names do not count."""
        return self.keras is not None and not self.keras.named

    def read(self, name: str) -> np.ndarray:
        """The array called `name`, read now.

        Raises:
          UserError: no such name, damaged data, or data that is not what the file announced.
        """
        (array,) = self._parts(name, whole=True)
        return array

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """The array called `name` in rows of its first axis, as many at a time as take little memory.

        It comes as one where it is small, or not stored as it is.

        Raises:
          UserError: as `read`.
        """
        return self._parts(name, whole=False)

    def _parts(self, name: str, whole: bool) -> Iterator[np.ndarray]:
        if name not in self.specs:
            raise refuse(self.flag, self.path, f"holds no {name!r}. {near(name, self.specs)}")
        spec = self.specs[name]
        # The libraries below raise whatever they like on damaged bytes (even SystemError).
        try:
            stored = self.fetch(name)
            if isinstance(stored, AbstractContextManager):
                yield from _read(stored, spec, whole)
                return
        except UserError:
            raise
        except Exception as error:
            raise damaged(self.flag, self.path, error, f"the data of {name!r}") from error
        yield self._as_announced(name, np.asarray(stored), spec)

    def _as_announced(self, name: str, array: np.ndarray, spec: Spec) -> np.ndarray:
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if array.shape != spec.shape or array.dtype != np_dtype(spec.dtype):
            raise refuse(
                self.flag,
                self.path,
                f"announces {name!r} as {spec.dtype}{list(spec.shape)} and holds "
                f"{array.dtype}{list(array.shape)}: the file is damaged.",
            )
        return array


def _read(stored: AbstractContextManager[IO[bytes]], spec: Spec, whole: bool) -> Iterator[np.ndarray]:
    """The array whose bytes are stored as they are, at once or in rows."""
    dtype = np_dtype(spec.dtype)
    with stored as file:
        if whole or spec.bytes <= buffers.PIECE or not spec.shape:
            yield buffers.fill(file, spec.bytes).view(dtype).reshape(spec.shape)
            return
        row = spec.bytes // spec.shape[0]
        for part in buffers.rows(spec.shape, spec.bytes):
            count = part.stop - part.start
            yield buffers.fill(file, count * row).view(dtype).reshape(count, *spec.shape[1:])


def refuse(flag: str, path: object, why: str) -> UserError:
    """The error of a source that cannot be used: flag, value, reason."""
    return UserError(f"{flag}={path}: {why}")


def damaged(flag: str, path: object, error: BaseException, what: str = "the file") -> UserError:
    """The error of a file that its own library cannot read."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return refuse(flag, path, f"{what} cannot be read ({reason}). It is damaged or cut short; copy it again.")


def is_state(name: str, spec: Spec) -> bool:
    """Whether an array is optimizer state, a metric, a counter or random state, by its name."""
    parts = name.split("/")
    if not _STATE_PARTS.isdisjoint(parts) or _STATE_LAST.fullmatch(parts[-1]):
        return True
    integer = np_dtype(spec.dtype).kind in "iu"
    return integer and spec.shape == () and parts[-1] in _COUNTERS


def split_state(specs: Mapping[str, Spec]) -> tuple[dict[str, Spec], tuple[str, ...]]:
    """Weights and the names of what is not a weight."""
    ignored = tuple(
        name
        for name, spec in specs.items()
        if is_state(slots.bare(name), spec) or slots.is_counter(name) or slots.owner(name, specs)
    )
    return {name: spec for name, spec in specs.items() if name not in set(ignored)}, ignored


def unique(wanted: Iterable[tuple[str, str]]) -> dict[str, str]:
    """`{recognisable name: name in the file}` from pairs; where two want one name, both keep the file's."""
    pairs = list(wanted)
    count: dict[str, int] = {}
    for name, _ in pairs:
        count[name] = count.get(name, 0) + 1
    taken = {name for name, times in count.items() if times == 1}
    result: dict[str, str] = {}
    for name, raw in pairs:
        final = name if count[name] == 1 else raw
        while final in result or (count[name] > 1 and final in taken):
            final += "'"
        result[final] = raw
    return result


def looks_like_torch(names: Iterable[str]) -> bool:
    """Whether names are those of a PyTorch state dict: modules by dots, PyTorch's own words for weights."""
    return any(_TORCH.fullmatch(name) for name in names)


def size(shape: Iterable[int]) -> int:
    """Number of elements, in Python integers that do not overflow."""
    total = 1
    for dimension in shape:
        total *= int(dimension)
    return total


def np_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a name, `bfloat16` and the 8-bit floats included."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
