"""Self-attention over the cells of a feature map (Vaswani et al., 2017, arXiv:1706.03762), as the YOLO family uses it on P5.

The partial form (PSA: Wang et al., "YOLOv10", NeurIPS 2024, arXiv:2405.14458, section 3.2) attends on half the channels only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pelagia.nn.layers import ConvNormAct

__all__ = ["C2PSA", "Attention", "PSABlock"]


class Attention(nn.Module):
    """softmax(q^T k / sqrt(d)) over all cells, per head, plus a depthwise 3 x 3 convolution of v as position code.

    Heads have 64 channels of v and 32 of q and k; queries, keys and values come from one pointwise convolution and lie head by
    head (q, k, v within a head). [B, C, H, W] -> the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // 64, 1)
        self.width = channels // self.heads
        self.key_width = self.width // 2
        self.qkv = ConvNormAct(channels, channels + 2 * self.key_width * self.heads, activate=False)
        self.position = ConvNormAct(channels, channels, 3, groups=channels, activate=False)
        self.project = ConvNormAct(channels, channels, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        qkv = self.qkv(x).permute(0, 2, 3, 1).reshape(batch, height * width, self.heads, 2 * self.key_width + self.width)
        q, k, v = qkv.transpose(1, 2).split([self.key_width, self.key_width, self.width], dim=3)  # each [B, h, N, .]
        # Written out: for values wider than the keys PyTorch's own takes the same steps, and on a CPU looks for masked rows too.
        chances = (q * self.key_width**-0.5 @ k.transpose(2, 3)).softmax(dim=3)  # [B, h, N, N]
        mixed, values = (_as_map(tokens, height, width) for tokens in (chances @ v, v))
        out: Tensor = self.project(mixed + self.position(values))
        return out


def _as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, h, N, d] -> [B, h d, H, W], whose channels come last in memory."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], height, width, -1).permute(0, 3, 1, 2)


class PSABlock(nn.Module):
    """Attention, then two pointwise convolutions with twice the channels between; both with a residual path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = Attention(channels)
        self.feed = nn.Sequential(ConvNormAct(channels, 2 * channels), ConvNormAct(2 * channels, channels, activate=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        out: Tensor = x + self.feed(x)
        return out


class C2PSA(nn.Module):
    """Half of the channels pass `depth` attention blocks, the other half passes by, and a pointwise convolution joins them."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.enter = ConvNormAct(channels, 2 * hidden)
        self.join = ConvNormAct(2 * hidden, channels)
        self.blocks = nn.Sequential(*(PSABlock(hidden) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        bypass, attended = self.enter(x).chunk(2, dim=1)
        out: Tensor = self.join(torch.cat((bypass, self.blocks(attended)), dim=1))
        return out
