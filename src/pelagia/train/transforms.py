"""Any torchvision v2 transform in the place of the built-in augmentation.

    transform = TorchvisionTransform(v2.Compose([v2.RandomHorizontalFlip(), v2.RandomResizedCrop(640)]))
    pelagia.train("yolo11n", data, transform=transform)

A sample becomes tv_tensors (image, boxes, masks, keypoints), goes through the transform, and comes back. The adapter for
Albumentations is `pelagia.data.albumentations`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.types import IGNORE_INDEX, Category, Float, Instances, SemanticMap
from pelagia.data.sample import Sample
from pelagia.errors import DataError, MissingExtraError

__all__ = ["TorchvisionTransform", "from_tv", "to_tv"]

#: An object of which less than this many pixels are left along a side is gone.
_LEAST_SIDE_PX = 1.0


@dataclass(frozen=True)
class TorchvisionTransform:
    """`transform` applied to a sample with random numbers from the sample's own generator.

    Args:
        transform: takes and returns a dictionary with `image`, `boxes`, `labels`, and where the sample has them `masks` and
            `keypoints`; every v2 transform does. It may remove objects (`v2.SanitizeBoundingBoxes`) and change the size.
        categories: whose `flip` says which keypoints change places when the image is mirrored.
    """

    transform: Callable[[Any], Any]
    categories: Sequence[Category] = ()

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The transformed sample, objects outside the image removed and boxes cut at its border.

        Raises:
            DataError: the transform returned an image that is no intensities any more (such as after `v2.Normalize`).
        """
        # v2 transforms draw from torch's global generator; the training's own stream is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            changed = self.transform(to_tv(sample))
        return from_tv(changed, sample, self.categories)


def to_tv(sample: Sample) -> dict[str, Any]:
    """A sample as tv_tensors.

    `image` [C, H, W]; `boxes` XYXY, or CXCYWHR in torchvision's degrees counter-clockwise where the sample has oriented boxes;
    `labels` [N] are rows of the truth, not classes, so that what the transform removes is known; `masks` [N, H, W];
    `semantic` [H, W] is the class map plus one, 0 where it is to be ignored: transforms fill what they uncover with 0;
    `keypoints` [N, K, 2] in pixel indices (torchvision mirrors x to W - 1 - x). `probe` is a small triangle, whose sense of
    rotation tells whether the image was mirrored.
    """
    truth = sample.truth
    height, width = sample.image.shape[:2]
    size = (height, width)
    image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
    if truth.oriented is None:
        boxes: Any = tv_tensors.BoundingBoxes(torch.from_numpy(truth.box_array.copy()), format="XYXY", canvas_size=size)
    else:
        _need("CXCYWHR", hasattr(tv_tensors.BoundingBoxFormat, "CXCYWHR"))
        turned = truth.oriented.copy()
        turned[:, 4] = -np.rad2deg(turned[:, 4])
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(turned), format="CXCYWHR", canvas_size=size)
    values: dict[str, Any] = {"image": tv_tensors.Image(image), "boxes": boxes, "labels": torch.arange(len(truth))}
    if truth.masks is not None:
        bitmaps = [core_masks.paste(crop, height, width) for crop in truth.masks]
        stacked = np.stack(bitmaps) if bitmaps else np.zeros((0, height, width), dtype=np.bool_)
        values["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
    if sample.semantic is not None:
        labels = sample.semantic.labels.astype(np.int32)
        values["semantic"] = tv_tensors.Mask(torch.from_numpy(np.where(labels == IGNORE_INDEX, 0, labels + 1)))
    if truth.keypoints is not None:
        _need("KeyPoints", hasattr(tv_tensors, "KeyPoints"))
        values["keypoints"] = tv_tensors.KeyPoints(torch.from_numpy(truth.keypoints[..., :2] - 0.5), canvas_size=size)
        middle = torch.tensor([width / 2, height / 2], dtype=torch.float64)
        corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        values["probe"] = tv_tensors.KeyPoints(middle + corners, canvas_size=size)
    return values


def from_tv(values: dict[str, Any], sample: Sample, categories: Sequence[Category] = ()) -> Sample:
    """What a transform made of `to_tv(sample)`, as a sample again.

    Raises:
        DataError: the image is not [1 or 3, H, W], or its values are no intensities.
    """
    image = _pixels(values["image"], sample)
    height, width = image.shape[:2]
    rows = torch.as_tensor(values["labels"]).cpu().numpy().astype(np.int64)
    before = len(sample.truth)
    truth = sample.truth.select(rows).replace(areas=None)

    def kept(name: str) -> NDArray[Any]:
        """The transform's values; some transforms remove the rows of boxes and labels only."""
        array: NDArray[Any] = torch.as_tensor(values[name]).detach().cpu().numpy()
        return array[rows] if len(array) == before != len(rows) else array

    boxes = kept("boxes").astype(np.float64)
    if truth.oriented is not None:
        boxes[:, 4] = -np.deg2rad(boxes[:, 4])
        turned = core_oriented.canonical(boxes)
        truth = truth.replace(oriented=turned, boxes=core_oriented.bounds(turned))
    else:
        truth = truth.replace(boxes=boxes)
    if truth.masks is not None:
        crops = tuple(core_masks.crop_from_bitmap(bitmap.astype(np.bool_)) for bitmap in kept("masks"))
        tight = np.array([core_masks.bounds(crop) for crop in crops]).reshape(-1, 4)
        truth = truth.replace(masks=crops)
        if truth.oriented is None:
            truth = truth.replace(boxes=tight)  # a turned box is loose, a turned mask is not
    if truth.keypoints is not None:
        truth = truth.replace(keypoints=_keypoints(kept("keypoints"), truth, values["probe"], categories, (width, height)))
    semantic = None
    if sample.semantic is not None:
        coded = torch.as_tensor(values["semantic"]).cpu().numpy()
        if coded.shape != (height, width):
            text = f"the transform made a class map of {list(coded.shape)} for an image of {[height, width]}"
            raise DataError(text, where=sample.name)
        labels: NDArray[Any] = np.where(coded == 0, IGNORE_INDEX, coded - 1).astype(sample.semantic.labels.dtype)
        semantic = SemanticMap(labels)
    return replace(sample, image=image, truth=_inside(truth, width, height), semantic=semantic)


def _pixels(image: Tensor, sample: Sample) -> NDArray[Any]:
    """[H, W, 3] of the sample's type; float images in [0, 1] are scaled back."""
    values = torch.as_tensor(image).detach().cpu()
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise DataError(f"the transform must return one image [1 or 3, H, W], got {list(values.shape)}", where=sample.name)
    if values.is_floating_point():
        if values.numel() and (float(values.min()) < -1e-3 or float(values.max()) > 1 + 1e-3):
            raise DataError("the transform returned values outside [0, 1]; leave normalisation to the model", where=sample.name)
        values = (values.clamp(0, 1) * float(np.iinfo(sample.image.dtype).max)).round()
    plain: NDArray[Any] = values.permute(1, 2, 0).numpy().astype(sample.image.dtype)
    return np.ascontiguousarray(np.repeat(plain, 3, axis=2) if plain.shape[2] == 1 else plain)


def _keypoints(moved: Float, truth: Instances, probe: Tensor, categories: Sequence[Category], size: tuple[int, int]) -> Float:
    assert truth.keypoints is not None
    points = truth.keypoints.copy()
    points[..., :2] = moved + 0.5
    corners = torch.as_tensor(probe).cpu().numpy().astype(np.float64)
    (ax, ay), (bx, by) = corners[1] - corners[0], corners[2] - corners[0]
    if ax * by - ay * bx < 0:
        for row, label in enumerate(truth.labels):
            partner = categories[label].flip if label < len(categories) else ()
            if len(partner) == points.shape[1]:
                points[row] = points[row, list(partner)]
    outside = ((points[..., :2] < 0) | (points[..., :2] > size)).any(axis=2)
    points[outside] = 0.0
    points[points[..., 2] == 0] = 0.0
    return points


def _inside(truth: Instances, width: int, height: int) -> Instances:
    """Objects that still show; axis-aligned boxes cut at the border, oriented ones kept whole while their centre is inside."""
    boxes = truth.box_array.copy()
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    shown = ((boxes[:, 2:] - boxes[:, :2]) >= _LEAST_SIDE_PX).all(axis=1)
    if truth.oriented is not None:
        centres = truth.oriented[:, :2]
        shown &= ((centres >= 0) & (centres <= (width, height))).all(axis=1)
    if truth.masks is not None:
        shown &= np.array([crop.area > 0 for crop in truth.masks], dtype=np.bool_)
    return truth.replace(boxes=boxes).select(np.flatnonzero(shown))


def _need(what: str, present: bool) -> None:
    if not present:
        raise MissingExtraError(f"this torchvision has no {what}; upgrade it to 0.23 or later: pip install -U torchvision")
