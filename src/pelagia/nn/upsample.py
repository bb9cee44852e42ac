"""Enlarging maps: the steps of an expanding path, and answers finer than their features."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.nn.layers import conv_relu

__all__ = ["FullResolutionHead", "JoinFiner"]


#: Channels at full resolution, where each costs as much time as sixteen at stride 4.
_FINE: Final = 16


class JoinFiner(nn.Module):
    """One step of an expanding path: the coarse map [B, deep, h, w], enlarged (nearest) to the finer map [B, finer, H, W], beside
    it, then two 3 x 3 convolutions with batch norm and ReLU -> [B, out, H, W]."""

    def __init__(self, deep: int, finer: int, out: int) -> None:
        super().__init__()
        self.first = conv_relu(deep + finer, out, norm=True)
        self.second = conv_relu(out, out, norm=True)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        x = F.interpolate(x, size=finer.shape[-2:], mode="nearest")
        found: Tensor = self.second(self.first(torch.cat((x, finer), dim=1)))
        return found


class FullResolutionHead(nn.Module):
    """Logits at every pixel, from features `factor` times as coarse and the image itself: [B, C, h, w] and [B, 3, factor h,
    factor w] -> [B, out, factor h, factor w].

    A 3 x 3 convolution answers for factor^2 places of every cell, which are laid out side by side (Shi et al., "Real-time single
    image and video super-resolution using an efficient sub-pixel convolutional neural network", CVPR 2016, arXiv:1609.05158).
    Beside them stands what a 3 x 3 convolution sees in the image; two more convolutions join both. Each has 16 channels.
    """

    def __init__(self, channels: int, out: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.coarse = conv_relu(channels, _FINE * factor**2, norm=True)
        self.image = conv_relu(3, _FINE, norm=True)
        self.join = conv_relu(2 * _FINE, _FINE, norm=True)
        self.classes = nn.Conv2d(_FINE, out, 3, padding=1)

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.coarse(x), self.factor)
        found: Tensor = self.classes(self.join(torch.cat((x, self.image(images)), dim=1)))
        return found
