"""Losses of masks, each mask by itself: of set predictors, of instance heads."""

from __future__ import annotations

from torch import Tensor

__all__ = ["dice"]


def dice(probabilities: Tensor, targets: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss (Milletari et al., "V-Net", 3DV 2016, arXiv:1606.04797, with sums instead of squares below).

    1 - (2 sum p t + s) / (sum p + sum t + s), sums over all but the first axis, s = `smooth`: with it an empty mask that is
    predicted empty costs nothing. probabilities and targets [M, ...] in [0, 1] -> [M].
    """
    p, t = probabilities.flatten(1), targets.flatten(1).to(probabilities.dtype)
    return 1 - (2 * (p * t).sum(dim=1) + smooth) / (p.sum(dim=1) + t.sum(dim=1) + smooth)
