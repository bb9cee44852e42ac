"""Necks: mixing the levels of a feature pyramid."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.nn.layers import ConvNormAct

__all__ = ["PathAggregation"]


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
