"""Images to predict, the command run on them in this process, and full disks, for tests of results folders."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pelagia.cli import main as cli_main
from pelagia.core.image import write


def silent(steps: int, note: str = "") -> None:
    """Nobody watches."""


@contextmanager
def no_space(count: int) -> Iterator[None]:
    """The disk says that it is full when the `count`-th file is to be made safe."""
    left = [count]
    real = os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield
    assert left[0] <= 0


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes, which a writer sees as it sees a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def cells(rng: np.random.Generator, height: int, width: int, count: int) -> NDArray[np.uint8]:
    image = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
    for _ in range(count):
        y, x = int(rng.integers(0, height // 8)), int(rng.integers(0, width // 8))
        image[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8, rng.integers(0, 2)] = 255
    return image


def fill(folder: Path) -> None:
    """Ten small images and three scans that are predicted in tiles, one file of each kind broken."""
    rng = np.random.default_rng(0)
    for index in range(10):
        write(folder / "ab"[index % 2] / f"{index}.png", cells(rng, 64, 56 + 8 * (index % 3), 4))
    (folder / "b" / "3.png").write_text("no image")
    for index in range(3):
        write(folder / f"scan{index}.tif", cells(rng, 200, 240, 30))
    (folder / "scan1.tif").write_bytes((folder / "scan1.tif").read_bytes()[:4000])


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli_main.main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def content(folder: Path) -> dict[str, bytes]:
    """Every file that a user looks at; what results are made from holds times."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("results/")}


def finished(folder: Path) -> int:
    """How many images have a result file."""
    return len(list((folder / "results").rglob("[!.]*.json")))
