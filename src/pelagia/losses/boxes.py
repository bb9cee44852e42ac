"""Losses of box regression; the overlaps themselves stand in `pelagia.core.boxes` and `pelagia.core.oriented`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["angle_loss", "distribution_focal", "nearest_form"]

#: A distance at the last bin would need a bin beyond it.
_MARGIN = 0.01


def distribution_focal(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss (Li et al., "Generalized Focal Loss", NeurIPS 2020, arXiv:2006.04388, eq. 6).

    For a distance y between the bins i and i + 1: -((i + 1 - y) log p_i + (y - i) log p_(i+1)); distances are cut to
    [0, R - 1.01]. logits [P, S, R] and distances [P, S] -> [P], the mean over the S sides.
    """
    distances = distances.clamp(0.0, logits.shape[-1] - 1 - _MARGIN)
    left = distances.floor()
    weight = distances - left
    index = left.long()[..., None]
    log_p = logits.log_softmax(dim=-1)
    low, high = log_p.gather(-1, index)[..., 0], log_p.gather(-1, index + 1)[..., 0]
    return -((1 - weight) * low + weight * high).mean(dim=-1)


def nearest_form(oriented: Tensor, angle: Tensor) -> Tensor:
    """The same rectangles [P, 5], sides exchanged where that brings their angle nearer to `angle` [P].

    A rectangle can be written with angles a quarter turn apart. Of the two in [-pi/4, 3 pi/4) the one nearer to the prediction
    is returned, so that a detector may settle for either, and the jump of a fixed convention (long side first) disappears.
    """
    quarter = math.pi / 2
    turns = torch.floor((oriented[:, 4] + quarter / 2) / quarter)
    base = oriented[:, 4] - turns * quarter  # in [-pi/4, pi/4)
    up = (angle - base > quarter / 2).to(base.dtype)
    swap = torch.remainder(up - turns, 2) > 0.5
    w, h = torch.where(swap, oriented[:, 3], oriented[:, 2]), torch.where(swap, oriented[:, 2], oriented[:, 3])
    return torch.stack((oriented[:, 0], oriented[:, 1], w, h, base + up * quarter), dim=1)


def angle_loss(angle: Tensor, oriented: Tensor) -> Tensor:
    """(1 - short / long) sin²(angle - target), [P] and [P, 5] -> [P].

    ProbIoU turns a box only as far as it is already predicted to be slender; this term turns it from the start. It vanishes for
    squares, whose label does not say which side is the first: their angle is left to whatever the other terms make of it.
    """
    long, short = oriented[:, 2:4].amax(dim=1), oriented[:, 2:4].amin(dim=1)
    return (1 - short / long.clamp(min=1e-6)) * torch.sin(angle - oriented[:, 4]) ** 2
