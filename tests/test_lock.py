"""One run at a time writes into a results folder, unless each has a shard of its own; a killed one holds nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pelagia.core.image import write
from pelagia.core.lock import locked
from pelagia.errors import OptionError
from pelagia.infer.folder import FolderRun, Shard
from pelagia.infer.runtimes import OnnxRuntime
from tiny_onnx import write_tiny

SOURCE = Path(__file__).parents[1] / "src"

#: Takes a lock, says so, and waits for the end of its input.
HOLDER = """
import sys
from pathlib import Path
from pelagia.core.lock import locked
with locked(Path({path!r}), remedy="wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


def silent(steps: int, note: str = "") -> None:
    """Nobody watches."""


def holder(path: Path) -> subprocess.Popen[str]:
    code = HOLDER.format(path=str(path))
    env = {"PYTHONPATH": str(SOURCE), "PATH": ""}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_of_another_process_is_named_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    process = holder(path)
    try:
        told = rf"new: another run writes into this folder \(process {process.pid} on .+\); wait$"
        with pytest.raises(OptionError, match=told), locked(path, remedy="wait"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert path.exists()  # left behind, and held by nobody
    with locked(path, remedy="wait"):
        assert str(os.getpid()) in path.read_text()
    assert not path.exists()


def test_shared_locks_stand_side_by_side_and_the_last_removes_the_file(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path, shared=True, remedy="wait"):
        with locked(path, shared=True, remedy="wait"):
            assert path.exists()
            with pytest.raises(OptionError, match="another run"), locked(path, remedy="wait"):
                pass
        assert path.exists()
        with pytest.raises(OptionError, match="another run"), locked(path, remedy="wait"):
            pass
    assert not path.exists()
    with locked(path, remedy="wait"), pytest.raises(OptionError, match="another run"), locked(path, shared=True, remedy="wait"):
        pass


def test_a_file_that_its_holder_removed_meanwhile_is_not_what_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / ".lock", fcntl.flock
    calls: list[int] = []

    def flock(stream: int, kind: int) -> None:
        calls.append(kind)
        if len(calls) == 1:
            path.unlink()  # as the last holder does between the opening and the locking
        real(stream, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(path, remedy="wait"):
        assert path.exists()
        with pytest.raises(OptionError, match="another run"), locked(path, remedy="wait"):
            pass
    assert calls[0] == calls[1]


def test_where_there_are_no_locks_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stream: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with locked(tmp_path / ".lock", remedy="wait"), locked(tmp_path / ".lock", remedy="wait"):
            pass
    monkeypatch.setattr(sys, "platform", "win32")
    with locked(tmp_path / "none", remedy="wait"), locked(tmp_path / "none", remedy="wait"):
        assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OptionError, match="file: cannot write into this folder"), locked(tmp_path / "file" / ".lock", remedy=""):
        pass


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (None, None, "another run writes into this folder"),
        (None, "1/2", "another run writes into this folder"),
        ("1/2", None, "divide the images with shards"),
        ("1/2", "1/2", "predicts this very shard"),
        ("1/2", "2/2", None),
    ],
)
def test_runs_into_one_folder(tmp_path: Path, first: str | None, second: str | None, told: str | None) -> None:
    """While the first run predicts, another one begins."""
    write_tiny(tmp_path / "m.onnx")
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path in paths:
        write(path, np.zeros((64, 64, 3), np.uint8))
    runtime = OnnxRuntime(tmp_path / "m.onnx", threads=1)

    def start(shard: str | None) -> FolderRun:
        chosen = None if shard is None else Shard.parse(shard)
        return FolderRun(runtime, paths, tmp_path / "out", model=tmp_path / "m.onnx", draw=False, shard=chosen)

    seen: list[Any] = []

    def meanwhile(steps: int, note: str = "") -> None:
        if not seen:
            seen.append(None)
            leftover = tmp_path / "out" / "results" / ".0.png.0123456789ab.json"  # of the run that goes on
            leftover.write_text("")
            try:
                start(second).go(silent)
            except OptionError as error:
                seen[0] = str(error)
            assert leftover.exists()
            leftover.unlink()

    outer = start(first)
    outer.go(meanwhile)
    if told is None:
        assert seen == [None]
    else:
        assert told in seen[0]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".lock")] == []
    start(None).go(silent)
    assert (tmp_path / "out" / "results.json").exists()
