"""Classification losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["binary_cross_entropy_sum"]


def binary_cross_entropy_sum(
    logits: Tensor, index: tuple[Tensor, Tensor, Tensor], target: Tensor, ignored: Tensor | None = None
) -> Tensor:
    """Sum of binary cross-entropies over logits [B, C, A] whose targets are zero but for P places.

    For a logit x and target t it is log(1 + e^x) - x t, so the dense target is never made.

    Args:
        index: image [P], class [P], cell [P] of the places, none twice.
        target: [P] in [0, 1].
        ignored: [B, A] bool, cells that count for no class, or None.
    """
    background = F.softplus(logits)
    if ignored is not None:
        background = background.masked_fill(ignored[:, None], 0.0)
    return background.sum() - torch.sum(logits[index] * target)
