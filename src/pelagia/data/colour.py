"""Changes of intensity: hue, saturation and brightness, blur, noise. None of them moves a pixel.

Images are [H, W, C] with C = 1 or 3 (RGB), uint8 or uint16, and keep shape and type.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.lazy import resolve

__all__ = ["Image", "Levels", "add_noise", "blur", "shift_hsv"]

#: [H, W, C], uint8 or uint16.
Image: TypeAlias = NDArray[Any]
#: The darkest and the brightest intensity that the network tells apart (`Normalisation.low` and `high`).
Levels: TypeAlias = tuple[float, float]


def shift_hsv(
    image: Image, rng: np.random.Generator, hue: float, saturation: float, value: float, levels: Levels | None = None
) -> Image:
    """Random hue, saturation and brightness.

    With u, s, g drawn uniformly: hue + u turns, u in [-hue, hue]; saturation times s, s in [1 - saturation, 1 + saturation];
    value v (in 0 to 1) becomes v ** g, log g in [-log(1 + value), log(1 + value)]. A power, not a factor: a factor above one
    would burn out the bright background on which translucent plankton is seen. A grey image only changes its value.

    0 and 1 are `levels` in images of more than 8 bits, by default and in images of 8 bits the least and the largest number of
    the type: a sensor of 12 bits fills a sixteenth of 16, where a power would be a factor. What lies below counts as 0, as it
    does for the network; what lies above stays above.
    """
    turn = float(rng.uniform(-hue, hue))
    gain = float(rng.uniform(1 - saturation, 1 + saturation))
    power = float(np.exp(rng.uniform(-1, 1) * np.log1p(value)))
    if image.dtype != np.uint8:
        return _shift_hsv_deep(image, turn, gain, power, _levels(image, levels))
    curve = np.round(255 * (np.arange(256) / 255) ** power)
    if image.shape[2] == 1:
        return np.asarray(cv2.LUT(image, curve.astype(np.uint8))).reshape(image.shape)
    # Of 256 values of a channel, and not of the 180 hues that OpenCV has for bytes.
    values = curve.astype(np.float32)
    ratios = (gain * curve / np.maximum(np.arange(256), 1)).astype(np.float32)
    kernels = resolve("pelagia.data.kernels", purpose="make training samples")
    shifted: Image = kernels.turn_colours(np.ascontiguousarray(image).reshape(-1), values, ratios, np.float32(6 * turn % 6))
    return shifted.reshape(image.shape)


def _shift_hsv_deep(image: Image, turn: float, gain: float, power: float, levels: Levels) -> Image:
    low, high = levels
    scaled = np.maximum(image.astype(np.float32) - low, 0) / (high - low)
    if image.shape[2] == 1:
        scaled = scaled**power
    else:
        planes = cv2.cvtColor(scaled, cv2.COLOR_RGB2HSV)
        planes[..., 0] = (planes[..., 0] + turn * 360) % 360
        planes[..., 1] = np.clip(planes[..., 1] * gain, 0, 1)
        planes[..., 2] **= power
        scaled = cv2.cvtColor(planes, cv2.COLOR_HSV2RGB)
    top = float(np.iinfo(image.dtype).max)
    shifted: Image = np.clip(np.round(scaled * (high - low) + low), 0, top).astype(image.dtype)
    return shifted


def _levels(image: Image, levels: Levels | None) -> Levels:
    """`levels` for an image of more than 8 bits, if there are any; else those of its type."""
    if levels is None or image.dtype == np.uint8:
        return 0.0, float(np.iinfo(image.dtype).max)
    return levels


def blur(image: Image, rng: np.random.Generator, sigma_px: tuple[float, float] = (0.3, 1.0)) -> Image:
    """Gaussian blur, sigma drawn uniformly from `sigma_px`."""
    sigma = float(rng.uniform(*sigma_px))
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma)).reshape(image.shape)


def add_noise(image: Image, rng: np.random.Generator, most: float = 0.03, levels: Levels | None = None) -> Image:
    """Gaussian noise, the same in all channels; its sigma is drawn uniformly from 0 to `most` of the range, which is that of
    `levels` in images of more than 8 bits, else that of the type."""
    low, high = _levels(image, levels)
    sigma = float(rng.uniform(0, most)) * (high - low)
    plane = rng.standard_normal(image.shape[0] * image.shape[1], dtype=np.float32) * np.float32(sigma)
    kernels = resolve("pelagia.data.kernels", purpose="make training samples")
    top = np.float32(np.iinfo(image.dtype).max)
    noisy: Image = kernels.add_plane(np.ascontiguousarray(image).reshape(-1), plane, top)
    return noisy.reshape(image.shape)
