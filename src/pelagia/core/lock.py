"""A folder into which one process writes at a time.

The lock is one of the kernel (`flock`) on a small file in the folder. It ends with the process that holds it, however that ends:
what a killed run leaves is an unlocked file, which the next run takes over. The file says who holds it, for the message only, and
is removed when the lock is given back.

Between machines the lock holds where the file system carries it: NFS of version 4, and of 3 with its lock service; Lustre if
mounted with `flock`. Where a file system refuses locks, and on Windows, nothing is locked and nothing fails: there two runs must
not be given one folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pelagia.errors import OptionError

if sys.platform != "win32":
    import fcntl

__all__ = ["locked"]


@contextmanager
def locked(path: Path, *, shared: bool = False, remedy: str) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block, alone, or `shared` with others that ask for it so.

    Args:
        remedy: what the user can do where another process holds it; ends the message.

    Raises:
        OptionError: another process holds it, or the file cannot be made.
    """
    if sys.platform == "win32":
        yield
        return
    stream = _taken(path, shared=shared, remedy=remedy)
    try:
        yield
    finally:
        # Others may share it; the last one removes the file.
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(stream, path):
                path.unlink()
        os.close(stream)


def _taken(path: Path, *, shared: bool, remedy: str) -> int:
    """The descriptor of the locked file."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OptionError(f"cannot write into this folder ({error.strerror or error})", where=path.parent) from error
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(stream, 200, 0).decode("utf-8", "replace").strip()
            os.close(stream)
            who = f" ({holder})" if holder else ""
            raise OptionError(f"another run writes into this folder{who}; {remedy}", where=path.parent) from error
        except OSError:
            pass  # a file system without locks
        # Its last holder may have removed the file since it was opened.
        if _is_at(stream, path):
            break
        os.close(stream)
    with suppress(OSError):
        os.ftruncate(stream, 0)
        os.pwrite(stream, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    return stream


def _is_at(stream: int, path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(stream), path.stat())
    except OSError:
        return False
