"""Which cells learn which object, decided by the present predictions.

Task-aligned assignment (Feng et al., "TOOD", ICCV 2021, arXiv:2108.07755, section 3.2): a cell inside an object has the alignment
t = s^alpha * u^beta of its class score s and its overlap u with the object; the `topk` best cells of each object are positive.
Everything is flat: K pairs (object, cell) over the batch, no padding to the fullest image, no loop over images, and only sorts
and maxima, whose result does not depend on the order of execution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pelagia.nn.grids import Grid

__all__ = ["Assignment", "cells_inside", "cells_inside_oriented", "task_aligned"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """P positive cells; no cell of an image occurs twice.

    Args:
        image: [P] int64.
        cell: [P] int64, number of the cell over all grids.
        object: [P] int64, row of the targets.
        score: [P], soft target of the object's class, in [0, 1].
    """

    image: Tensor
    cell: Tensor
    object: Tensor
    score: Tensor


def cells_inside(boxes: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
    """All pairs (object [K], cell [K]) whose cell centre lies in the box (border included), for boxes [M, 4] xyxy.

    Sides shorter than the finest stride count as that long around the same centre: every object inside the image then has a
    cell, which the paper's rule denies to organisms of a few pixels.
    """
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half.clamp(min=grids[0].stride / 2)
    low, high = centre - half, centre + half
    objects, cells = [], []
    for grid in grids:
        first = torch.ceil(low / grid.stride - 0.5).long().clamp(min=0)  # [M, 2] first column and row
        last = torch.floor(high / grid.stride - 0.5).long()
        last = torch.minimum(last, last.new_tensor([grid.columns - 1, grid.rows - 1]))
        count = (last - first + 1).clamp(min=0)  # [M, 2] columns and rows
        total = count[:, 0] * count[:, 1]  # [M]
        owner = torch.repeat_interleave(torch.arange(len(boxes), device=boxes.device), total)  # [K]
        number = torch.arange(len(owner), device=boxes.device) - (total.cumsum(0) - total)[owner]  # 0.. within the object
        columns = count[owner, 0]
        column, row = first[owner, 0] + number % columns, first[owner, 1] + number // columns
        objects.append(owner)
        cells.append(grid.first + row * grid.columns + column)
    return torch.cat(objects), torch.cat(cells)


def cells_inside_oriented(oriented: Tensor, grids: Sequence[Grid], centres: Tensor) -> tuple[Tensor, Tensor]:
    """As `cells_inside`, for oriented boxes [M, 5]; `centres` [A, 2] are the cell centres."""
    centre, angle = oriented[:, :2], oriented[:, 4]
    half = oriented[:, 2:4].clamp(min=float(grids[0].stride)) / 2
    cos, sin = angle.cos(), angle.sin()
    reach = torch.stack((half[:, 0] * cos.abs() + half[:, 1] * sin.abs(), half[:, 0] * sin.abs() + half[:, 1] * cos.abs()), 1)
    owner, cell = cells_inside(torch.cat((centre - reach, centre + reach), dim=1), grids)
    away = centres[cell] - centre[owner]
    along = away[:, 0] * cos[owner] + away[:, 1] * sin[owner]
    across = away[:, 1] * cos[owner] - away[:, 0] * sin[owner]
    inside = (along.abs() <= half[owner, 0]) & (across.abs() <= half[owner, 1])
    return owner[inside], cell[inside]


@torch.no_grad()
def task_aligned(
    pairs: tuple[Tensor, Tensor],
    batch: Tensor,
    scores: Tensor,
    overlaps: Tensor,
    cells: int,
    *,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Positive cells and their soft targets.

    Of the pairs of an object the `topk` of highest alignment t stay; a cell that several objects of an image claim goes to the
    one it overlaps most. The soft target is t / max(t) * max(u), maxima over the positive cells of the object.

    Args:
        pairs: object [K] and cell [K], the candidates.
        batch: [M], the image of each object.
        scores: [K], present probability of the object's class at the cell.
        overlaps: [K], present overlap of the cell's box with the object, in [0, 1].
        cells: number of cells of an image.
    """
    owner, cell = pairs
    aligned = scores.pow(alpha) * overlaps.pow(beta)
    # Two stable sorts: by object, and within an object by falling alignment.
    order = aligned.argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    count = torch.bincount(owner, minlength=len(batch))
    rank = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[owner[order]]
    order = order[rank < topk]
    # The same again: by cell of an image, and within a cell by falling overlap; the first of each cell wins.
    order = order[overlaps[order].argsort(descending=True, stable=True)]
    place = batch[owner[order]] * cells + cell[order]
    by_place = place.argsort(stable=True)
    order, place = order[by_place], place[by_place]
    wins = torch.ones_like(place, dtype=torch.bool)
    wins[1:] = place[1:] != place[:-1]
    order = order[wins]
    owner, cell, aligned, overlaps = owner[order], cell[order], aligned[order], overlaps[order]
    best_aligned = aligned.new_zeros(len(batch)).scatter_reduce(0, owner, aligned, "amax")
    best_overlap = overlaps.new_zeros(len(batch)).scatter_reduce(0, owner, overlaps, "amax")
    tiny = torch.finfo(aligned.dtype).tiny
    score = aligned / best_aligned[owner].clamp(min=tiny) * best_overlap[owner]
    return Assignment(image=batch[owner], cell=cell, object=owner, score=score)
