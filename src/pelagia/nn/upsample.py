"""Enlarging maps: the steps of an expanding path, and answers finer than their features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.nn.layers import conv_relu

__all__ = ["JoinFiner", "SubPixelHead"]


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


class SubPixelHead(nn.Module):
    """Logits `factor` times as fine as their features: [B, C, h, w] -> [B, out, factor h, factor w].

    A 3 x 3 convolution answers for factor^2 places of every cell, which are laid out side by side (Shi et al., "Real-time single
    image and video super-resolution using an efficient sub-pixel convolutional neural network", CVPR 2016, arXiv:1609.05158).
    All places begin with the same weights, so that the first answers have no checkerboard (Aitken et al. 2017,
    arXiv:1707.02937).
    """

    def __init__(self, channels: int, out: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.classes = nn.Conv2d(channels, out * factor**2, 3, padding=1)
        with torch.no_grad():
            for value in (self.classes.weight, self.classes.bias):
                assert value is not None
                value.copy_(value[:: factor**2].repeat_interleave(factor**2, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.classes(x)
        return F.pixel_shuffle(x, self.factor) if self.factor > 1 else x
