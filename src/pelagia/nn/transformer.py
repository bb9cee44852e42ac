"""The transformer over the cells of a feature map and a set of queries, and the code of a cell's place.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017 (arXiv:1706.03762), in the form of Carion et al., "End-to-End Object
Detection with Transformers", ECCV 2020 (arXiv:2005.12872), appendix A.3 and figure 10: places are added to queries and keys in
every layer, never to values. Sequences are [B, N, D], batch first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DecoderLayer", "EncoderLayer", "FeedForward", "MultiHeadAttention", "Perceptron", "sine_positions", "valid_cells"]

#: Keeps the quotient finite where a row or a column has no valid cell.
_EPS = 1e-6


def valid_cells(valid: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """[B, h, w] bool, the cells of a map of `cells` (h, w) over an input of `size` (H, W) that are image and not padding.

    Cell (i, j) is image if pixel (floor(i H / h), floor(j W / w)) is; `valid` [B, 2] holds heights and widths without padding.
    """
    (height, width), (rows, columns) = size, cells
    y = torch.arange(rows, device=valid.device) * height // rows
    x = torch.arange(columns, device=valid.device) * width // columns
    return (y < valid[:, :1])[:, :, None] & (x < valid[:, 1:])[:, None, :]


def sine_positions(image: Tensor, channels: int, *, temperature: float = 10_000.0) -> Tensor:
    """Place codes [B, channels, h, w] of the cells of maps whose cells are image where `image` [B, h, w] bool says so.

    The first half of the channels codes y, the second x, each as sin and cos in turn of 2 pi p / t^(2 floor(k / 2) / K), with
    K = channels / 2, t the temperature and p = 1 / n, ..., n / n for the n image cells of a column (for x: of a row).
    """
    half = channels // 2
    # Counted in integers: a running sum of floats has no deterministic kernel on a GPU.
    counts = (image.cumsum(axis, dtype=torch.int32).float() for axis in (1, 2))
    scale = temperature ** (2 * torch.div(torch.arange(half, device=image.device), 2, rounding_mode="floor") / half)  # [K]
    codes = []
    for axis, count in enumerate(counts, start=1):
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        angle = (count / (last + _EPS) * (2 * math.pi))[..., None] / scale  # [B, h, w, K]
        codes.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2))
    return torch.cat(codes, dim=-1).permute(0, 3, 1, 2)


class MultiHeadAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v in each of h heads of d = D / h channels, and a linear map over the heads side by side.

    query [B, Q, D], key and value [B, N, D] -> [B, Q, D]. `allowed`, bool and broadcastable to [B, h, Q, N], says which keys a
    query may look at; every query needs one at least. `dropout` acts on the weights of the softmax.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.join = nn.Linear(width, width)

    def reset(self) -> None:
        """Xavier's uniform weights, for query, key and value those of one matrix [3 D, D], and biases of zero."""
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(0.5))
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.join.weight)
        nn.init.zeros_(self.join.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, h, Q or N, d]
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)  # [B, h, Q, d]
        out: Tensor = self.join(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """leave(dropout(relu(enter(x)))), [..., D] -> [..., D] with `hidden` channels between."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.enter = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(hidden, width)

    def reset(self) -> None:
        """Xavier's uniform weights."""
        nn.init.xavier_uniform_(self.enter.weight)
        nn.init.xavier_uniform_(self.leave.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.leave(self.dropout(self.enter(x).relu()))
        return out


class Perceptron(nn.Module):
    """`depth` linear layers with ReLU between them, [..., enter] -> [..., out] over `hidden` channels."""

    def __init__(self, enter: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        widths = [enter, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        out: Tensor = self.layers[-1](x)
        return out


class _Layer(nn.Module):
    """What both kinds of layer share: how a part is joined to the path around it.

    `norm_first` False: norm(x + dropout(part(x))), as published; True: x + dropout(part(norm(x))).
    """

    def __init__(self, dropout: float, norm_first: bool) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def _join(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        out: Tensor = x + self.dropout(part(norm(x))) if self.norm_first else norm(x + self.dropout(part(x)))
        return out


class EncoderLayer(_Layer):
    """Self-attention over N cells, then the feed-forward part: x [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int, hidden: int, *, dropout: float = 0.0, norm_first: bool = False) -> None:
        super().__init__(dropout, norm_first)
        self.attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.feed = FeedForward(width, hidden, dropout=dropout)
        self.feed_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`positions` [B or 1, N, D] codes the cells' places; `allowed` is that of `MultiHeadAttention`."""

        def attend(value: Tensor) -> Tensor:
            placed = value + positions
            out: Tensor = self.attention(placed, placed, value, allowed)
            return out

        return self._join(self._join(x, self.attention_norm, attend), self.feed_norm, self.feed)


class DecoderLayer(_Layer):
    """Self-attention among Q queries, attention of the queries to N cells, the feed-forward part: x [B, Q, D] -> [B, Q, D]."""

    def __init__(self, width: int, heads: int, hidden: int, *, dropout: float = 0.0, norm_first: bool = False) -> None:
        super().__init__(dropout, norm_first)
        self.attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.cross = MultiHeadAttention(width, heads, dropout=dropout)
        self.cross_norm = nn.LayerNorm(width)
        self.feed = FeedForward(width, hidden, dropout=dropout)
        self.feed_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, positions: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`queries` [B or 1, Q, D] codes which query is which, `memory` [B, N, D] are the cells and `positions` their places;
        `allowed` says which cells a query may look at."""

        def among(value: Tensor) -> Tensor:
            coded = value + queries
            out: Tensor = self.attention(coded, coded, value)
            return out

        def across(value: Tensor) -> Tensor:
            out: Tensor = self.cross(value + queries, memory + positions, memory, allowed)
            return out

        x = self._join(self._join(x, self.attention_norm, among), self.cross_norm, across)
        return self._join(x, self.feed_norm, self.feed)
