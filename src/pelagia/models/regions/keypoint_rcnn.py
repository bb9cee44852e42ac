"""Keypoint R-CNN: Faster R-CNN that also finds each object's K keypoints.

He, Gkioxari, Dollár & Girshick, "Mask R-CNN", ICCV 2017 (arXiv:1703.06870), section 5. Each keypoint is a mask with one pixel
set: a softmax over the 56 x 56 cells of its map, learnt with cross-entropy. All classes share the maps.

    detections -> RoIAlign 14 x 14 -> eight convolutions -> transposed convolution, bilinear -> K maps of 56 x 56 logits

Reference weights: torchvision, BSD-3-Clause. Departures as in `faster_rcnn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor
from torch.nn import functional as F

from pelagia.core.types import Category, Task
from pelagia.errors import ModelError, OptionError
from pelagia.models.model import Targets
from pelagia.models.regions import faster_rcnn
from pelagia.nn.roi import KeypointHead, regions_of

__all__ = ["KeypointRCNN", "Options", "keypoint_cells"]

#: Side of the regions that the keypoint head sees; its maps are four times as fine.
_POOLED: Final = 14


@dataclass(frozen=True)
class Options(faster_rcnn.Options):
    """Options of Keypoint R-CNN, saved in its checkpoint.

    Args:
        keypoint_channels: of the keypoint head.
        keypoint_convs: convolutions of the keypoint head.
    """

    keypoint_channels: int = 512
    keypoint_convs: int = 8
    detections: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keypoint_channels < 1 or self.keypoint_convs < 0:
            raise OptionError("keypoint_channels must be at least 1 and keypoint_convs not negative")


@final
class KeypointRCNN(faster_rcnn.TwoStage):
    """Keypoint R-CNN for the task `keypoints`."""

    def __init__(
        self, name: str, categories: tuple[Category, ...], task: Task, input_size: tuple[int, int], options: Options
    ) -> None:
        if task != "keypoints":
            raise ModelError(f"{name} answers the task keypoints, not {task!r}")
        super().__init__(name, categories, task, input_size, options)
        counts = {len(category.keypoints) for category in categories}
        if len(counts) != 1 or 0 in counts:
            raise ModelError(f"{name} needs classes with keypoints, all with as many; these have {sorted(counts)}")
        self.keypoint_head = KeypointHead(options.channels, options.keypoint_channels, counts.pop(), options.keypoint_convs)

    def forward(self, images: Tensor, valid: Tensor | None = None, targets: Targets | None = None) -> dict[str, Tensor]:
        """As Faster R-CNN, and `heatmaps` [B, D, K, 56, 56], logits over the cells of the detection's box.

        With `targets`, `heatmaps` [P, K, 56, 56] are those of the drawn regions that have an object, in their order.

        Raises:
            ModelError: a side of the images is not a multiple of 32.
        """
        stage = self.first_stage(images, valid, learning=targets is not None)
        if targets is not None:
            outputs = self.sample(stage, targets)
            regions = outputs["regions"][self.learnt_rows(outputs)]
            return outputs | {"heatmaps": self.keypoint_head(self.pool(stage, regions, _POOLED))}
        outputs, some = self.detect(stage)
        rows = self.rows_of(some)
        found = self.keypoint_head(self.pool(stage, regions_of(outputs["boxes"])[rows], _POOLED))
        return outputs | {"heatmaps": self.padded(found, rows, some)}

    def loss(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The four terms of Faster R-CNN, and `keypoint`: the mean cross-entropy of the labelled keypoints inside a region."""
        if targets.keypoints is None:
            raise ModelError("the keypoints task needs keypoints in the targets", where=self.card.name)
        rows = self.learnt_rows(outputs)
        objects, regions, logits = outputs["region_objects"][rows], outputs["regions"][rows, 1:], outputs["heatmaps"].float()
        known = objects >= 0
        cells, inside = keypoint_cells(targets.keypoints[objects[known]].float(), regions[known], logits.shape[-1])
        found = logits[known].flatten(2)[inside]  # [L, cells]
        entropy = F.cross_entropy(found, cells[inside], reduction="sum")
        return self.box_terms(outputs, targets) | {"keypoint": entropy / self.counted(inside)}


def keypoint_cells(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cell [P, K] int64 of a size x size map over each box [P, 4] that holds each of the keypoints [P, K, 3].

    Second: [P, K] bool, labelled and inside; the cell of others is 0. A keypoint on the right or lower edge counts as inside.
    """
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-2)
    scaled = (keypoints[..., :2] - boxes[:, None, :2]) * (size / side)[:, None]
    cell = scaled.floor().long()
    cell = torch.where(keypoints[..., :2] == boxes[:, None, 2:], size - 1, cell)
    inside = ((cell >= 0) & (cell < size)).all(-1) & (keypoints[..., 2] > 0)
    return torch.where(inside, cell[..., 1] * size + cell[..., 0], 0), inside
