"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021, arXiv:2010.04159, section 4.1), in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.nn.transformer import FeedForward

__all__ = ["DeformableAttention", "DeformableLayer", "centres_of"]


def centres_of(shapes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """[S, 2] x, y in [0, 1] of the centres of all cells of maps of these heights and widths, map by map, row by row."""
    points = []
    for height, width in shapes:
        y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
        down, right = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((right, down), dim=2).flatten(0, 1))
    return torch.cat(points)


class DeformableAttention(nn.Module):
    """Every query looks at K places on each of L maps instead of at all cells (eq. 2).

    For a head with values v = W' x, offsets d and weights a (a softmax over the L K places): sum over l, k of
    a_lk v_l(p + d_lk), v_l interpolated linearly and 0 outside; offsets count in cells of their map.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.values = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Heads look in as many directions, place k at k + 1 cells (appendix A.4); all weights are equal at first."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=1)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        places = direction[:, None, None] * torch.arange(1, self.points + 1)[:, None]  # [h, 1, K, 2]
        nn.init.zeros_(self.offsets.weight)
        self.offsets.bias.copy_(places.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for linear in (self.values, self.project):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, places: Tensor, memory: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Queries [B, N, C] at `places` [N, 2] or [B, N, 2] look at `memory` [B, S, C], maps of `shapes` laid end to end."""
        batch, count, channels = queries.shape
        offsets = self.offsets(queries).view(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.weights(queries).view(batch, count, self.heads, -1).softmax(dim=3)  # [B, N, h, L K]
        sizes = torch.tensor([[width, height] for height, width in shapes], device=queries.device, dtype=queries.dtype)
        at = places.expand(batch, -1, -1)[:, :, None, None, None] + offsets / sizes[:, None]  # [B, N, h, L, K, 2]
        grids = (2 * at - 1).transpose(1, 2).flatten(0, 1)  # [B h, N, L, K, 2]
        values = self.values(memory).view(batch, -1, self.heads, channels // self.heads)
        seen = []
        for level, part in enumerate(torch.split(values, [height * width for height, width in shapes], dim=1)):
            value = part.permute(0, 2, 3, 1).reshape(batch * self.heads, -1, *shapes[level])  # [B h, d, H, W]
            seen.append(F.grid_sample(value, grids[:, :, level], padding_mode="zeros", align_corners=False))  # [B h, d, N, K]
        share = weights.transpose(1, 2).reshape(batch * self.heads, 1, count, -1)
        mixed = (torch.cat(seen, dim=3) * share).sum(dim=3)  # [B h, d, N]
        out: Tensor = self.project(mixed.view(batch, channels, count).transpose(1, 2))
        return out


class DeformableLayer(nn.Module):
    """An encoder layer: every cell of L maps attends to the maps, then a feed-forward part; both residual, normalised after."""

    def __init__(self, channels: int, heads: int, hidden: int, levels: int, points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, heads, levels, points)
        self.attention_norm = nn.LayerNorm(channels)
        self.feed = FeedForward(channels, hidden)
        self.feed_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, position: Tensor, places: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """[B, S, C] with position codes [1, S, C] and places [S, 2] -> the same shape."""
        x = self.attention_norm(x + self.attention(x + position, places, x, shapes))
        out: Tensor = self.feed_norm(x + self.feed(x))
        return out
