"""The region proposal network (Ren et al., "Faster R-CNN", PAMI 2017, arXiv:1506.01497, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pelagia.nn.anchors import decode_offsets
from pelagia.nn.layers import conv_relu
from pelagia.nn.suppression import suppress

__all__ = ["RegionProposals", "clip_to", "highest", "propose", "strongest"]

#: Proposals with a side below, in input pixels, are left out.
_SMALLEST = 1e-3


class RegionProposals(nn.Module):
    """Objectness and box offsets of every anchor, by convolutions that all levels share.

    Args:
        channels: of every level.
        anchors: per cell.
        convs: 3 x 3 convolutions before the answers.
    """

    def __init__(self, channels: int, anchors: int, convs: int = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(conv_relu(channels, channels) for _ in range(convs)))
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.offsets = nn.Conv2d(channels, anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: objectness logits [B, h w A] and offsets [B, h w A, 4], in the order of `nn.anchors.grid_anchors`."""
        logits, offsets = [], []
        for level in levels:
            x = self.convs(level)
            logits.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1))
            offset = self.offsets(x)  # [B, A 4, h, w]
            offsets.append(offset.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3))
        return logits, offsets


def propose(
    logits: list[Tensor],
    offsets: list[Tensor],
    anchors: list[Tensor],
    limits: Tensor,
    *,
    before: int,
    after: int,
    iou: float,
) -> tuple[Tensor, Tensor]:
    """Proposals [B, P, 4], cut at the image's border, and [B, P] bool which of them are some; strongest first, without gradient.

    Per level the `before` anchors of highest objectness, suppressed at `iou` level by level; of all levels the `after` strongest.

    Args:
        limits: [B, 2], width and height of each image.
    """
    boxes, scores = [], []
    for level_logits, level_offsets, level_anchors in zip(logits, offsets, anchors, strict=True):
        # By logits: chances near one are rounded alike.
        strength, index = highest(level_logits.detach().float(), before)  # [B, k]
        chance = strength.sigmoid()
        chosen = level_offsets.detach().float().gather(1, index[..., None].expand(-1, -1, 4))
        found = clip_to(decode_offsets(chosen, level_anchors[index], (1.0, 1.0, 1.0, 1.0)), limits)
        large = ((found[..., 2:] - found[..., :2]) >= _SMALLEST).all(-1)
        # A chance may be rounded to zero, which would say "no candidate"; the order of the others stays.
        chance = torch.where(large, chance.clamp(min=torch.finfo(chance.dtype).tiny), 0.0)
        boxes.append(found)
        scores.append(torch.where(suppress(found, chance, iou), chance, 0.0))
    found, chance, _ = strongest(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), after)
    return found, chance > 0


def highest(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The `most` highest of float32 scores [B, P], or all if there are fewer, falling, and their places; of equal ones the first.

    Padding and other even areas score alike to the bit, cell after cell. Of equal values PyTorch's `topk` takes any, ONNX's TopK
    the first: without a rule the exported graph would propose other regions than the model.
    """
    most = min(most, scores.shape[1])
    if torch.compiler.is_exporting():
        values, place = scores.topk(most, dim=1)
        return values, place
    # Unique keys: the bits of a float, as a whole number in the order of the floats, then the place from the end. Several times
    # faster than a stable sort of all.
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: -0.0 equals 0.0
    order = torch.where(bits < 0, bits ^ torch.iinfo(torch.int32).max, bits).long()
    later = torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    place = ((order << 32) + later).topk(most, dim=1).indices
    return scores.gather(1, place), place


def strongest(boxes: Tensor, scores: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `most` of boxes [B, P, 4] by score, their scores, falling, and their places; boxes of score 0 are zeros."""
    scores, place = highest(scores, most)
    boxes = boxes.gather(1, place[..., None].expand(-1, -1, 4))
    return torch.where(scores[..., None] > 0, boxes, 0.0), scores, place


def clip_to(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes [B, ..., 4] cut to 0 .. `limits` [B, 2] (width, height of each image)."""
    high = limits.to(boxes.dtype).repeat(1, 2).view(-1, *[1] * (boxes.ndim - 2), 4)
    return torch.minimum(boxes.clamp(min=0), high)
