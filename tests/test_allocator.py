"""Freed memory is taken again without asking the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import ctypes, resource, sys
from pelagia.core.allocator import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit(3)
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        block = ctypes.c_void_p(library.malloc(ctypes.c_size_t(50_000_000)))
        ctypes.memset(block, 1, 50_000_000)
        library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def page_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("another C library than glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is a library of Linux")
def test_a_block_freed_and_asked_for_again_causes_no_page_faults() -> None:
    kept, given_back = page_faults("keep"), page_faults("leave")
    assert kept < 100
    assert given_back > 10 * kept


HELD = """
import ctypes
from pelagia.core.allocator import keep_freed_memory, release_freed_memory

if not keep_freed_memory():
    raise SystemExit(3)

def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * 4096

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
block = ctypes.c_void_p(library.malloc(ctypes.c_size_t(50_000_000)))
ctypes.memset(block, 1, 50_000_000)
library.free(block)
before = resident()
assert release_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is a library of Linux")
def test_what_is_free_is_given_back_when_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("another C library than glibc")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40_000_000
