"""Building what a pickle describes without running anything in it.

A pickle is a program; this module interprets its opcodes itself. A name (`GLOBAL`) becomes an inert `Name`, an instance of a
class a `Record` of its arguments and state. Calls (`REDUCE`) are made for the names that the reader of a format allows only; for
a few harmless ones that checkpoints carry along (numpy scalars, paths) a `Record` notes that the call was asked for. Every other
call, and every opcode not listed here, is refused by name.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from pelagia.errors import CheckpointError, UnsafeCheckpointError

__all__ = ["PLAIN_CALLS", "Interpreter", "Name", "Record"]


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """An object that the pickle asks for and that was not made: its class, its arguments and its state."""

    kind: Name
    args: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)


#: Asked for by real checkpoints beside the weights; noted, not called.
_NOTED = {
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "_codecs.encode",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib.Path",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "torch.device",
}

_MARK = object()
_BROKEN = (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error, OverflowError)


class Interpreter:
    """Runs pickles; keeps a stack, a memo and nothing else.

    Args:
        where: the file, for messages.
        opcodes: of one pickle at most.
        calls: name -> the function called in its place, with the interpreter before the pickle's arguments.
    """

    def __init__(self, where: str, opcodes: int, calls: Mapping[str, Callable[..., Any]]) -> None:
        self.where, self.opcodes, self.calls = where, opcodes, calls
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes | bytearray | IO[bytes]) -> Any:
        """The object that a pickle builds; a stream is left behind the pickle's end.

        Raises:
            UnsafeCheckpointError: it asks for a call or an opcode that is not allowed, or has too many opcodes.
            CheckpointError: it is broken.
        """
        self.stack, self.memo = [], {}
        count = 0
        try:
            for opcode, argument, _ in pickletools.genops(program):
                count += 1
                if count > self.opcodes:
                    raise UnsafeCheckpointError(f"the pickle has more than {self.opcodes} opcodes", where=self.where)
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._step(opcode.name, argument)
        except _BROKEN as error:
            raise CheckpointError(f"the pickle is broken ({error}, opcode {count})", where=self.where) from error
        raise CheckpointError("the pickle ends early", where=self.where)

    def refuse(self, what: str) -> UnsafeCheckpointError:
        """The error for a pickle that asks to do `what`."""
        return UnsafeCheckpointError(
            f"the file asks to {what}, which rebuilding tensors does not need; nothing was executed. If you trust its origin, "
            "convert it with the program that wrote it to a plain state dictionary",
            where=self.where,
        )

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _MAKERS:
            stack.append(_MAKERS[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            stack.append(self._gather(name, self._marked()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            self._expect(list).extend(items)
        elif name == "ADDITEMS":
            items = _keys(self._marked())
            self._expect(set).update(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._marked()
            self._expect(dict).update(self._gather("DICT", items))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise self.refuse(f"use the opcode {name}")

    def _marked(self) -> list[Any]:
        """Everything above the topmost mark; the mark goes too."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise ValueError("a mark is missing")

    def _expect(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"{kind.__name__} expected, found {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    @staticmethod
    def _gather(name: str, items: list[Any]) -> Any:
        if name == "DICT":
            if len(items) % 2:
                raise ValueError("a key without a value")
            return dict(zip(_keys(items[::2]), items[1::2], strict=True))
        if name == "FROZENSET":
            return frozenset(_keys(items))
        return items if name == "LIST" else tuple(items)

    def _name(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self.stack.append(Name("builtins" if module == "__builtin__" else module, name))  # protocol 2 keeps Python 2's name

    def _stacked_name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is no string")
        self.stack.append(Name(module, name))

    def _new(self, _: Any) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Name) or not isinstance(args, tuple):
            raise self.refuse(f"make an instance of a {type(kind).__name__}")
        self.stack.append(Record(kind, args))

    def _new_keywords(self, _: Any) -> None:
        keywords = self.stack.pop()
        self._new(None)
        self.stack[-1].state.update(keywords if isinstance(keywords, dict) else {})

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict):
                    target.state.update(part)
        elif not (isinstance(target, dict) and isinstance(state, dict)):  # an OrderedDict's own attributes (_metadata): left out
            raise self.refuse(f"set the state of a {type(target).__name__}")

    def _reduce(self, _: Any) -> None:
        args, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or not isinstance(args, tuple):
            raise self.refuse(f"call a {type(called).__name__}")
        name = str(called)
        if name in self.calls:
            self.stack.append(self.calls[name](self, *args))
        elif name in _NOTED:
            self.stack.append(Record(called, args))
        else:
            raise self.refuse(f"call {name}")

    def persistent(self, what: Any) -> Any:
        """The object that a persistent id stands for; a plain pickle has none."""
        raise self.refuse(f"load {type(what).__name__} from outside the pickle")

    def _persistent(self, _: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))


def _keys(items: Iterable[Any]) -> list[Any]:
    """Keys may be plain values only: hashing a nested tuple of the file's making could exhaust the stack."""
    found = list(items)
    for key in found:
        if key is not None and type(key) not in (str, int, float, bool, bytes):
            raise ValueError(f"a {type(key).__name__} as a key")
    return found


def _set(_: Interpreter, items: Any = ()) -> set[Any]:
    if not isinstance(items, list | tuple | set | frozenset):
        raise ValueError("a set of something that is no list")
    return set(_keys(items))


def _ordered(_: Interpreter, items: Any = ()) -> dict[Any, Any]:
    pairs = [(key, value) for key, value in items]
    return dict(zip(_keys(key for key, _ in pairs), (value for _, value in pairs), strict=True))


#: Calls that make plain containers.
PLAIN_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "builtins.set": _set,
    "builtins.frozenset": lambda interpreter, items=(): frozenset(_set(interpreter, items)),
}

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_MAKERS: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_ACTIONS: dict[str, Callable[[Interpreter, Any], None]] = {
    "GLOBAL": Interpreter._name,
    "STACK_GLOBAL": Interpreter._stacked_name,
    "NEWOBJ": Interpreter._new,
    "NEWOBJ_EX": Interpreter._new_keywords,
    "BUILD": Interpreter._build,
    "REDUCE": Interpreter._reduce,
    "BINPERSID": Interpreter._persistent,
}
