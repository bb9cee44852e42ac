"""An Albumentations pipeline in place of `augment`.

The adapter is written against albumentations 2.0.8, the last release under the MIT licence. Its boxes share our continuous
coordinates; its points count from the centre of the first pixel, ours from its corner, hence the half pixel below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pelagia.core import masks as mask_crops
from pelagia.core import oriented as oriented_boxes
from pelagia.core.lazy import resolve
from pelagia.core.types import IGNORE_INDEX, Category, Float, Instances, SemanticMap
from pelagia.data.augment import Transform
from pelagia.data.geometry import IDENTITY, Keep, follow, mirror_keypoints
from pelagia.data.sample import Sample
from pelagia.errors import OptionError

__all__ = ["from_albumentations"]


def from_albumentations(pipeline: Any, categories: Sequence[Category] = (), keep: Keep | None = None) -> Transform:
    """A function (sample, generator) -> sample that applies `pipeline`: a Compose, a transform, or a list of transforms.

    The pipeline's own box and keypoint settings are replaced. It is seeded anew for each sample from the generator, so that a
    sample is repeatable. Oriented boxes travel as their corners and become the rectangle of least area around them; where there
    are masks, boxes become their bounds; `categories` names the points that change places when the pipeline mirrors. `keep` says
    what stays after a cut. Masks travel as whole bitmaps, which costs memory on large images. A class map travels as the mask of
    the image, its labels plus one: what a transform uncovers is filled with 0, which means to be ignored.

    Raises:
        MissingExtraError: albumentations is not installed.
        OptionError: a transform of the pipeline removes points, so that corners cannot be followed (when applied).
    """
    library = resolve("albumentations", purpose="apply an Albumentations pipeline")
    keep = keep or Keep()
    if hasattr(pipeline, "transforms"):
        steps = list(pipeline.transforms)
    else:
        steps = list(pipeline) if isinstance(pipeline, Sequence) else [pipeline]
    compose = library.Compose(
        steps,
        bbox_params=library.BboxParams(
            format="pascal_voc",
            label_fields=["positions"],
            min_visibility=keep.visible,
            min_width=keep.side_px,
            min_height=keep.side_px,
            clip=True,
            filter_invalid_bboxes=True,
        ),
        keypoint_params=library.KeypointParams(format="xy", remove_invisible=False),
    )

    def apply(sample: Sample, rng: np.random.Generator) -> Sample:
        compose.set_random_seed(int(rng.integers(2**31)))
        return _apply(compose, sample, categories, keep)

    return apply


def _apply(compose: Any, sample: Sample, categories: Sequence[Category], keep: Keep) -> Sample:
    truth, (height, width) = sample.truth, sample.image.shape[:2]
    plain = truth.oriented is None
    bitmaps = [mask_crops.paste(crop, height, width).astype(np.uint8) for crop in truth.masks or ()]
    sent = _points(truth, width, height) - 0.5
    maps = {}
    if sample.semantic is not None:
        labels = sample.semantic.labels
        maps["mask"] = np.where(labels == IGNORE_INDEX, 0, labels.astype(np.uint16) + 1).astype(np.uint8)
    result = compose(
        image=sample.image,
        bboxes=truth.box_array if plain else np.zeros((0, 4)),
        positions=np.arange(len(truth)) if plain else np.zeros(0),
        keypoints=sent,
        **({"masks": np.stack(bitmaps)} if bitmaps else {}),
        **maps,
    )
    image = np.ascontiguousarray(result["image"]).reshape(*result["image"].shape[:2], -1)
    points = np.asarray(result["keypoints"], dtype=np.float64).reshape(-1, 2) + 0.5
    if len(points) != len(sent):
        raise OptionError("a transform of the Albumentations pipeline removes points; boxes and keypoints cannot follow it")
    moved = _with_points(truth, points, categories)
    if truth.masks is not None:
        moved = moved.replace(
            masks=tuple(mask_crops.crop_from_bitmap(np.asarray(bitmap) > 0) for bitmap in result.get("masks", ()))
        )
    if plain:
        positions = np.asarray(result["positions"], dtype=np.int64).reshape(-1)
        boxes = np.asarray(result["bboxes"], dtype=np.float64).reshape(-1, 4)
        moved = moved.select(positions).replace(boxes=boxes)
    if moved.masks is not None:
        filled = np.array([crop.area > 0 for crop in moved.masks], dtype=np.bool_)
        moved = moved.select(filled)
        moved = moved.replace(boxes=np.array([mask_crops.bounds(crop) for crop in moved.masks or ()]).reshape(-1, 4))
    size = (image.shape[1], image.shape[0])
    moved = follow(moved, IDENTITY, size, (0, 0, *size), keep, categories)
    semantic = None
    if maps:
        coded = np.asarray(result["mask"], dtype=np.uint8)
        semantic = SemanticMap(np.where(coded == 0, IGNORE_INDEX, coded - 1).astype(np.uint8))
    return Sample(image=image, truth=moved, name=sample.name, index=sample.index, semantic=semantic)


def _points(truth: Instances, width: int, height: int) -> Float:
    """Three probes of handedness, the corners of oriented boxes, the keypoints: [M, 2]."""
    parts = [np.array([[0, 0], [width, 0], [0, height]], dtype=np.float64)]
    if truth.oriented is not None:
        parts.append(oriented_boxes.to_corners(truth.oriented).reshape(-1, 2))
    if truth.keypoints is not None:
        parts.append(truth.keypoints[..., :2].reshape(-1, 2))
    return np.concatenate(parts)


def _with_points(truth: Instances, points: Float, categories: Sequence[Category]) -> Instances:
    """Truth with what `_points` sent and the pipeline moved."""
    origin, right, below = points[:3]
    first, second = right - origin, below - origin
    mirrored = bool(first[0] * second[1] - first[1] * second[0] < 0)
    points = points[3:]
    if truth.oriented is not None:
        count = 4 * len(truth)
        oriented = oriented_boxes.from_corners(points[:count].reshape(-1, 4, 2))
        truth = truth.replace(oriented=oriented)
        if truth.boxes is not None:
            truth = truth.replace(boxes=oriented_boxes.bounds(oriented))
        points = points[count:]
    if truth.keypoints is not None:
        keypoints = truth.keypoints.copy()
        keypoints[..., :2] = points.reshape(*keypoints.shape[:2], 2)
        if mirrored:
            keypoints = mirror_keypoints(keypoints, truth.labels, categories)
        truth = truth.replace(keypoints=keypoints)
    return truth.replace(areas=None)
