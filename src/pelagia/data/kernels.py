"""Loops over the pixels of training samples, compiled by numba on first use; this module is imported late (`core.lazy`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.kernels import compiled

__all__ = ["add_plane", "turn_colours"]

#: Pixels at a time: their planes stay in the first cache.
_BLOCK = 1024


@compiled
def turn_colours(
    pixels: NDArray[np.uint8], values: NDArray[np.float32], ratios: NDArray[np.float32], turn: np.float32
) -> NDArray[np.uint8]:
    """RGB [3 N], pixel after pixel, with another hue, saturation and value.

    With V the largest and m the smallest channel of a pixel, the new value is values[V], the new chroma
    min((V - m) ratios[V], values[V]), and the hue moves on by `turn` in sixths of the circle, 0 <= turn <= 6. A channel is value
    minus chroma times a share in 0 .. 1: with d the distance of the hue from cyan, green and blue (3, 2 and 4 sixths) that of red
    is 2 - d, those of green and blue are d - 1, clamped (Smith, "Color gamut transform pairs", SIGGRAPH 1978).
    """
    zero, half, one, two = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
    three, four, six = np.float32(3), np.float32(4), np.float32(6)
    found = np.empty_like(pixels)
    red, green, blue = np.empty(_BLOCK, np.uint8), np.empty(_BLOCK, np.uint8), np.empty(_BLOCK, np.uint8)
    tops, value_of, ratio_of = np.empty(_BLOCK, np.uint8), np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for begin in range(0, len(pixels), 3 * _BLOCK):
        part, out = pixels[begin : begin + 3 * _BLOCK], found[begin : begin + 3 * _BLOCK]
        count = len(part) // 3
        # Separate short loops, of which all but the one with the tables use the processor's vectors.
        for i in range(count):
            red[i], green[i], blue[i] = part[3 * i], part[3 * i + 1], part[3 * i + 2]
        for i in range(count):
            top = green[i] if green[i] > red[i] else red[i]
            tops[i] = blue[i] if blue[i] > top else top
        for i in range(count):
            value_of[i], ratio_of[i] = values[tops[i]], ratios[tops[i]]
        for i in range(count):
            r, g, b = np.float32(red[i]), np.float32(green[i]), np.float32(blue[i])
            top = np.float32(tops[i])
            low = g if g < r else r
            low = b if b < low else low
            spread = top - low
            inverse = one / (spread if spread > zero else one)
            hue = four + (r - g) * inverse
            hue = two + (b - r) * inverse if top == g else hue
            hue = (g - b) * inverse if top == r else hue
            hue += turn
            hue = hue - six if hue >= six else hue
            hue = hue + six if hue < zero else hue
            value, chroma = value_of[i], spread * ratio_of[i]
            chroma = value if chroma > value else chroma
            share = two - abs(hue - three)
            share = zero if share < zero else (one if share > one else share)
            red[i] = np.uint8(value - chroma * share + half)
            share = abs(hue - two) - one
            share = zero if share < zero else (one if share > one else share)
            green[i] = np.uint8(value - chroma * share + half)
            share = abs(hue - four) - one
            share = zero if share < zero else (one if share > one else share)
            blue[i] = np.uint8(value - chroma * share + half)
        for i in range(count):
            out[3 * i], out[3 * i + 1], out[3 * i + 2] = red[i], green[i], blue[i]
    return found


@compiled
def add_plane(pixels: NDArray[Any], plane: NDArray[np.float32], top: np.float32) -> NDArray[Any]:
    """[C N], pixel after pixel, integers plus plane [N], rounded to the nearest and cut to 0 .. top."""
    found = np.empty_like(pixels)
    channels, zero = len(pixels) // len(plane), np.float32(0)
    for c in range(channels):
        part, out = pixels[c:], found[c:]
        for n in range(len(plane)):
            value = np.rint(np.float32(part[n * channels]) + plane[n])
            value = zero if value < zero else value
            out[n * channels] = top if value > top else value
    return found
