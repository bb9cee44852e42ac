"""Colours of pictures for people: of classes, of the objects of a class, and of an image's own intensities."""

from __future__ import annotations

import colorsys
import math
from functools import lru_cache
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.image import to_rgb

__all__ = ["NEUTRAL", "ONE_CLASS", "Colour", "Picture", "colour", "display", "ink_on", "luminance", "mix", "shade"]

Colour: TypeAlias = tuple[int, int, int]
Picture: TypeAlias = NDArray[np.uint8]

#: The palette of Okabe and Ito (2008), made to be told apart with red-, green- and blue-blindness; black is left out (it is no
#: outline on a dark image) and the order puts the strongest contrasts first.
_BASE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (204, 121, 167),
)

#: Rows of an image that are stretched at once.
_BAND = 128

#: Of what has no class.
NEUTRAL: Colour = (170, 170, 170)

#: Strength of `shade` where a picture shows one class alone.
ONE_CLASS = 2.5

#: Turns of hue in degrees and changes of lightness, in CIELAB, by which objects of one class differ; the first is the class
#: itself. So small that every shade of the first seven classes stays nearer to its own class than to any other (a test).
_SHADES = ((0.0, 0.0), (0.0, 8.4), (0.0, -8.4), (10.8, 3.6), (-10.8, -3.6), (-10.8, 8.4), (10.8, -8.4))


def colour(label: int) -> Colour:
    """The colour of a class, RGB in 0 to 255.

    Labels 0 to 6 have the Okabe-Ito colours, 7 to 13 darker and 14 to 20 paler ones; from 21 on hues advance by the golden angle.
    Any two of the first seven differ by more than 10 in CIEDE2000 for people of normal sight and for the red-, green- and
    blue-blind (about 1 can just be noticed, side by side), any two of the first 21 by more than 3, and of the first 42 each from
    the next by more than 6. Beyond the first 21 no two colours are equal, but many look alike: there the names tell, on labels
    and in the legend.
    """
    tone, base = divmod(label, len(_BASE))
    if tone == 0:
        return _BASE[base]
    if tone == 1:
        return mix(_BASE[base], (0, 0, 0), 0.45)
    if tone == 2:
        return mix(_BASE[base], (255, 255, 255), 0.55)
    step = label - 3 * len(_BASE)
    red, green, blue = colorsys.hls_to_rgb(0.618034 * step % 1, (0.45, 0.62, 0.34, 0.75)[step % 4], 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


@lru_cache(maxsize=4096)
def shade(own: Colour, step: int, strength: float = 1.0) -> Colour:
    """The `step`-th variation of a class's colour, for objects of one class that touch: a little lighter or darker, and of a hue
    a little aside, `strength` times as much as classes side by side allow. Step 0 is the colour itself; after seven they
    repeat."""
    turn, change = (strength * value for value in _SHADES[step % len(_SHADES)])
    if not turn and not change:
        return own
    light, a, b = cv2.cvtColor(np.array([[own]], dtype=np.float32) / 255, cv2.COLOR_RGB2Lab)[0, 0].tolist()
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    lab = np.array([[[min(max(light + change, 8.0), 96.0), a * cos - b * sin, a * sin + b * cos]]], dtype=np.float32)
    red, green, blue = np.rint(np.clip(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB)[0, 0], 0, 1) * 255).astype(int).tolist()
    return red, green, blue


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """(1 - share) of the first colour and `share` of the second."""
    red, green, blue = (round(a * (1 - share) + b * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def luminance(own: Colour) -> float:
    """Relative luminance, 0 for black to 1 for white (WCAG 2.1)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in own)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(own: Colour) -> Colour:
    """Black or white, whichever stands out more; 0.18 is the luminance where both contrasts of WCAG 2.1 meet."""
    return (0, 0, 0) if luminance(own) > 0.18 else (255, 255, 255)


def display(image: NDArray[Any], *, overwrite: bool = False) -> Picture:
    """Any image as a fresh uint8 RGB picture [H, W, 3], for looking only: 16 bit is stretched from percentile 0.1 to 99.9.

    With `overwrite` the picture is `image` itself where that is one already: for who has no more need of it.
    """
    if image.dtype == np.uint8:
        rgb = to_rgb(image)
        own = rgb is not image or (overwrite and image.flags.writeable)
        return np.ascontiguousarray(rgb) if own else np.array(rgb, order="C")
    step = max(1, math.isqrt(image.shape[0] * image.shape[1] // 1_000_000))
    low, high = np.percentile(image[::step, ::step], [0.1, 99.9])
    scale = 255.0 / max(high - low, 1.0)
    table = np.clip((np.arange(np.iinfo(image.dtype).max + 1) - low) * scale + 0.5, 0, 255).astype(np.uint8)
    picture = np.empty((*image.shape[:2], 3), dtype=np.uint8)
    for top in range(0, len(image), _BAND):  # numpy makes 8 bytes of each number that it looks up
        picture[top : top + _BAND] = to_rgb(table[image[top : top + _BAND]])
    return picture
