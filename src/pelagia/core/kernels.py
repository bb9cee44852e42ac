"""Loops that numpy cannot say, compiled by numba on first use, kept in its cache; this module is imported late (`core.lazy`).

Each is a definition in plain Python. `compiled` is the one way in which loops are compiled here and in other layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pelagia.core.types import Int

__all__ = ["compiled", "decode_runs"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Machine code without the interpreter's lock; not cached where no folder can be written."""
    try:
        return cast(_Function, njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:
        return cast(_Function, njit(nogil=True, error_model="numpy")(function))


@compiled
def decode_runs(text: NDArray[np.uint8], lengths: Int, pixels: Int, counts: NDArray[np.uint32], sizes: Int) -> tuple[int, int]:
    """COCO's compressed run lengths, N texts one after another, into `counts` (as long as `text`) and `sizes` [N], runs of each.

    Groups of 5 bits, least first, 48 added, 32 if more follow, the last group's bit 16 the sign; from the fourth on a run is
    written as its difference to the one two before. Returns how many runs there are, or (-1 - the fault, position of the mask): 0
    a character that is none, 1 cut short, 2 a number too long, 3 a run below 0 or above the image, 4 the sum is not the image,
    5 empty.
    """
    place, count = 0, 0
    for n in range(len(lengths)):
        end, first, total = place + int(lengths[n]), count, 0
        if lengths[n] == 0:
            return -6, n
        while place < end:
            value, shift = 0, 0
            while True:
                if place == end:
                    return -2, n
                group = int(text[place]) - 48
                place += 1
                if group < 0 or group > 63:
                    return -1, n
                if shift > 30:
                    return -3, n
                value |= (group & 31) << shift
                shift += 5
                if not group & 32:
                    if group & 16:
                        value -= 1 << shift
                    break
            if count - first > 2:
                value += int(counts[count - 2])
            if value < 0 or value > pixels[n]:
                return -4, n
            counts[count] = value
            count += 1
            total += value
        if total != pixels[n]:
            return -5, n
        sizes[n] = count - first
    return count, 0
