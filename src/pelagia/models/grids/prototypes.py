"""Masks as sums of prototypes (Bolya, Zhou, Xiao, Lee, "YOLACT: real-time instance segmentation", ICCV 2019, arXiv:1904.02689).

One branch answers for the image with K prototypes at a quarter of its resolution, every cell of the detector with K coefficients.
The logits of an object's mask are their sum of products, cut by its box; so a mask costs no more than a box. Where we follow the
YOLO family instead of the paper: the prototypes come from the finest level of the neck at twice its resolution, their activation
is SiLU, and the coefficients have none (the paper: ReLU and tanh).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.assign.dynamic import Assignment
from pelagia.models.targets import MaskCrops, Targets
from pelagia.nn.devices import send
from pelagia.nn.layers import ConvNormAct

__all__ = ["Prototypes", "mask_loss"]


class Prototypes(nn.Module):
    """The finest level [B, C, H/8, W/8] -> [B, K, H/4, W/4]."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        super().__init__()
        self.enter = ConvNormAct(channels, width, 3)
        self.enlarge = nn.ConvTranspose2d(width, width, 2, 2)
        self.refine = ConvNormAct(width, width, 3)
        self.narrow = ConvNormAct(width, count)

    def forward(self, level: Tensor) -> Tensor:
        found: Tensor = self.narrow(self.refine(self.enlarge(self.enter(level))))
        return found


def mask_loss(coefficients: Tensor, prototypes: Tensor, positive: Assignment, targets: Targets) -> Tensor:
    """The sum over the positive cells of the soft target times the mean over the cells of the truth's box of a cross-entropy.

    It is the binary cross-entropy between the logits, coefficients times prototypes, and the share of a prototype cell that the
    object covers (the paper's equation in section 3.2, with its division by the area of the box; a border that crosses a cell is
    learnt as such). Cells that the box touches count, at least one.

    Only those cells are computed, objects of like area together: in a crowded image the boxes are a hundredth of what whole
    images of logits would be. What is computed follows from the truth and is counted where that was made.

    Args:
        coefficients: [P, K].
        prototypes: [B, K, h, w].
        positive: the P positive cells.
        targets: the truth, with masks.
    """
    table = prototypes.permute(0, 2, 3, 1).flatten(0, 2)  # [B h w, K]
    total = table[:0].sum() + coefficients[:0].sum()  # a gradient of zero for a batch without objects
    masks, known = targets.masks, targets.on_host().masks
    if masks is None or known is None or not len(positive.object):
        return total
    plan = _plan(positive, targets.on_host(), prototypes.shape[2:], known)
    most, rows = plan.most, len(plan.objects) * plan.most
    # The cells of an object side by side, the rest of the row zero.
    side_by_side = send(plan.places, prototypes.device)
    vectors = coefficients.new_zeros(rows, coefficients.shape[1]).index_copy(0, side_by_side, coefficients)
    vectors = vectors.view(-1, most, coefficients.shape[1])  # [N, most, K]
    weights = coefficients.new_zeros(rows).index_copy(0, side_by_side, positive.score.to(coefficients.dtype))
    weights = weights.view(-1, most)  # [N, most]
    there = send(torch.cat((plan.image[:, None], plan.windows), dim=1), prototypes.device)  # [N, 5]
    shares = _Shares(masks, known, plan.objects, masks.height // prototypes.shape[2])
    for level, longest in plan.levels:
        image, windows = there[level, 0], there[level, 1:]
        place, x, y, size = _cells(windows, longest)  # [m, q] each, and [m]
        flat = (image[:, None] * prototypes.shape[2] + y) * prototypes.shape[3] + x
        # An embedding's gradient adds row by row in one order on every device; that of indexing is slow where it must.
        logits = F.embedding(flat, table) @ vectors[level].transpose(1, 2)  # [m, q, most]
        target = shares.at(level, x, y).to(logits.dtype)[..., None].expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * place[..., None]
        total = total + torch.sum(loss.sum(dim=1) / size[:, None] * weights[level])
    return total


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is computed, in the processor's memory: N objects by the size of their boxes.

    Args:
        objects: [N], rows of the targets.
        image: [N].
        windows: [N, 4], the cells that their boxes touch.
        most: largest number of positive cells of an object.
        places: [P], where the coefficients of the positive cells go among N x `most`.
        levels: consecutive objects whose numbers of cells have one power of two, and the largest such number.
    """

    objects: Tensor
    image: Tensor
    windows: Tensor
    most: int
    places: Tensor
    levels: list[tuple[slice, int]]


def _plan(positive: Assignment, known: Targets, shape: torch.Size, masks: MaskCrops) -> _Plan:
    objects = positive.counts.nonzero()[:, 0]
    counts, most = positive.counts[objects], int(positive.counts.max())
    windows, size = _windows(known.boxes[objects], masks, shape)
    bucket = torch.log2(size.double()).ceil().long()
    order = bucket.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    begin = counts.cumsum(0) - counts
    places = torch.arange(len(positive.object)) + (most * rank - begin).repeat_interleave(counts)
    ends = torch.unique_consecutive(bucket[order], return_counts=True)[1].cumsum(0).tolist()
    levels = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    size = size[order]
    return _Plan(
        objects[order],
        known.batch[objects[order]],
        windows[order],
        most,
        places,
        [(level, int(size[level].max())) for level in levels],
    )


def _windows(boxes: Tensor, masks: MaskCrops, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] in pixels -> the cells that they touch as x1, y1, x2, y2 [N, 4], and the number of these [N], at least 1."""
    limits = boxes.new_tensor([shape[1], shape[0]])
    scaled = boxes.reshape(-1, 2, 2) * limits / boxes.new_tensor([masks.width, masks.height])
    low = torch.minimum(scaled[:, 0].floor().clamp(min=0), limits - 1)
    high = torch.maximum(torch.minimum(scaled[:, 1].ceil(), limits), low + 1)
    return torch.cat((low, high), dim=1).long(), (high - low).prod(dim=1).long()


def _cells(windows: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each window [m, 4] its cells row by row, as many as the largest has: whether there is one, column and row, [m, q]; and
    how many there are, [m]."""
    columns, rows = (windows[:, 2:] - windows[:, :2]).unbind(1)
    size = columns * rows
    number = torch.arange(longest, device=windows.device)
    inside = number < size[:, None]
    number = torch.minimum(number, size[:, None] - 1)
    row = torch.div(number, columns[:, None], rounding_mode="floor")
    return inside, windows[:, 0, None] + number - row * columns[:, None], windows[:, 1, None] + row, size


class _Shares:
    """The share of each cell that an object covers; cells outside the windows of the masks have none."""

    def __init__(self, masks: MaskCrops, known: MaskCrops, objects: Tensor, stride: int) -> None:
        shares, windows = masks.cells(stride, objects, known)
        self.shares = torch.cat((shares, shares.new_zeros(1)))
        size = (windows[:, 2:] - windows[:, :2]).prod(dim=1)
        there = send(torch.cat((windows, (size.cumsum(0) - size)[:, None]), dim=1), shares.device)
        self.windows, self.starts = there[:, :4], there[:, 4]

    def at(self, rows: slice, x: Tensor, y: Tensor) -> Tensor:
        """[m, q] for m of the objects and cells [m, q]."""
        x1, y1, x2, y2 = (side[:, None] for side in self.windows[rows].unbind(1))
        inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        place = self.starts[rows, None] + (y - y1) * (x2 - x1) + x - x1
        return self.shares[place.masked_fill(~inside, len(self.shares) - 1)]
