"""Intensities as they are stored and as a network takes them, computed where the network is: the bytes travel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pelagia.core.card import Normalisation

__all__ = ["stack_pixels", "to_network"]


def stack_pixels(images: Sequence[NDArray[Any]], *, pin: bool = False) -> Tensor:
    """Images [H, W, 1 or 3] of one size, uint8 or uint16 -> stored intensities [B, 3, H, W], channels last in memory.

    Grey is repeated. uint16 becomes int32, since torch knows uint16 but computes nothing with it. With `pin` the memory is
    page-locked: from there a GPU copies without the processor.

    Raises:
        ValueError: the images differ in size.
    """
    kind = torch.uint8 if all(image.dtype == np.uint8 for image in images) else torch.int32
    stacked = torch.empty((len(images), *images[0].shape[:2], 3), dtype=kind, pin_memory=pin)
    for place, image in zip(stacked.numpy(), images, strict=True):
        if image.shape[:2] != place.shape[:2]:
            raise ValueError(f"images of one size are expected, got {image.shape[:2]} beside {place.shape[:2]}")
        np.copyto(place, image)
    return stacked.permute(0, 3, 1, 2)


def to_network(images: Tensor, normalisation: Normalisation, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Stored intensities -> network input, by the formula of `core.image.normalise`; the bytes travel, the device computes."""
    values = images.to(device, non_blocking=True).to(dtype)
    low, high = normalisation.low, normalisation.high
    if low:
        values.sub_(low)
    values.div_(high - low)
    if low > 0 or high < 255 or images.dtype != torch.uint8:
        values.clamp_(0, 1)
    if normalisation.mean != (0.0, 0.0, 0.0) or normalisation.std != (1.0, 1.0, 1.0):
        values.sub_(values.new_tensor(normalisation.mean).view(3, 1, 1)).div_(values.new_tensor(normalisation.std).view(3, 1, 1))
    return values
