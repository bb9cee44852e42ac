"""Losses of masks at sampled points instead of at every pixel (Kirillov et al., "PointRend: Image Segmentation as Rendering",
CVPR 2020, arXiv:1912.08193, sections 3.1 and 4.1), as Mask2Former uses them.

Points are x, y in [0, 1] over the whole map, (0, 0) its upper left outer corner; values between cell centres are interpolated
linearly, and beyond the outermost centres against 0. Random points come from torch's global generator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["read_points", "uncertain_points"]


def read_points(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps [N, C, h, w] at points [N, P, 2] -> [N, C, P]."""
    return F.grid_sample(maps, 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, *, oversample: float = 3.0, importance: float = 0.75) -> Tensor:
    """`count` points for each mask of logits [N, h, w], most of them where the mask is least sure of itself -> [N, count, 2].

    Of floor(oversample count) random points the floor(importance count) with the smallest |logit| are taken; the rest is random.
    """
    masks = len(logits)
    drawn = torch.rand(masks, int(count * oversample), 2, device=logits.device)
    best = int(count * importance)
    if not masks:
        return drawn[:, :count]
    unsure = read_points(logits[:, None], drawn.to(logits.dtype))[:, 0].abs().neg().topk(best, dim=1).indices  # [N, best]
    chosen = drawn.gather(1, unsure[..., None].expand(-1, -1, 2))
    return torch.cat((chosen, torch.rand(masks, count - best, 2, device=logits.device)), dim=1)
