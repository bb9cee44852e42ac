"""Non-maximum suppression inside a network, with a result of fixed size.

Two-stage detectors suppress between their stages. One operator, `pelagia::suppress`, holds the data-dependent step, so that a
traced graph keeps it whole; `export.onnx` writes it as ONNX NonMaxSuppression.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

__all__ = ["OPERATOR", "suppress"]


@torch.library.custom_op("pelagia::suppress", mutates_args=(), schema="(Tensor boxes, Tensor scores, float iou) -> Tensor")
def _suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    kept = torch.zeros_like(scores, dtype=torch.bool)
    group, member = torch.nonzero(scores > 0, as_tuple=True)  # groups ascending
    counts = torch.bincount(group, minlength=len(scores)).tolist()
    candidates, strength = boxes[group, member], scores[group, member]
    start = 0
    for number, count in enumerate(counts):
        if count:
            part = slice(start, start + count)
            chosen = nms(candidates[part], strength[part], iou)
            kept[number, member[part][chosen]] = True
            start += count
    return kept


@_suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


#: The operator as a traced graph holds it.
OPERATOR: Any = torch.ops.pelagia.suppress.default


def suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """[G, N] bool, which boxes [G, N, 4] stay when each group is suppressed by itself; `scores` [G, N], no gradient.

    Greedy: the strongest box of the group stays, all of the group that overlap it by an IoU of more than `iou` go, and so on.
    A box takes part only if its score is positive.
    """
    kept: Tensor = OPERATOR(boxes.detach().float(), scores.detach().float(), iou)
    return kept
