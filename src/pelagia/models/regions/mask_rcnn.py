"""Mask R-CNN: Faster R-CNN that also draws each object's mask.

He, Gkioxari, Dollár & Girshick, "Mask R-CNN", ICCV 2017 (arXiv:1703.06870). A third head answers with one binary mask per class;
the class comes from the box head, so that masks of different classes do not compete. `mask-rcnn-v2` as `faster-rcnn-v2`, with
batch norms in the mask head.

    detections -> RoIAlign 14 x 14 -> four convolutions -> transposed convolution -> 28 x 28 logits of each class

Reference weights: torchvision, BSD-3-Clause. Departures as in `faster_rcnn`; masks are learnt from crops, and `decode.regions`
draws them at the centres of the original's pixels, without rounding boxes to whole pixels first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from pelagia.core.types import Category, Task
from pelagia.errors import ModelError, OptionError
from pelagia.models.model import MaskCrops, Targets
from pelagia.models.regions import faster_rcnn
from pelagia.nn.roi import MaskHead, regions_of

__all__ = ["MaskRCNN", "Options", "mask_targets"]

#: Side of the regions that the mask head sees; its masks are twice as fine.
_POOLED: Final = 14
#: Bitmaps of the input's size that are laid out at a time.
_AT_ONCE: Final = 16


@dataclass(frozen=True)
class Options(faster_rcnn.Options):
    """Options of Mask R-CNN, saved in its checkpoint.

    Args:
        mask_channels: of the mask head.
        mask_convs: convolutions of the mask head.
    """

    mask_channels: int = 256
    mask_convs: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_channels < 1 or self.mask_convs < 0:
            raise OptionError("mask_channels must be at least 1 and mask_convs not negative")


@final
class MaskRCNN(faster_rcnn.TwoStage):
    """Mask R-CNN for the task `instance`."""

    def __init__(
        self, name: str, categories: tuple[Category, ...], task: Task, input_size: tuple[int, int], options: Options
    ) -> None:
        if task != "instance":
            raise ModelError(f"{name} answers the task instance, not {task!r}")
        super().__init__(name, categories, task, input_size, options)
        self.mask_head = MaskHead(
            options.channels, options.mask_channels, len(categories), options.mask_convs, norm=options.norm_heads
        )

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """As Faster R-CNN, and `masks` [B, D, 28, 28], logits of the detection's class over its box.

        With `targets`, `masks` [P, 28, 28] are those of the drawn regions that have an object, in their order, of its class.

        Raises:
            ModelError: a side of the images is not a multiple of 32.
        """
        stage = self.first_stage(images, valid, learning=targets is not None)
        if targets is not None:
            outputs = self.sample(stage, targets)
            rows = self.learnt_rows(outputs)
            logits = self.mask_head(self.pool(stage, outputs["regions"][rows], _POOLED))
            return outputs | {"masks": _of_class(logits, _labels(outputs["region_objects"][rows], targets))}
        outputs, some = self.detect(stage)
        rows = self.rows_of(some)
        logits = self.mask_head(self.pool(stage, regions_of(outputs["boxes"])[rows], _POOLED))
        chosen = _of_class(logits, outputs["labels"].flatten()[rows])
        return outputs | {"masks": self.padded(chosen, rows, some)}

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The four terms of Faster R-CNN, and `mask`: the mean binary cross-entropy of the pixels of the masks."""
        if targets.masks is None:
            raise ModelError("the instance task needs masks in the targets", where=self.card.name)
        objects = outputs["region_objects"][self.learnt_rows(outputs)]
        regions = outputs["regions"][self.learnt_rows(outputs), 1:]
        known = objects >= 0
        logits = outputs["masks"].float()
        wanted = mask_targets(targets.masks, objects[known], regions[known], logits.shape[-1])
        entropy = F.binary_cross_entropy_with_logits(logits[known], wanted, reduction="sum")
        pixels = self.counted(known) * logits.shape[-1] ** 2
        return self.box_terms(outputs, targets) | {"mask": entropy / pixels}


def _labels(objects: Tensor, targets: Targets) -> Tensor:
    """Labels of objects; 0 in place of what has none."""
    return torch.where(objects >= 0, targets.labels[objects.clamp(min=0)], 0) if len(targets.labels) else objects * 0


def _of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """[R, classes + 1, m, m] -> [R, m, m], the mask of each label."""
    index = (labels + 1)[:, None, None, None].expand(-1, 1, *logits.shape[2:])
    return logits.gather(1, index)[:, 0]


def mask_targets(masks: MaskCrops, objects: Tensor, boxes: Tensor, size: int) -> Tensor:
    """[P, size, size] in [0, 1]: the masks `objects` [P] seen through `boxes` [P, 4], by RoIAlign of their bitmaps.

    A bin is the mean of bilinear samples, about one a pixel.
    """
    parts = [boxes.new_zeros(0, size, size)]
    for rows, seen in zip(torch.split(objects, _AT_ONCE), torch.split(boxes, _AT_ONCE), strict=True):
        bitmaps = masks.dense(rows)[:, None].to(boxes.dtype)
        parts.append(roi_align(bitmaps, regions_of(seen[:, None]), (size, size), 1.0)[:, 0])
    return torch.cat(parts)
