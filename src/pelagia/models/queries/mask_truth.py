"""What a predictor of mask sets learns: masks of a batch, whatever they are stored as, read at points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pelagia.core.types import IGNORE_INDEX, Task
from pelagia.errors import ModelError
from pelagia.models.targets import Targets, neighbours

__all__ = ["MaskTruth", "mask_truth"]


@dataclass(frozen=True)
class MaskTruth:
    """M masks over B images, never all of them as bitmaps.

    Args:
        labels: [M] int64, class of each mask.
        batch: [M] int64, image of each mask; ascending.
        rows: [M] int64, its row in `targets.masks`; for the task `semantic` unused.
        targets: where the masks are.
        semantic: they are the classes of its label map, not its objects.
        ignored: whether some pixels count for nothing: crowd and ignore regions, or label 255 of a label map.
    """

    labels: Tensor
    batch: Tensor
    rows: Tensor
    targets: Targets
    semantic: bool
    ignored: bool

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, points: Tensor, objects: Tensor) -> Tensor:
        """Masks `objects` [K] at points [K or 1, P, 2] -> [K, P] in [0, 1]."""
        if not self.semantic:
            assert self.targets.masks is not None
            return self.targets.masks.at(points, self.rows[objects])
        return self._labelled(points, self.batch[objects], self.labels[objects])

    def ignored_at(self, points: Tensor, images: Tensor) -> Tensor:
        """[K, P] bool, whether the pixel that holds a point [K, P, 2] of `images` [K] is ignored."""
        height, width = self._size()
        size = torch.tensor([width, height], device=points.device)
        centres = ((points * size).floor().minimum(size - 1) + 0.5) / size  # where interpolation gives the pixel itself
        if self.semantic:
            return self._labelled(centres, images, torch.full_like(images, IGNORE_INDEX)) > 0.5
        assert self.targets.masks is not None
        found = torch.zeros(points.shape[:2], device=points.device, dtype=torch.bool)
        for row in self.targets.ignore.nonzero()[:, 0]:
            chosen = images == self.targets.batch[row]
            found[chosen] |= self.targets.masks.at(centres[chosen], row.expand(int(chosen.sum()))) > 0.5
        return found

    def _size(self) -> tuple[int, int]:
        """Height and width of the images."""
        if self.semantic:
            assert self.targets.semantic is not None
            return self.targets.semantic.shape[1], self.targets.semantic.shape[2]
        assert self.targets.masks is not None
        return self.targets.masks.height, self.targets.masks.width

    def _labelled(self, points: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The share of `labels` [K] around points [K or 1, P, 2] of the label maps of `images` [K]."""
        maps = self.targets.semantic
        assert maps is not None
        total = points.new_zeros(len(images), points.shape[1])
        for x, y, weight, inside in neighbours(points, maps.shape[1], maps.shape[2]):
            total += weight * (inside & (maps[images[:, None], y, x] == labels[:, None]))
        return total


def mask_truth(targets: Targets, task: Task, where: str) -> MaskTruth:
    """The masks to learn: one per object (`instance`, `panoptic`) or one per class that an image shows (`semantic`).

    Objects flagged `ignore` and pixels of label 255 are no masks of their own, and pixels in them count for nothing.

    Raises:
        ModelError: the targets lack what the task needs.
    """
    if task == "semantic":
        if targets.semantic is None:
            raise ModelError("the semantic task needs a label map in the targets", where=where)
        shown = [value[value != IGNORE_INDEX].unique() for value in targets.semantic]
        labels = torch.cat(shown)
        counts = torch.tensor([len(value) for value in shown], device=labels.device)
        batch = torch.repeat_interleave(torch.arange(targets.size, device=labels.device), counts)
        return MaskTruth(labels, batch, batch, targets, True, bool((targets.semantic == IGNORE_INDEX).any()))
    if targets.masks is None:
        raise ModelError(f"the {task} task needs masks in the targets", where=where)
    kept = (~targets.ignore).nonzero()[:, 0]
    return MaskTruth(targets.labels[kept], targets.batch[kept], kept, targets, False, bool(targets.ignore.any()))
