"""Regions of interest: pooling from a feature pyramid, and the heads that look at what was pooled."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from pelagia.nn.layers import conv_relu

__all__ = ["BoxHead", "KeypointHead", "MaskHead", "pool_regions", "regions_of"]

#: Side of the region that belongs on the level of stride 16 (Lin et al., 2017, eq. 1): the input of ImageNet networks.
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 4
#: RoIAlign samples so many points a bin and side.
_SAMPLES = 2


def regions_of(boxes: Tensor) -> Tensor:
    """Boxes [B, N, 4] -> [B N, 5], the number of the image before each box."""
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    return torch.cat((image[:, None, None].expand(-1, boxes.shape[1], 1), boxes), dim=2).flatten(0, 1)


def pool_regions(levels: tuple[Tensor, ...], strides: tuple[int, ...], regions: Tensor, size: int) -> Tensor:
    """RoIAlign (He et al., "Mask R-CNN", ICCV 2017, section 3) of regions [R, 5] -> [R, C, size, size].

    A region of w x h input pixels is read from the level of stride 2^k, k = floor(4 + log2(sqrt(w h) / 224)) within those given
    (Lin et al., 2017, eq. 1), each bin as the mean of 2 x 2 bilinear samples. As in the published models the level's coordinates
    are those of the image over the stride, without a shift of half a cell.

    Args:
        levels: maps [B, C, h, w], finest first.
        strides: of the levels, each twice the one before.
        regions: image number, x1, y1, x2, y2 in input pixels.
    """
    width, height = regions[:, 3] - regions[:, 1], regions[:, 4] - regions[:, 2]
    root = (width * height).sqrt()
    first = strides[0].bit_length() - 1
    # The small number keeps a side of exactly 224 2^n from falling a level by rounding.
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(root / _CANONICAL_SIDE) + 1e-6)
    level = level.clamp(first, first + len(levels) - 1).long() - first
    parts = []
    for number, (features, stride) in enumerate(zip(levels, strides, strict=True)):
        mine = torch.nonzero(level == number)[:, 0]
        # In float32 also under mixed precision: half precision does not resolve coordinates.
        found = roi_align(features.float(), regions[mine].float(), (size, size), 1 / stride, sampling_ratio=_SAMPLES)
        parts.append(found.to(features.dtype))
    # A region's place among the concatenated parts: its rank by level, then by number.
    rank = level * level.shape[0] + torch.arange(level.shape[0], device=level.device)
    return torch.cat(parts)[rank.argsort().argsort()]


class BoxHead(nn.Module):
    """Class logits and, per class, box offsets of a pooled region (Girshick, "Fast R-CNN", ICCV 2015).

    Two fully connected layers of `hidden` units, or `convs` normalised convolutions and one such layer (Li et al., "Benchmarking
    detection transfer learning with vision transformers", 2021, arXiv:2111.11429). Class 0 is background.

    Args:
        channels: of the pooled region [R, channels, size, size].
        classes: without background.
    """

    def __init__(self, channels: int, size: int, hidden: int, classes: int, convs: int = 0) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(conv_relu(channels, channels, norm=True) for _ in range(convs)))
        wide = channels * size**2
        layers = [nn.Linear(wide, hidden)] if convs else [nn.Linear(wide, hidden), nn.Linear(hidden, hidden)]
        self.layers = nn.ModuleList(layers)
        self.classes = nn.ModuleDict({"logits": nn.Linear(hidden, classes + 1), "offsets": nn.Linear(hidden, (classes + 1) * 4)})
        _he(self.convs)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """[R, C, s, s] -> logits [R, classes + 1] and offsets [R, classes + 1, 4]."""
        x = self.convs(pooled).flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.classes["logits"](x), self.classes["offsets"](x).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """One binary mask per class (He et al., 2017, figure 4): [R, C, s, s] -> logits [R, classes + 1, 2 s, 2 s], background first.

    Args:
        channels: of the pooled region.
        hidden: of the convolutions.
        norm: batch norm in the convolutions.
    """

    def __init__(self, channels: int, hidden: int, classes: int, convs: int = 4, *, norm: bool = False) -> None:
        super().__init__()
        widths = [channels, *[hidden] * convs]
        self.convs = nn.Sequential(*(conv_relu(a, b, norm=norm) for a, b in pairwise(widths)))
        self.enlarge = nn.ConvTranspose2d(widths[-1], hidden, 2, 2)
        self.classes = nn.Conv2d(hidden, classes + 1, 1)
        _he(self)

    def forward(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.classes(F.relu(self.enlarge(self.convs(pooled))))
        return logits


class KeypointHead(nn.Module):
    """One map per keypoint, the same for all classes (He et al., 2017, section 5): [R, C, s, s] -> logits [R, K, 4 s, 4 s].

    The transposed convolution doubles the side, bilinear interpolation doubles it again.
    """

    def __init__(self, channels: int, hidden: int, points: int, convs: int = 8) -> None:
        super().__init__()
        widths = [channels, *[hidden] * convs]
        self.convs = nn.Sequential(*(conv_relu(a, b) for a, b in pairwise(widths)))
        self.points = nn.ConvTranspose2d(widths[-1], points, 4, 2, padding=1)
        _he(self)

    def forward(self, pooled: Tensor) -> Tensor:
        return F.interpolate(self.points(self.convs(pooled)), scale_factor=2.0, mode="bilinear", align_corners=False)


def _he(module: nn.Module) -> None:
    """Weights by He et al. 2015 (fan out, ReLU), biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
