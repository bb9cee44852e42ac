"""Classification losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["binary_cross_entropy_sum", "sigmoid_focal", "softmax_focal"]


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


def sigmoid_focal(logits: Tensor, targets: Tensor, *, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of independent classes (Lin et al., "Focal Loss for Dense Object Detection", arXiv:1708.02002, eq. 5).

    a (1 - q)^gamma b with b the binary cross-entropy of logit x and target t, q = p t + (1 - p)(1 - t) for p = sigmoid(x), and
    a = alpha t + (1 - alpha)(1 - t), or 1 where `alpha` is None. Any shape, targets in [0, 1] -> the same shape.
    """
    targets = targets.to(logits.dtype)
    p = logits.sigmoid()
    missed = p + targets - 2 * p * targets  # 1 - q
    value = missed**gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return value if alpha is None else value * (alpha * targets + (1 - alpha) * (1 - targets))


def softmax_focal(logits: Tensor, labels: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Focal loss of classes that exclude each other: -(1 - p_y)^gamma log p_y with p = softmax over the second axis.

    logits [N, C, ...] and labels [N, ...] in 0 to C - 1 -> [N, ...].
    """
    log_p = logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return -((-torch.expm1(log_p)) ** gamma) * log_p
