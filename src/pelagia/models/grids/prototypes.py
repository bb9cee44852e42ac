"""Masks as sums of prototypes (Bolya, Zhou, Xiao, Lee, "YOLACT: real-time instance segmentation", ICCV 2019, arXiv:1904.02689).

One branch answers for the image with K prototypes at a quarter of its resolution, every cell of the detector with K coefficients.
The logits of an object's mask are their sum of products, cut by its box; so a mask costs no more than a box. Where we follow the
YOLO family instead of the paper: the prototypes come from the finest level of the neck at twice its resolution, their activation
is SiLU, and the coefficients have none (the paper: ReLU and tanh).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelagia.assign.dynamic import Assignment
from pelagia.models.targets import MaskCrops
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


def mask_loss(coefficients: Tensor, prototypes: Tensor, positive: Assignment, boxes: Tensor, masks: MaskCrops) -> Tensor:
    """The sum over the positive cells of the soft target times the mean over the cells of the truth's box of a cross-entropy.

    It is the binary cross-entropy between the logits, coefficients times prototypes, and the share of a prototype cell that the
    object covers (the paper's equation in section 3.2, with its division by the area of the box; a border that crosses a cell is
    learnt as such). Cells that the box touches count, at least one.

    Only those cells are computed, objects of like area together: in a crowded image the boxes are a hundredth of what whole
    images of logits would be.

    Args:
        coefficients: [P, K].
        prototypes: [B, K, h, w].
        positive: the P positive cells.
        boxes: [M, 4] of the truth, in pixels of the network's input.
        masks: of the truth.
    """
    table = prototypes.permute(0, 2, 3, 1).flatten(0, 2)  # [B h w, K]
    total = table[:0].sum() + coefficients[:0].sum()  # a gradient of zero for a batch without objects
    if not len(positive.object):
        return total
    order = positive.object.argsort(stable=True)
    objects, count = torch.unique_consecutive(positive.object[order], return_counts=True)
    first = count.cumsum(0) - count
    owner = torch.repeat_interleave(torch.arange(len(objects), device=count.device), count)
    rank = torch.arange(len(order), device=count.device) - first[owner]
    # The cells of an object side by side, the rest of the row zero.
    side_by_side = owner * int(count.max()) + rank
    rows = len(objects) * int(count.max())
    vectors = coefficients.new_zeros(rows, coefficients.shape[1]).index_copy(0, side_by_side, coefficients[order])
    vectors = vectors.view(len(objects), -1, coefficients.shape[1])  # [N, most, K]
    weights = coefficients.new_zeros(rows).index_copy(0, side_by_side, positive.score[order].to(coefficients.dtype))
    weights = weights.view(len(objects), -1)  # [N, most]
    image = positive.image[order][first]

    windows, size = _windows(boxes[objects], masks, prototypes.shape[2:])
    shares = _Shares(masks, objects, masks.height // prototypes.shape[2])
    bucket = torch.log2(size.double()).ceil().long()
    for level in torch.unique(bucket).tolist():
        chosen = torch.nonzero(bucket == level)[:, 0]
        place, x, y = _cells(windows[chosen], size[chosen])  # [m, q] each
        flat = (image[chosen, None] * prototypes.shape[2] + y) * prototypes.shape[3] + x
        # An embedding's gradient adds row by row in one order on every device; that of indexing is slow where it must.
        logits = F.embedding(flat, table) @ vectors[chosen].transpose(1, 2)  # [m, q, most]
        target = shares.at(chosen, x, y).to(logits.dtype)[..., None].expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * place[..., None]
        total = total + torch.sum(loss.sum(dim=1) / size[chosen, None] * weights[chosen])
    return total


def _windows(boxes: Tensor, masks: MaskCrops, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] in pixels -> the cells that they touch as x1, y1, x2, y2 [N, 4], and the number of these [N], at least 1."""
    limits = boxes.new_tensor([shape[1], shape[0]])
    scaled = boxes.reshape(-1, 2, 2) * limits / boxes.new_tensor([masks.width, masks.height])
    low = torch.minimum(scaled[:, 0].floor().clamp(min=0), limits - 1)
    high = torch.maximum(torch.minimum(scaled[:, 1].ceil(), limits), low + 1)
    return torch.cat((low, high), dim=1).long(), (high - low).prod(dim=1).long()


def _cells(windows: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each window [m, 4] its cells row by row, as many as the largest has: whether there is one, column and row, [m, q]."""
    number = torch.arange(int(size.max()), device=size.device)
    inside = number < size[:, None]
    number = torch.minimum(number, size[:, None] - 1)
    columns = (windows[:, 2] - windows[:, 0])[:, None]
    row = torch.div(number, columns, rounding_mode="floor")
    return inside, windows[:, 0, None] + number - row * columns, windows[:, 1, None] + row


class _Shares:
    """The share of each cell that an object covers; cells outside the windows of the masks have none."""

    def __init__(self, masks: MaskCrops, objects: Tensor, stride: int) -> None:
        shares, self.windows = masks.cells(stride, objects)
        self.shares = torch.cat((shares, shares.new_zeros(1)))
        size = (self.windows[:, 2:] - self.windows[:, :2]).prod(dim=1)
        self.starts = size.cumsum(0) - size

    def at(self, rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """[m, q] for the objects `rows` [m] and cells [m, q]."""
        x1, y1, x2, y2 = (side[:, None] for side in self.windows[rows].unbind(1))
        inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        place = self.starts[rows, None] + (y - y1) * (x2 - x1) + x - x1
        return self.shares[torch.where(inside, place, len(self.shares) - 1)]
