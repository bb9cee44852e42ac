"""Context: seeing far without losing resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.nn.layers import conv_relu

__all__ = ["AtrousPyramid"]


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., "Rethinking Atrous Convolution", 2017, arXiv:1706.05587, section 3.3).

    A 1 x 1 convolution, a dilated 3 x 3 one per rate, and the mean of the map, each to `out` channels, are joined and projected:
    [B, C, H, W] -> [B, out, H, W].

    Args:
        channels: C.
        rates: dilations.
        out: channels of each branch and of the answer.
        dropout: after the projection.
    """

    def __init__(self, channels: int, rates: Sequence[int], out: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        branches = [
            conv_relu(channels, out, 1, norm=True),
            *(conv_relu(channels, out, 3, dilation=rate, norm=True) for rate in rates),
        ]
        self.branches = nn.ModuleList(branches)
        self.pooled = conv_relu(channels, out, 1, norm=True)
        self.project = conv_relu((len(branches) + 1) * out, out, 1, norm=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        mean = self._pool(x).expand(-1, -1, *x.shape[-2:])
        found: Tensor = self.dropout(self.project(torch.cat([*(branch(x) for branch in self.branches), mean], dim=1)))
        return found

    def _pool(self, x: Tensor) -> Tensor:
        """[B, out, 1, 1]; batch norm of a single value per channel has no variance, so for one image the running one is used."""
        mean = x.mean(dim=(2, 3), keepdim=True)
        if not self.training or x.shape[0] > 1:
            found: Tensor = self.pooled(mean)
            return found
        conv, norm, _ = self.pooled
        assert isinstance(norm, nn.BatchNorm2d)
        fixed = F.batch_norm(conv(mean), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return F.relu(fixed)
