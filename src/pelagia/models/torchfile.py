"""Reading `torch.save` files of other projects without running anything in them.

Such a file is a zip archive with a pickle that builds the object and one member per storage; before torch 1.6 it was a row of
pickles with the storages behind. A pickle is a program; this module interprets its opcodes itself. A name (`GLOBAL`) becomes an
inert `Name`, an instance of a class a `Record` of its arguments and state. Calls (`REDUCE`) are made for the names in `_CALLS`
only, which rebuild tensors and plain containers; for a few harmless ones that checkpoints carry along (numpy scalars, paths) a
`Record` notes that the call was asked for. Every other call, and every opcode not listed here, is refused by name.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pelagia.errors import CheckpointError, UnsafeCheckpointError

__all__ = ["Limits", "Name", "Record", "read_torch_file"]


@dataclass(frozen=True)
class Limits:
    """What a file may ask for at most.

    Args:
        pickle_bytes: of the pickle.
        opcodes: of the pickle.
        members: of the archive.
        tensor_bytes: of all storages together.
        tensors: in all.
    """

    pickle_bytes: int = 64 << 20
    opcodes: int = 20_000_000
    members: int = 100_000
    tensor_bytes: int = 16 << 30
    tensors: int = 100_000


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


@dataclass(frozen=True, slots=True)
class _Storage:
    data: bytearray
    dtype: torch.dtype
    count: int


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

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
_FORMER_MAGIC, _FORMER_VERSION = 0x1950A86A20F9469CFC6C, 1001
_BROKEN = (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error, OverflowError)


def read_torch_file(path: str | Path, limits: Limits | None = None) -> Any:
    """The object in a `torch.save` file: containers, numbers, strings, tensors on the CPU, `Record` and `Name` for the rest.

    Raises:
        UnsafeCheckpointError: the pickle asks for a call that rebuilding tensors does not need, or breaks a limit.
        CheckpointError: the file is missing or broken.
    """
    limits = limits or Limits()
    if not Path(path).is_file():
        raise CheckpointError("there is no such file", where=path)
    try:
        if not zipfile.is_zipfile(path):
            return _read_former(Path(path), limits)
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive, limits, str(path)).read()
    except zipfile.BadZipFile as error:
        raise CheckpointError("not a torch file, or one cut short; expected a zip archive", where=path) from error
    except (OSError, NotImplementedError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"the archive cannot be read ({error})", where=path) from error


class _Reader:
    """One archive. The interpreter keeps a stack, a memo and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, limits: Limits, where: str) -> None:
        self._begin(limits, where)
        self.archive = archive
        self.members = {info.filename: info for info in archive.infolist()}
        if len(self.members) > limits.members:
            raise UnsafeCheckpointError(f"the archive has {len(self.members)} members, at most {limits.members}", where=where)
        pickles = [name for name in self.members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"expected one data.pkl in the archive, found {len(pickles)}", where=where)
        self.root = pickles[0].removesuffix("data.pkl")

    def _begin(self, limits: Limits, where: str) -> None:
        self.limits, self.where = limits, where
        self.bytes_left, self.tensors_left = limits.tensor_bytes, limits.tensors
        self.storages: dict[str, _Storage] = {}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        byteorder = self.root + "byteorder"
        if byteorder in self.members and self._member(byteorder, 16).strip() != b"little":
            raise CheckpointError("written on a big-endian machine; convert it there", where=self.where)
        return self._run(self._member(self.root + "data.pkl", self.limits.pickle_bytes))

    def _run(self, program: bytes | bytearray | IO[bytes]) -> Any:
        """The object that a pickle builds; a stream is left behind the pickle's end."""
        self.stack, self.memo = [], {}
        count = 0
        try:
            for opcode, argument, _ in pickletools.genops(program):
                count += 1
                if count > self.limits.opcodes:
                    raise UnsafeCheckpointError(f"the pickle has more than {self.limits.opcodes} opcodes", where=self.where)
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._step(opcode.name, argument)
        except _BROKEN as error:
            raise CheckpointError(f"the pickle is broken ({error}, opcode {count})", where=self.where) from error
        raise CheckpointError("the pickle ends early", where=self.where)

    def _refuse(self, what: str) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(
            f"the file asks to {what}, which rebuilding tensors does not need; nothing was executed. If you trust its origin, "
            "convert it with the program that wrote it to a plain state dictionary",
            where=self.where,
        )

    def _member(self, name: str, most: int) -> bytearray:
        info = self.members.get(name)
        if info is None:
            raise CheckpointError(f"the archive lacks {name}", where=self.where)
        if info.file_size > most:
            raise UnsafeCheckpointError(f"{name} unpacks to {info.file_size} bytes, at most {most} are read", where=self.where)
        if info.compress_type != zipfile.ZIP_STORED:
            raise UnsafeCheckpointError(f"{name} is compressed, which torch.save never does", where=self.where)
        with self.archive.open(info) as file:
            return bytearray(file.read(most + 1))

    # --- the interpreter

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
            raise self._refuse(f"use the opcode {name}")

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
            raise self._refuse(f"make an instance of a {type(kind).__name__}")
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
            raise self._refuse(f"set the state of a {type(target).__name__}")

    def _reduce(self, _: Any) -> None:
        args, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or not isinstance(args, tuple):
            raise self._refuse(f"call a {type(called).__name__}")
        name = str(called)
        if name in _CALLS:
            self.stack.append(_CALLS[name](self, *args))
        elif name in _NOTED:
            self.stack.append(Record(called, args))
        else:
            raise self._refuse(f"call {name}")

    # --- tensors

    def _persistent(self, _: Any) -> None:
        what, kind, key, _place, count, *_view = self.stack.pop()
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Name) and kind.module in ("torch", "torch.storage") else None
        if what != "storage" or dtype is None or not isinstance(key, str) or not isinstance(count, int):
            raise self._refuse(f"load a storage of the kind {kind}")
        found = self.storages.get(key)
        if found is None:
            data = self._storage(key, dtype, count)
            self.bytes_left -= len(data)
            found = self.storages[key] = _Storage(data, dtype, count)
        if found.dtype != dtype or found.count != count or len(found.data) != count * dtype.itemsize:
            raise ValueError(f"storage {key} has {len(found.data)} bytes for {count} values of {dtype}")
        self.stack.append(found)

    def _storage(self, key: str, dtype: torch.dtype, count: int) -> bytearray:
        """The bytes of a storage of `count` values."""
        return self._member(f"{self.root}data/{key}", self.bytes_left)

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any, *_rest: Any) -> Tensor:
        """`torch._utils._rebuild_tensor_v2`, bounds checked; the tensor owns its memory."""
        self.tensors_left -= 1
        if self.tensors_left < 0:
            raise UnsafeCheckpointError(f"more than {self.limits.tensors} tensors", where=self.where)
        if not isinstance(storage, _Storage):
            raise self._refuse(f"build a tensor from a {type(storage).__name__}")
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > 16 or any(type(value) is not int or value < 0 for value in numbers):
            raise ValueError(f"a tensor of size {size} and stride {stride}")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count > storage.count or (count and last >= storage.count):
            raise ValueError(f"a tensor of size {size} reaches outside its storage of {storage.count} values")
        if count == 0:
            return torch.zeros(size, dtype=storage.dtype)
        return torch.frombuffer(storage.data, dtype=storage.dtype).as_strided(size, stride, offset).contiguous().clone()

    def _parameter(self, data: Any, *_rest: Any) -> Tensor:
        if not isinstance(data, Tensor):
            raise self._refuse(f"make a parameter of a {type(data).__name__}")
        return data


class _FormerReader(_Reader):
    """A file of torch before 1.6: five pickles one after another, then the storages, each a 64-bit count and its values.

    The pickles hold a magic number, the version, the machine, the object, and the storages' keys in order. The object is built
    twice: first over empty storages to learn their types, without which their lengths are not known, then over the file's.
    """

    def __init__(self, stream: IO[bytes], limits: Limits, where: str) -> None:
        self._begin(limits, where)
        self.stream, self.size = stream, stream.seek(0, 2)
        self.bytes_left = min(
            self.bytes_left, self.size
        )  # the first time, storages are made before the file is seen to hold them
        self.places: dict[str, int] | None = None

    def read(self) -> Any:
        self.stream.seek(0)
        if not self._begins_well():
            raise CheckpointError("not a torch file, or one cut short; expected a zip archive", where=self.where)
        machine = self._run(self.stream)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise CheckpointError("written on a big-endian machine; convert it there", where=self.where)
        start = self.stream.tell()
        self._run(self.stream)
        length = self.stream.tell() - start
        if length > self.limits.pickle_bytes:
            raise UnsafeCheckpointError(f"the pickle is longer than {self.limits.pickle_bytes} bytes", where=self.where)
        types = self.storages
        keys = self._run(self.stream)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(types):
            raise CheckpointError("the storages are not those that the pickle asks for", where=self.where)
        self.places, place = {}, self.stream.tell()
        for key in keys:
            self.places[key] = place
            place += 8 + types[key].count * types[key].dtype.itemsize
        if place > self.size:
            raise CheckpointError(f"the file is cut short: {self.size} of {place} bytes", where=self.where)
        self._begin(self.limits, self.where)
        self.stream.seek(start)
        return self._run(self.stream.read(length))

    def _begins_well(self) -> bool:
        try:
            return bool(self._run(self.stream) == _FORMER_MAGIC and self._run(self.stream) == _FORMER_VERSION)
        except UnsafeCheckpointError:
            raise
        except CheckpointError:
            return False

    def _storage(self, key: str, dtype: torch.dtype, count: int) -> bytearray:
        length = count * dtype.itemsize
        if count < 0 or length > min(self.bytes_left, self.size):
            raise UnsafeCheckpointError(f"storage {key} has {length} bytes, more than the file or the limit", where=self.where)
        if self.places is None:
            return bytearray(length)
        self.stream.seek(self.places[key])
        if int.from_bytes(self.stream.read(8), "little") != count:
            raise CheckpointError(f"storage {key} does not hold {count} values", where=self.where)
        return bytearray(self.stream.read(length))


def _read_former(path: Path, limits: Limits) -> Any:
    with open(path, "rb") as stream:
        return _FormerReader(stream, limits, str(path)).read()


def _keys(items: Iterable[Any]) -> list[Any]:
    """Keys may be plain values only: hashing a nested tuple of the file's making could exhaust the stack."""
    found = list(items)
    for key in found:
        if key is not None and type(key) not in (str, int, float, bool, bytes):
            raise ValueError(f"a {type(key).__name__} as a key")
    return found


def _set(_: _Reader, items: Any = ()) -> set[Any]:
    if not isinstance(items, list | tuple | set | frozenset):
        raise ValueError("a set of something that is no list")
    return set(_keys(items))


def _size(_: _Reader, items: Any = ()) -> tuple[int, ...]:
    return tuple(int(item) for item in items)


def _ordered(_: _Reader, items: Any = ()) -> dict[Any, Any]:
    pairs = [(key, value) for key, value in items]
    return dict(zip(_keys(key for key, _ in pairs), (value for _, value in pairs), strict=True))


#: The only calls ever made.
_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _Reader._tensor,
    "torch._utils._rebuild_parameter": _Reader._parameter,
    "collections.OrderedDict": _ordered,
    "builtins.set": _set,
    "builtins.frozenset": lambda reader, items=(): frozenset(_set(reader, items)),
    "torch.Size": _size,
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
_ACTIONS: dict[str, Callable[[_Reader, Any], None]] = {
    "GLOBAL": _Reader._name,
    "STACK_GLOBAL": _Reader._stacked_name,
    "NEWOBJ": _Reader._new,
    "NEWOBJ_EX": _Reader._new_keywords,
    "BUILD": _Reader._build,
    "REDUCE": _Reader._reduce,
    "BINPERSID": _Reader._persistent,
}
