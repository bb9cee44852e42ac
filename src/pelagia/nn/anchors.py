"""Anchors: the reference boxes of a region proposal network, and boxes as offsets from reference boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

__all__ = ["LARGEST_LOG_SCALE", "decode_offsets", "encode_offsets", "grid_anchors"]

#: exp of a predicted log scale is cut here: a box becomes at most 62.5 times its reference, a stride-16 cell all of 1000 pixels.
LARGEST_LOG_SCALE: Final = math.log(1000 / 16)


def grid_anchors(
    shapes: Sequence[tuple[int, int]],
    image: tuple[int, int],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    device: torch.device | None = None,
) -> list[Tensor]:
    """Anchors (Ren et al., 2016, section 3.1.1) of each level, [h w A, 4] with A = len(ratios) len(sizes of the level).

    An anchor of side s and ratio r = height / width is s / sqrt(r) wide and s sqrt(r) high, its corners rounded to whole pixels.
    It is centred at the top-left corner of its cell, as in the published models; a cell is floor(H / h) by floor(W / w) pixels.
    Cells run row by row, within a cell the ratios, within a ratio the sizes.

    Args:
        shapes: rows h and columns w of each level.
        image: height and width of the network's input.
        sizes: per level, in input pixels.
        ratios: height over width, the same at every level.
    """
    levels = []
    for (rows, columns), level in zip(shapes, sizes, strict=True):
        root = torch.tensor(ratios, device=device).sqrt()[:, None]
        side = torch.tensor(level, dtype=root.dtype, device=device)[None, :]
        width, height = ((1 / root) * side).flatten(), (root * side).flatten()
        base = (torch.stack((-width, -height, width, height), dim=1) / 2).round()  # [A, 4]
        y = torch.arange(rows, device=device, dtype=root.dtype) * (image[0] // rows)
        x = torch.arange(columns, device=device, dtype=root.dtype) * (image[1] // columns)
        down, right = (value.flatten() for value in torch.meshgrid(y, x, indexing="ij"))
        levels.append((torch.stack((right, down, right, down), dim=1)[:, None] + base).flatten(0, 1))
    return levels


def encode_offsets(boxes: Tensor, references: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Boxes [..., 4] as offsets [..., 4] from reference boxes [..., 4] (Girshick et al., "R-CNN", CVPR 2014, appendix C).

    w_x (x - x_r) / width_r, w_y (y - y_r) / height_r, w_w log(width / width_r), w_h log(height / height_r), with x, y the centres
    and w the `weights`. Sides of the boxes count as at least a hundredth of a pixel, so that the result is finite.
    """
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-2)
    reference = (references[..., 2:] - references[..., :2]).clamp(min=1e-2)
    centre = boxes[..., :2] + 0.5 * (boxes[..., 2:] - boxes[..., :2])
    middle = references[..., :2] + 0.5 * (references[..., 2:] - references[..., :2])
    scale = boxes.new_tensor(weights)
    return torch.cat(((centre - middle) / reference, torch.log(size / reference)), dim=-1) * scale


def decode_offsets(offsets: Tensor, references: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """The inverse of `encode_offsets`, shapes broadcast; log scales are cut at `LARGEST_LOG_SCALE`."""
    offsets = offsets / offsets.new_tensor(weights)
    reference = references[..., 2:] - references[..., :2]
    middle = references[..., :2] + 0.5 * reference
    centre = offsets[..., :2] * reference + middle
    half = 0.5 * (offsets[..., 2:].clamp(max=LARGEST_LOG_SCALE).exp() * reference)
    return torch.cat((centre - half, centre + half), dim=-1)
