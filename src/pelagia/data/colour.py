"""Changes of intensity: hue, saturation and brightness, blur, noise. None of them moves a pixel.

Images are [H, W, C] with C = 1 or 3 (RGB), uint8 or uint16, and keep shape and type.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.lazy import resolve

__all__ = ["Image", "add_noise", "blur", "shift_hsv"]

#: [H, W, C], uint8 or uint16.
Image: TypeAlias = NDArray[Any]


def shift_hsv(image: Image, rng: np.random.Generator, hue: float, saturation: float, value: float) -> Image:
    """Random hue, saturation and brightness.

    With u, s, g drawn uniformly: hue + u turns, u in [-hue, hue]; saturation times s, s in [1 - saturation, 1 + saturation];
    value v (in 0 to 1) becomes v ** g, log g in [-log(1 + value), log(1 + value)]. A power, not a factor: a factor above one
    would burn out the bright background on which translucent plankton is seen. A grey image only changes its value.
    """
    turn = float(rng.uniform(-hue, hue))
    gain = float(rng.uniform(1 - saturation, 1 + saturation))
    power = float(np.exp(rng.uniform(-1, 1) * np.log1p(value)))
    if image.dtype != np.uint8:
        return _shift_hsv_deep(image, turn, gain, power)
    curve = np.round(255 * (np.arange(256) / 255) ** power)
    if image.shape[2] == 1:
        return np.asarray(cv2.LUT(image, curve.astype(np.uint8))).reshape(image.shape)
    # Of 256 values of a channel, and not of the 180 hues that OpenCV has for bytes.
    values = curve.astype(np.float32)
    ratios = (gain * curve / np.maximum(np.arange(256), 1)).astype(np.float32)
    kernels = resolve("pelagia.data.kernels", purpose="make training samples")
    shifted: Image = kernels.turn_colours(np.ascontiguousarray(image).reshape(-1), values, ratios, np.float32(6 * turn % 6))
    return shifted.reshape(image.shape)


def _shift_hsv_deep(image: Image, turn: float, gain: float, power: float) -> Image:
    top = float(np.iinfo(image.dtype).max)
    scaled = image.astype(np.float32) / top
    if image.shape[2] == 1:
        scaled = scaled**power
    else:
        planes = cv2.cvtColor(scaled, cv2.COLOR_RGB2HSV)
        planes[..., 0] = (planes[..., 0] + turn * 360) % 360
        planes[..., 1] = np.clip(planes[..., 1] * gain, 0, 1)
        planes[..., 2] **= power
        scaled = cv2.cvtColor(planes, cv2.COLOR_HSV2RGB)
    return np.clip(np.round(scaled * top), 0, top).astype(image.dtype)


def blur(image: Image, rng: np.random.Generator, sigma_px: tuple[float, float] = (0.3, 1.0)) -> Image:
    """Gaussian blur, sigma drawn uniformly from `sigma_px`."""
    sigma = float(rng.uniform(*sigma_px))
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma)).reshape(image.shape)


def add_noise(image: Image, rng: np.random.Generator, most: float = 0.03) -> Image:
    """Gaussian noise, the same in all channels; its sigma is drawn uniformly from 0 to `most` of the full range."""
    top = float(np.iinfo(image.dtype).max)
    sigma = float(rng.uniform(0, most)) * top
    plane = rng.standard_normal(image.shape[0] * image.shape[1], dtype=np.float32) * np.float32(sigma)
    kernels = resolve("pelagia.data.kernels", purpose="make training samples")
    noisy: Image = kernels.add_plane(np.ascontiguousarray(image).reshape(-1), plane, np.float32(top))
    return noisy.reshape(image.shape)
