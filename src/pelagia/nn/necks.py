"""Necks: mixing the levels of a feature pyramid."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.nn.layers import ConvNormAct, conv_relu

__all__ = ["FeaturePyramid", "PathAggregation"]


class PathAggregation(nn.Module):
    """Top-down, then bottom-up (Liu et al., "PANet", CVPR 2018, arXiv:1803.01534) over three levels.

    Levels are joined by concatenation; `block(channels, out, level)` builds the network after each join (`level` 3, 4 or 5).

    Args:
        channels: of P3, P4, P5 as they come in.
        out: of P3, P4, P5 as they go out.
        middle: of P4 after the top-down pass.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        out: tuple[int, int, int],
        middle: int,
        block: Callable[[int, int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.top4 = block(channels[2] + channels[1], middle, 4)
        self.top3 = block(middle + channels[0], out[0], 3)
        self.down3 = ConvNormAct(out[0], out[0], 3, 2)
        self.bottom4 = block(out[0] + middle, out[1], 4)
        self.down4 = ConvNormAct(out[1], out[1], 3, 2)
        self.bottom5 = block(out[1] + channels[2], out[2], 5)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m4 = self.top4(torch.cat((F.interpolate(p5, scale_factor=2.0, mode="nearest"), p4), dim=1))
        n3 = self.top3(torch.cat((F.interpolate(m4, scale_factor=2.0, mode="nearest"), p3), dim=1))
        n4 = self.bottom4(torch.cat((self.down3(n3), m4), dim=1))
        n5 = self.bottom5(torch.cat((self.down4(n4), p5), dim=1))
        return n3, n4, n5


class FeaturePyramid(nn.Module):
    """Feature pyramid network (Lin et al., CVPR 2017, arXiv:1612.03144): top-down with lateral connections.

    M_5 = lateral(C_5), M_l = lateral(C_l) + nearest(M_(l+1)), P_l = smooth(M_l); the last level P_(max+1) is every second cell of
    P_max and serves the proposals of the largest anchors only (footnote 1 of the paper).

    Args:
        channels: of the maps as they come in, finest first.
        out: channels of every level.
        norm: batch norm after every convolution.
    """

    def __init__(self, channels: tuple[int, ...], out: int, *, norm: bool = False) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(conv_relu(c, out, 1, norm=norm, activate=False) for c in channels)
        self.smooth = nn.ModuleList(conv_relu(out, out, 3, norm=norm, activate=False) for _ in channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        merged = [lateral(level) for lateral, level in zip(self.lateral, maps, strict=True)]
        for level in range(len(merged) - 2, -1, -1):
            merged[level] = merged[level] + F.interpolate(merged[level + 1], size=merged[level].shape[-2:], mode="nearest")
        levels = [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]
        return (*levels, F.max_pool2d(levels[-1], 1, 2))
