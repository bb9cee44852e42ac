"""Samples stacked into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pelagia.core import masks as core_masks
from pelagia.core.types import MaskCrop
from pelagia.data.sample import Sample
from pelagia.models.targets import MaskCrops, Targets
from pelagia.nn.intensities import stack_pixels

__all__ = ["Batch", "collate"]


@dataclass(frozen=True)
class Batch:
    """B samples.

    Args:
        images: [B, 3, H, W] stored intensities; channels last in memory, since samples are [H, W, 3].
        targets: their truth in pixels of the samples.
        names: of the images, the first of a mosaic.
        skipped: (name, reason) of images that turned out unreadable while it was made.
        valid: [B, 2] int64, heights and widths of what shows an image, from the upper left corner on; None where all does.
    """

    images: Tensor
    targets: Targets
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    valid: Tensor | None = None

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies while it computes."""
        return replace(self, images=self.images.pin_memory())


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one size into a batch."""
    truths = [sample.truth for sample in samples]
    counts = [len(truth) for truth in truths]
    height, width = samples[0].image.shape[:2]

    def flat(column: Sequence[NDArray[Any]], kind: torch.dtype) -> Tensor:
        return torch.as_tensor(np.concatenate(column)).to(kind)

    oriented = [truth.oriented for truth in truths if truth.oriented is not None]
    keypoints = [truth.keypoints for truth in truths if truth.keypoints is not None]
    maps = [sample.semantic.labels for sample in samples if sample.semantic is not None]
    targets = Targets(
        batch=torch.arange(len(samples)).repeat_interleave(torch.tensor(counts)),
        labels=flat([truth.labels for truth in truths], torch.int64),
        boxes=flat([truth.box_array for truth in truths], torch.float32),
        size=len(samples),
        oriented=flat(oriented, torch.float32) if len(oriented) == len(truths) else None,
        keypoints=flat(keypoints, torch.float32) if len(keypoints) == len(truths) else None,
        masks=_pack([truth.masks for truth in truths if truth.masks is not None], len(truths), height, width),
        semantic=torch.as_tensor(np.stack(maps).astype(np.int64)) if len(maps) == len(truths) else None,
        # Crowds and ignore regions are not background, but no single object either.
        ignore=flat([truth.ignore | truth.crowd for truth in truths], torch.bool),
    )
    shown = [(width, height) if sample.shown is None else sample.shown[2:] for sample in samples]
    valid = None if all(sample.shown is None for sample in samples) else torch.tensor(shown).flip(1)
    names = tuple(sample.name for sample in samples)
    return Batch(stack_pixels([sample.image for sample in samples]), targets, names, valid=valid)


def _pack(masks: Sequence[tuple[MaskCrop, ...]], samples: int, height: int, width: int) -> MaskCrops | None:
    """The masks of all samples, cut at the border of the input; None unless every sample has masks."""
    if len(masks) != samples:
        return None
    crops = [core_masks.clip(crop, width, height) for part in masks for crop in part]
    shapes = np.array([crop.bitmap.shape for crop in crops], dtype=np.int64).reshape(-1, 2)
    corner = np.array([(crop.x, crop.y) for crop in crops], dtype=np.int64).reshape(-1, 2)
    corner[shapes.prod(axis=1) == 0] = 0  # nothing is left of it
    bits = np.concatenate([np.zeros(0, dtype=np.bool_), *(crop.bitmap.ravel() for crop in crops)])
    windows = np.concatenate([corner, corner + shapes[:, ::-1] * (shapes.prod(axis=1) > 0)[:, None]], axis=1)
    return MaskCrops(torch.from_numpy(bits), torch.from_numpy(windows), height, width)
