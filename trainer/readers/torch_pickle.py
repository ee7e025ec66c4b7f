"""The pickle in a PyTorch file, read without unpickling: a list of allowed opcodes and names, nothing else.

PyTorch's `torch.save(model.state_dict(), path)` writes a zip with raw storages and one small pickle that says
which tensor lies where. A pickle is a program for a stack machine; this runs the few instructions that such a
file needs, on plain values. Names are looked up in a fixed table and never imported; a call is made only to
the functions of `torch_names.py`, which build records. Anything else is refused by its name.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any

from trainer.readers.torch_names import CALLS, Name, Storage, look_up, storage_dtype

_MOST = 1 << 26  # bytes of a pickle; honest ones have about a hundred a tensor
_DEEPEST = 200_000  # entries of the stack and the memo


class _Mark:
    pass


def load(data: bytes) -> Any:
    """The value of a pickle: dictionaries, lists, tuples, numbers, texts and `Tensor`s.

    Raises:
      ValueError: an instruction or a name that a file of weights has no need of, or damage.
    """
    if len(data) > _MOST:
        raise ValueError(f"its pickle has {len(data)} bytes")
    return _Machine(data).run()


class _Machine:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                if len(self.stack) != 1:
                    raise ValueError("its pickle ends too early")
                return self.stack[0]
            step = _STEPS.get(code)
            if step is None:
                raise ValueError(f"its pickle has the instruction {bytes([code])!r}, which no weights need")
            step(self)
            if len(self.stack) > _DEEPEST or len(self.memo) > _DEEPEST:
                raise ValueError("its pickle holds more than any model has")

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise ValueError("its pickle is cut short")
        self.at += count
        return self.data[self.at - count : self.at]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 300)
        if end < 0:
            raise ValueError("its pickle is cut short")
        return self.take(end + 1 - self.at)[:-1].decode()

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _Mark:
            raise ValueError("its pickle takes more than there is")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _Mark:
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise ValueError("its pickle takes more than there is")

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"its pickle fills what is no {kind.__name__}")
        return self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, place: int) -> None:
        if not self.stack:
            raise ValueError("its pickle takes more than there is")
        self.memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        if place not in self.memo:
            raise ValueError("its pickle refers to what is not there")
        self.push(self.memo[place])

    def name(self, module: object, name: object) -> None:
        self.push(look_up(module, name))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("its pickle calls what is no function")
        construct = CALLS.get((function.module, function.name))
        if construct is None:
            raise ValueError(f"its pickle calls {function.module}.{function.name}")
        self.push(construct(*arguments))

    def set_items(self, items: list[Any]) -> None:
        held = self.top(dict)
        if len(items) % 2:
            raise ValueError("its pickle has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise ValueError(f"its pickle has a key of type {type(key).__name__}")
            held[key] = value

    def storage(self) -> None:
        persistent = self.pop()
        fits = isinstance(persistent, tuple) and len(persistent) == 5 and persistent[0] == "storage"
        if not fits or not isinstance(persistent[1], Name) or not isinstance(persistent[2], str):
            raise ValueError("its pickle refers to something that is no storage")
        size = persistent[4]
        if not isinstance(size, int) or size < 0:
            raise ValueError(f"a storage of it has {size!r} numbers")
        self.push(Storage(persistent[2], storage_dtype(persistent[1]), size))

    def build(self) -> None:
        # The state of a dictionary is what `state_dict` notes about versions (`_metadata`): not needed.
        self.pop()
        self.top(dict)


def _tuple(machine: _Machine, count: int) -> None:
    machine.push(tuple(reversed([machine.pop() for _ in range(count)])))


def _append(machine: _Machine, items: list[Any]) -> None:
    machine.top(list).extend(items)


def _long(machine: _Machine, count: int) -> None:
    if count > 16:
        raise ValueError("its pickle has a number of absurd length")
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _global(machine: _Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.name(module, name)


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _last(machine: _Machine) -> None:
    value = machine.pop()
    _append(machine, [value])


# Opcodes of pickle protocols 0 to 5 (CPython's `pickletools`) that a state dict is made of.
_STEPS: Mapping[int, Callable[[_Machine], None]] = {
    0x80: lambda m: void(m.take(1)),  # PROTO
    0x95: lambda m: void(m.take(8)),  # FRAME
    0x28: lambda m: m.push(_Mark),  # MARK
    0x30: lambda m: void(m.pop()),  # POP
    0x7D: lambda m: m.push({}),  # EMPTY_DICT
    0x5D: lambda m: m.push([]),  # EMPTY_LIST
    0x29: lambda m: m.push(()),  # EMPTY_TUPLE
    0x4E: lambda m: m.push(None),  # NONE
    0x88: lambda m: m.push(True),  # NEWTRUE
    0x89: lambda m: m.push(False),  # NEWFALSE
    0x4A: lambda m: m.push(m.number("<i")),  # BININT
    0x4B: lambda m: m.push(m.number("<B")),  # BININT1
    0x4D: lambda m: m.push(m.number("<H")),  # BININT2
    0x8A: lambda m: _long(m, m.number("<B")),  # LONG1
    0x47: lambda m: m.push(m.number(">d")),  # BINFLOAT
    0x58: lambda m: m.push(m.take(m.number("<I")).decode()),  # BINUNICODE
    0x8C: lambda m: m.push(m.take(m.number("<B")).decode()),  # SHORT_BINUNICODE
    0x71: lambda m: m.put(m.number("<B")),  # BINPUT
    0x72: lambda m: m.put(m.number("<I")),  # LONG_BINPUT
    0x94: lambda m: m.put(len(m.memo)),  # MEMOIZE
    0x68: lambda m: m.get(m.number("<B")),  # BINGET
    0x6A: lambda m: m.get(m.number("<I")),  # LONG_BINGET
    0x85: lambda m: _tuple(m, 1),  # TUPLE1
    0x86: lambda m: _tuple(m, 2),  # TUPLE2
    0x87: lambda m: _tuple(m, 3),  # TUPLE3
    0x74: lambda m: m.push(tuple(m.since_mark())),  # TUPLE
    0x6C: lambda m: m.push(m.since_mark()),  # LIST
    0x61: _last,  # APPEND
    0x65: lambda m: _append(m, m.since_mark()),  # APPENDS
    0x73: _item,  # SETITEM
    0x75: lambda m: m.set_items(m.since_mark()),  # SETITEMS
    0x63: _global,  # GLOBAL
    0x93: _stack_global,  # STACK_GLOBAL
    0x52: lambda m: m.call(),  # REDUCE
    0x51: lambda m: m.storage(),  # BINPERSID
    0x62: lambda m: m.build(),  # BUILD
}


def void(_: object) -> None:
    """Nothing, of something."""
