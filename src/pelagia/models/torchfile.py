"""Reading `torch.save` files of other projects without running anything in them.

Such a file is a zip archive with a pickle that builds the object and one member per storage; before torch 1.6 it was a row of
pickles with the storages behind. `models.unpickle` interprets the pickle; the calls allowed here rebuild tensors and plain
containers only.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pelagia.errors import CheckpointError, UnsafeCheckpointError
from pelagia.models.unpickle import PLAIN_CALLS, Interpreter, Name

__all__ = ["Limits", "read_torch_file"]


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

_FORMER_MAGIC, _FORMER_VERSION = 0x1950A86A20F9469CFC6C, 1001


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


class _Reader(Interpreter):
    """One archive."""

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
        super().__init__(where, limits.opcodes, _CALLS)
        self.limits = limits
        self.bytes_left, self.tensors_left = limits.tensor_bytes, limits.tensors
        self.storages: dict[str, _Storage] = {}

    def read(self) -> Any:
        byteorder = self.root + "byteorder"
        if byteorder in self.members and self._member(byteorder, 16).strip() != b"little":
            raise CheckpointError("written on a big-endian machine; convert it there", where=self.where)
        return self.run(self._member(self.root + "data.pkl", self.limits.pickle_bytes))

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

    # --- tensors

    def persistent(self, what: Any) -> _Storage:
        """A storage: ("storage", type, key, device, number of values)."""
        what, kind, key, _place, count, *_view = what
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Name) and kind.module in ("torch", "torch.storage") else None
        if what != "storage" or dtype is None or not isinstance(key, str) or not isinstance(count, int):
            raise self.refuse(f"load a storage of the kind {kind}")
        found = self.storages.get(key)
        if found is None:
            data = self._storage(key, dtype, count)
            self.bytes_left -= len(data)
            found = self.storages[key] = _Storage(data, dtype, count)
        if found.dtype != dtype or found.count != count or len(found.data) != count * dtype.itemsize:
            raise ValueError(f"storage {key} has {len(found.data)} bytes for {count} values of {dtype}")
        return found

    def _storage(self, key: str, dtype: torch.dtype, count: int) -> bytearray:
        """The bytes of a storage of `count` values."""
        return self._member(f"{self.root}data/{key}", self.bytes_left)

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any, *_rest: Any) -> Tensor:
        """`torch._utils._rebuild_tensor_v2`, bounds checked; the tensor owns its memory."""
        self.tensors_left -= 1
        if self.tensors_left < 0:
            raise UnsafeCheckpointError(f"more than {self.limits.tensors} tensors", where=self.where)
        if not isinstance(storage, _Storage):
            raise self.refuse(f"build a tensor from a {type(storage).__name__}")
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
            raise self.refuse(f"make a parameter of a {type(data).__name__}")
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
        machine = self.run(self.stream)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise CheckpointError("written on a big-endian machine; convert it there", where=self.where)
        start = self.stream.tell()
        self.run(self.stream)
        length = self.stream.tell() - start
        if length > self.limits.pickle_bytes:
            raise UnsafeCheckpointError(f"the pickle is longer than {self.limits.pickle_bytes} bytes", where=self.where)
        types = self.storages
        keys = self.run(self.stream)
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
        return self.run(self.stream.read(length))

    def _begins_well(self) -> bool:
        try:
            return bool(self.run(self.stream) == _FORMER_MAGIC and self.run(self.stream) == _FORMER_VERSION)
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


def _size(_: _Reader, items: Any = ()) -> tuple[int, ...]:
    return tuple(int(item) for item in items)


#: The only calls ever made.
_CALLS: Mapping[str, Callable[..., Any]] = {
    **PLAIN_CALLS,
    "torch._utils._rebuild_tensor_v2": _Reader._tensor,
    "torch._utils._rebuild_parameter": _Reader._parameter,
    "torch.Size": _size,
}
