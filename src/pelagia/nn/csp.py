"""Cross-stage-partial blocks (Wang et al., "CSPNet", CVPRW 2020, arXiv:1911.11929) and spatial pyramid pooling.

A part of the channels goes through a stack of bottlenecks, the rest passes by, and a pointwise convolution joins them. The YOLO
family names the variants C3k and C3k2; SPPF is the sequential form of spatial pyramid pooling (He et al., ECCV 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.nn.layers import ConvNormAct

__all__ = ["SPPF", "Bottleneck", "C3k", "C3k2"]


class Bottleneck(nn.Module):
    """x + conv3x3(conv3x3(x)) with `hidden` channels between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.first = ConvNormAct(channels, hidden, 3)
        self.second = ConvNormAct(hidden, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x))
        return out


class C3k(nn.Module):
    """Two pointwise convolutions halve the channels; one half passes `depth` bottlenecks; a third convolution joins both."""

    def __init__(self, channels: int, depth: int = 2) -> None:
        super().__init__()
        hidden = channels // 2
        self.enter = ConvNormAct(channels, hidden)
        self.bypass = ConvNormAct(channels, hidden)
        self.join = ConvNormAct(2 * hidden, channels)
        self.blocks = nn.Sequential(*(Bottleneck(hidden, hidden) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.join(torch.cat((self.blocks(self.enter(x)), self.bypass(x)), dim=1))
        return out


class C3k2(nn.Module):
    """`enter` makes 2 h channels; the second half passes `depth` blocks one after the other; all intermediate results are joined.

    h = `out` * `expansion`. The blocks are `C3k` when `nested`, plain bottlenecks of h / 2 hidden channels otherwise.
    """

    def __init__(self, channels: int, out: int, depth: int, *, nested: bool, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(out * expansion)
        self.enter = ConvNormAct(channels, 2 * hidden)
        self.join = ConvNormAct((2 + depth) * hidden, out)
        self.blocks = nn.ModuleList(C3k(hidden) if nested else Bottleneck(hidden, hidden // 2) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        parts = list(entered.chunk(2, dim=1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        if not torch.is_grad_enabled():
            # The halves still lie side by side, and one whole is copied faster than two halves. Backwards it would cost a sum.
            # Exported graphs are made with gradients and keep the halves: OpenVINO splits slowly what is used as a whole too.
            parts[:2] = [entered]
        out: Tensor = self.join(torch.cat(parts, dim=1))
        return out


class SPPF(nn.Module):
    """Max pooling over 5, 9 and 13 cells as three 5 x 5 poolings in a row, joined with the input (half the channels)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        hidden = out // 2
        self.enter = ConvNormAct(channels, hidden)
        self.join = ConvNormAct(4 * hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, stride=1, padding=2))
        out: Tensor = self.join(torch.cat(parts, dim=1))
        return out
