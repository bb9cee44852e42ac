"""Which cells learn which object, decided by the present predictions.

Task-aligned assignment (Feng et al., "TOOD", ICCV 2021, arXiv:2108.07755, section 3.2): a cell inside an object has the alignment
t = s^alpha * u^beta of its class score s and its overlap u with the object; the `topk` best cells of each object are positive.
Everything is flat: K pairs (object, cell) over the batch, no padding to the fullest image, no loop over images, and only a sort
and maxima, whose result does not depend on the order of execution.

How many pairs there are follows from the truth alone, so it is counted where the truth was made, and a GPU is told: nothing here
makes the processor wait for it. What only the GPU knows (which of several objects wins a cell) has weights of zero there instead
of a shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pelagia.nn.devices import answers_late, send
from pelagia.nn.grids import Grid

__all__ = ["Assignment", "Candidates", "cells_inside", "cells_inside_oriented", "ignored_cells", "task_aligned"]

#: Integer keys hold one number in their upper half and one that counts down from here in the lower.
_LAST, _STEP = 2**31 - 1, 2**32


@dataclass(frozen=True, slots=True)
class Candidates:
    """K pairs of an object and a cell that may learn it, object after object.

    Args:
        object: [K] int64, ascending.
        cell: [K] int64, number of the cell over all grids.
        counts: [M] int64, pairs of each object, in the processor's memory.
        inside: [K] bool, the pairs that count, None where all do.
    """

    object: Tensor
    cell: Tensor
    counts: Tensor
    inside: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """P positive cells, object after object; no cell of an image occurs twice among those with a score above 0.

    Args:
        image: [P] int64.
        cell: [P] int64, number of the cell over all grids.
        object: [P] int64, row of the targets; ascending.
        score: [P], soft target of the object's class, in [0, 1]; 0 for cells that turned out not to be positive.
        counts: [M] int64, how many of the P are of each object, in the processor's memory.
        positive: [P] bool, the others; None where all are.
    """

    image: Tensor
    cell: Tensor
    object: Tensor
    score: Tensor
    counts: Tensor
    positive: Tensor | None = None


def cells_inside(
    boxes: Tensor, grids: Sequence[Grid], device: torch.device | None = None, chosen: Tensor | None = None
) -> Candidates:
    """All pairs whose cell centre lies in the box (border included), for boxes [M, 4] xyxy in the processor's memory.

    Sides shorter than the finest stride count as that long around the same centre: every object inside the image then has a
    cell, which the paper's rule denies to organisms of a few pixels.

    Args:
        device: of the pairs, by default the processor.
        chosen: [M] bool, the objects that take part, by default all.
    """
    device = boxes.device if device is None else device
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half.clamp(min=grids[0].stride / 2)
    low, high = (centre - half)[:, None], (centre + half)[:, None]  # [M, 1, 2]
    strides = boxes.new_tensor([grid.stride for grid in grids])[:, None]  # [G, 1]
    sizes = torch.tensor([(grid.columns, grid.rows) for grid in grids])  # [G, 2]
    first = torch.ceil(low / strides - 0.5).long().clamp(min=0)  # [M, G, 2] first column and row
    last = torch.minimum(torch.floor(high / strides - 0.5).long(), sizes - 1)
    across = (last - first + 1).clamp(min=0)  # [M, G, 2] columns and rows
    total = across.prod(dim=2)  # [M, G]
    if chosen is not None:
        total = total * chosen[:, None]
    # A pair is the k-th of its object and grid, row by row: its cell is the first one + k + the cells beside each row before.
    begin = total.flatten().cumsum(0) - total.flatten()
    corner = torch.tensor([grid.first for grid in grids]) + first[..., 1] * sizes[:, 0] + first[..., 0]
    columns = across[..., 0].clamp(min=1)
    table = torch.stack((begin, corner.flatten(), columns.flatten(), (sizes[:, 0] - columns).flatten(), total.flatten()))
    counts = total.sum(dim=1)
    pairs = int(counts.sum())
    begin, corner, columns, beside, total = send(table, device)  # [M G] each
    part = torch.arange(len(total), device=device).repeat_interleave(total, output_size=pairs)  # [K]
    number = torch.arange(pairs, device=device) - begin[part]
    row = torch.div(number, columns[part], rounding_mode="floor")
    owner = torch.div(part, len(grids), rounding_mode="floor")
    return Candidates(owner, corner[part] + number + row * beside[part], counts)


def cells_inside_oriented(oriented: Tensor, grids: Sequence[Grid], centres: Tensor, chosen: Tensor | None = None) -> Candidates:
    """As `cells_inside`, for oriented boxes [M, 5]; `centres` [A, 2] are the cell centres, on the device of the pairs."""
    half = oriented[:, 2:4].clamp(min=float(grids[0].stride)) / 2
    cos, sin = oriented[:, 4].cos(), oriented[:, 4].sin()
    reach = torch.stack((half[:, 0] * cos.abs() + half[:, 1] * sin.abs(), half[:, 0] * sin.abs() + half[:, 1] * cos.abs()), 1)
    around = cells_inside(torch.cat((oriented[:, :2] - reach, oriented[:, :2] + reach), dim=1), grids, centres.device, chosen)
    table = send(torch.cat((oriented[:, :2], half, cos[:, None], sin[:, None]), dim=1), centres.device)
    x, y, along, across, cos, sin = table[around.object].unbind(dim=1)  # [K] each
    dx, dy = centres[around.cell, 0] - x, centres[around.cell, 1] - y
    inside = ((dx * cos + dy * sin).abs() <= along) & ((dy * cos - dx * sin).abs() <= across)
    if answers_late(centres.device):
        return Candidates(around.object, around.cell, around.counts, inside)
    owner = around.object[inside]
    return Candidates(owner, around.cell[inside], torch.bincount(owner, minlength=len(oriented)))


@torch.no_grad()
def task_aligned(
    pairs: Candidates,
    batch: Tensor,
    scores: Tensor,
    overlaps: Tensor,
    shape: tuple[int, int],
    *,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Positive cells and their soft targets.

    Of the pairs of an object the `topk` of highest alignment t stay; a cell that several objects of an image claim goes to the
    one it overlaps most. The soft target is t / max(t) * max(u), maxima over the positive cells of the object. Alignments and
    overlaps are compared in single precision.

    Args:
        pairs: the candidates.
        batch: [M], the image of each object.
        scores: [K], present probability of the object's class at the cell.
        overlaps: [K], present overlap of the cell's box with the object, in [0, 1].
        shape: number of images and of cells of an image.
    """
    device = scores.device
    aligned = scores.pow(alpha) * overlaps.pow(beta)
    fall = _ordered(aligned)
    if pairs.inside is not None:
        fall = fall.masked_fill(~pairs.inside, -1)
    # One stable sort by object and, within it, falling alignment. The first `topk` of each object are then where counts say.
    order = (pairs.object * _STEP + (_LAST - fall)).argsort(stable=True)
    known = pairs.counts.clamp(max=topk)
    rest, count = pairs.counts - known, int(known.sum())
    taken, skip = send(torch.stack((known, rest.cumsum(0) - rest)), device)  # [M] each
    owner = torch.arange(len(batch), device=device).repeat_interleave(taken, output_size=count)  # [P]
    chosen = order[torch.arange(count, device=device) + skip[owner]]
    cell, aligned, overlaps, image = pairs.cell[chosen], aligned[chosen], overlaps[chosen], batch[owner]
    # A cell goes to the greatest overlap, of equal ones to the first object.
    claim = _ordered(overlaps) * _STEP + (_LAST - owner)
    if pairs.inside is not None:
        claim = claim.masked_fill(~pairs.inside[chosen], -1)
    place = image * shape[1] + cell
    wins = claim.new_zeros(shape[0] * shape[1]).scatter_reduce(0, place, claim, "amax")[place] == claim
    late = answers_late(device)
    if not late:
        owner, cell, image, aligned, overlaps = (value[wins] for value in (owner, cell, image, aligned, overlaps))
        known = torch.bincount(owner, minlength=len(batch))
    else:
        aligned, overlaps = (value.masked_fill(~wins, 0.0) for value in (aligned, overlaps))
    best_aligned = aligned.new_zeros(len(batch)).scatter_reduce(0, owner, aligned, "amax")
    best_overlap = overlaps.new_zeros(len(batch)).scatter_reduce(0, owner, overlaps, "amax")
    tiny = torch.finfo(aligned.dtype).tiny
    score = aligned / best_aligned[owner].clamp(min=tiny) * best_overlap[owner]
    return Assignment(image, cell, owner, score, known, wins if late else None)


def ignored_cells(pairs: Candidates, batch: Tensor, positive: Assignment, shape: tuple[int, int]) -> Tensor:
    """[B, A] bool, the cells inside regions that teach nothing, but for the positive ones.

    Args:
        pairs: of the regions.
        batch: [M], the image of each region.
        positive: of the objects.
        shape: number of images and of cells of an image.
    """
    marks = torch.zeros(shape[0] * shape[1], device=pairs.cell.device)
    for image, cell, counted, mark in (
        (batch[pairs.object], pairs.cell, pairs.inside, 1.0),
        (positive.image, positive.cell, positive.positive, 2.0),
    ):
        values = marks.new_full((len(cell),), mark) if counted is None else mark * counted
        marks = marks.scatter_reduce(0, image * shape[1] + cell, values, "amax")
    return (marks == 1).view(shape)


def _ordered(values: Tensor) -> Tensor:
    """Integers of 31 bits in the order of values that are not negative: the bits of their single precision."""
    return values.float().abs().view(torch.int32).long()  # a zero may have a sign
