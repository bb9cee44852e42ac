"""Files that are whole or absent: atomic writing, JSON with limits, content hashes.

An output is written under a temporary name in its own folder, flushed to the disk, and renamed; a reader, or a run killed half
way, never sees half a file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
import numpy as np

from pelagia.errors import FormatError, OptionError

__all__ = [
    "JSON_LIMIT_BYTES",
    "atomic_folder",
    "atomic_path",
    "atomic_write",
    "content_hash",
    "files_in",
    "move",
    "read_json",
    "remove",
    "remove_leftovers",
    "sha256",
    "temporary_path",
    "write_bytes",
    "write_json",
    "write_text",
]

#: Largest JSON file that is read unless the caller says otherwise: 4 GiB, some twenty times COCO's largest.
JSON_LIMIT_BYTES = 4 << 30

#: Failures of the disk, as opposed to failures of the code that writes.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS}

#: The names that `atomic_path` and `atomic_folder` give to what is being written.
_TEMPORARY = re.compile(r"\..{0,40}\.[0-9a-f]{12}(\..{0,19})?", re.DOTALL)


def temporary_path(target: Path) -> Path:
    """A name beside `target` that nothing has; `remove_leftovers` knows such names."""
    # The name is cut so that the marks added to it cannot exceed the 255 bytes of a file name.
    return target.with_name(f".{target.stem[:40]}.{secrets.token_hex(6)}{target.suffix[:20]}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffix, for libraries that write by name; renamed to `path` at the end.

    Missing parent folders are made. On any exception the temporary file is removed and `path` stays as it was.

    Raises:
        OptionError: the folder cannot be made or written, `path` is a folder, or the disk is full.
    """
    target = Path(path)
    temporary = temporary_path(target)
    try:
        if target.is_dir():
            raise OptionError("this is a folder; name a file to write", where=target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "permission denied")
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except OSError as error:
        ours = error.filename in (str(temporary), str(target), str(target.parent), temporary, target, target.parent, None)
        if ours or error.errno in _DISK:
            raise OptionError(
                f"cannot write this file ({error.strerror or error}); choose another place", where=target
            ) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """As `atomic_path`, for libraries that make a folder of many files, such as a Zarr; a folder under `path` is replaced.

    The temporary path does not exist yet. Where a folder is replaced, a process killed at that moment may leave neither.

    Raises:
        OptionError: the folder cannot be made or written, `path` is a file, or the disk is full.
    """
    target = Path(path)
    temporary = temporary_path(target)
    try:
        if target.exists() and not target.is_dir():
            raise OptionError("this is a file; name a folder to write", where=target)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for file in files_in(temporary):
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
        move(temporary, target)
    except OSError as error:
        named = str(error.filename or "")
        if not named or named.startswith((str(temporary), str(target))) or error.errno in _DISK:
            raise OptionError(
                f"cannot write this folder ({error.strerror or error}); choose another place", where=target
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder to `target` on the same disk, in the place of what is there; missing parents are made.

    Raises:
        OSError: it cannot be renamed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and target.is_dir():  # a folder with content is not replaced by renaming
        old = temporary_path(target)
        os.replace(target, old)
        os.replace(source, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(source, target)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> int:
    """Remove the temporary files, and folders of Zarr, that a killed process left below `folder`; returns how many.

    Only for a folder into which no other process writes at the time.
    """
    named = [path for path in Path(folder).rglob(".*") if _TEMPORARY.fullmatch(path.name)]
    found = [path for path in named if path.is_file() or (path.is_dir() and path.suffix == ".zarr")]
    for path in found:
        with suppress(OSError):
            remove(path)
    return len(found)


@contextmanager
def atomic_write(path: str | Path, mode: Literal["w", "wb"] = "wb") -> Iterator[IO[Any]]:
    """An open file whose content appears under `path` only when the block ends without an exception.

    Text is UTF-8 with line feeds. Missing parent folders are made.

    Raises:
        OptionError: as `atomic_path`, or another mode.
    """
    if mode not in ("w", "wb"):
        raise OptionError(f"atomic_write writes whole files: mode must be 'w' or 'wb', got {mode!r}", where=path)
    text: dict[str, Any] = {"encoding": "utf-8", "newline": "\n"} if mode == "w" else {}
    with atomic_path(path) as temporary, open(temporary, mode, **text) as stream:
        yield stream


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_write(path, "w") as stream:
        stream.write(text)


def write_bytes(path: str | Path, data: bytes | bytearray | memoryview) -> None:
    """Write `data`, whole or not at all."""
    with atomic_write(path, "wb") as stream:
        stream.write(data)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits.

    Raises:
        FormatError: the file cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FormatError(f"cannot read this file ({error.strerror or error})", where=path) from error


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, sorted by path."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def content_hash(path: Path) -> str:
    """SHA-256 of a file's content; of a folder that of the list of its files, each with its name and its own SHA-256.

    Raises:
        FormatError: it cannot be read.
    """
    if not path.is_dir():
        return sha256(path)
    digest = hashlib.sha256()
    for file in files_in(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def read_json(path: str | Path, limit_bytes: int = JSON_LIMIT_BYTES) -> Any:
    """The value of a JSON file, UTF-8 with or without a byte-order mark.

    Raises:
        FormatError: missing, larger than `limit_bytes`, not UTF-8, or not JSON (the message gives line and column).
    """
    source = Path(path)
    try:
        size = source.stat().st_size
        if size > limit_bytes:
            raise FormatError(
                f"{size:,} bytes, more than the limit of {limit_bytes:,}; split it, or raise the limit", where=source
            )
        data = source.read_bytes()
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            return msgspec.json.decode(data)
        # What the fast parser refuses (a byte-order mark, NaN, an error) the slow one reads, or names to line and column.
        return json.loads(data.decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise FormatError("this file does not exist; check the path", where=source) from error
    except OSError as error:
        raise FormatError(f"cannot read this file ({error.strerror or error})", where=source) from error
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 text (byte {error.start}); save it as UTF-8", where=source) from error
    except json.JSONDecodeError as error:
        raise FormatError(f"not JSON: {error.msg}", where=f"{source}:{error.lineno}:{error.colno}") from error
    except RecursionError as error:
        raise FormatError("not usable JSON: nested too deeply", where=source) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> None:
    """Write a value as JSON, whole or not at all; numpy scalars and arrays become numbers and lists, paths become strings, and
    what is no Unicode in a string is escaped.

    Raises:
        OptionError: as `atomic_path`.
        ValueError: a number is not finite (JSON has no name for it).
        TypeError: a value that has no JSON form.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False, default=_plain)
    write_bytes(path, f"{text}\n".encode(errors="backslashreplace"))
