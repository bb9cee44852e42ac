"""Pictures for people: predictions and truth of every task, drawn onto the image.

Sizes follow the image, so that a picture of 200 pixels and a scan of 8,000 both read well on a screen, and follow the object, so
that an outline never hides what it surrounds. Labels avoid each other; see `draw_instances` for the rule. Class maps and panoptic
maps are drawn by `core.draw_maps`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.draw_maps import draw_panoptic, draw_semantic
from pelagia.core.draw_text import box_areas, place, tab
from pelagia.core.masks import clip
from pelagia.core.oriented import to_corners
from pelagia.core.palette import NEUTRAL, ONE_CLASS, Colour, Picture, colour, display, shade
from pelagia.core.types import Category, Float, Instances, MaskCrop, Prediction, SemanticMap

__all__ = ["colour", "display", "draw_instances", "draw_prediction"]

_MASK_OPACITY = 0.35
#: A predicted keypoint is drawn from this score on, and as one that is seen, not hidden, from the second.
_POINT_SCORES = (0.2, 0.5)
#: Sub-pixel bits of OpenCV's drawing functions.
_SHIFT = 4


def draw_prediction(
    image: NDArray[Any],
    prediction: Prediction,
    categories: Sequence[Category],
    *,
    scores: bool = True,
    labels: bool = True,
    legend: bool = True,
    overwrite: bool = False,
) -> Picture:
    """A copy of `image` as uint8 RGB with an answer of any kind: see `draw_instances`, `draw_semantic` and `draw_panoptic`.

    Args:
        scores: write them beside the names of objects.
        labels: name the objects.
        legend: put the classes of a map below the picture, which then is higher than the image.
        overwrite: draw into `image` itself where that is uint8 RGB, as `display` does: a copy of a scan takes memory.

    Raises:
        OptionError: a map is not of the size of the image.
    """
    if isinstance(prediction, Instances):
        return draw_instances(image, prediction, categories, scores=scores, labels=labels, overwrite=overwrite)
    if isinstance(prediction, SemanticMap):
        return draw_semantic(image, prediction, categories, legend=legend, overwrite=overwrite)
    return draw_panoptic(image, prediction, categories, scores=scores, labels=labels, legend=legend, overwrite=overwrite)


def draw_instances(
    image: NDArray[Any],
    instances: Instances,
    classes: Sequence[str] | Sequence[Category],
    *,
    scores: bool = True,
    labels: bool = True,
    overwrite: bool = False,
) -> Picture:
    """A copy of `image` as uint8 RGB [H, W, 3] with its objects: masks, boxes or oriented boxes, keypoints and labels.

    With s = sqrt(H W), lines are s / 450 pixels wide, at most a tenth of the object's shorter side, and text is s / 50 high, but
    never less than 10 pixels. Masks are translucent with an outline on their inner side. Masks and poses of one class differ in
    the shade of its colour, since they touch and overlap. Points are joined by the skeleton of a `Category`; those that are seen
    are filled, hidden ones hollow (predicted ones are seen from a score of 0.5 on, and not drawn below 0.2). Regions to ignore
    are grey and have no label.

    Label rule. A scene is crowded when all labels together would cover more than a tenth of it; then text is only so high that
    they cover a tenth, or a quarter of the object's longer side where that is more. Where a tenth of the scene has no room for
    the latter (or for 10 pixels), a label wider than twice that side is not drawn. The best object of each class comes first,
    then all by score (truth: by size). A label is tried above its box, inside it, below and beside it; with its score, without
    it, then in half the height and so on down to a quarter of the object's longer side. It must lie in the image, touch no other
    label, and cover at most a third (crowded: a tenth) of any other object. Where nothing fits it is dropped, but the best object
    of each class always keeps one.
    """
    picture = display(image, overwrite=overwrite)
    if len(instances) == 0:
        return picture
    height, width = picture.shape[:2]
    side = math.sqrt(height * width)
    boxes = instances.box_array
    colours = _colours(instances)
    if instances.masks is not None:
        for own, mask in zip(colours, instances.masks, strict=True):
            _fill(picture, mask, own)
    corners = None if instances.oriented is None else to_corners(instances.oriented)
    # Large objects first, so that small ones lie on top.
    for index in np.argsort(-box_areas(boxes), kind="stable").tolist():
        own = colours[index]
        x1, y1, x2, y2 = boxes[index]
        shape = boxes[index, 2:] - boxes[index, :2] if corners is None else instances.oriented[index, 2:4]  # type: ignore[index]
        line = max(1, min(round(side / 450), round(float(min(shape)) / 10)))
        if instances.masks is not None:
            _outline(picture, instances.masks[index], own, line)
        if corners is not None:
            _polygon(picture, corners[index], own, line)
        elif instances.masks is None:
            _rectangle(picture, (x1, y1, x2, y2), own, line)
        if instances.keypoints is not None:
            joints = _seen(instances.keypoints[index], predicted=instances.scores is not None)
            _keypoints(picture, joints, _skeleton(classes, int(instances.labels[index])), own, max(2, round(1.5 * line)))
    if labels:
        names = [item if isinstance(item, str) else item.name for item in classes]
        for text, rect, size, own in place(instances, boxes, names, (width, height), scores, colours):
            tab(picture, text, rect, size, own)
    return picture


def _colours(instances: Instances) -> list[Colour]:
    """Of each object: of its class, grey for a region to ignore; masks and poses get shades, since they touch and overlap."""
    found = []
    shaded = instances.keypoints is not None or instances.masks is not None
    strength = ONE_CLASS if len(np.unique(instances.labels)) == 1 else 1.0
    seen: dict[int, int] = {}
    for label, ignored in zip(instances.labels.tolist(), instances.ignore.tolist(), strict=True):
        step = seen[label] = seen.get(label, -1) + 1
        found.append(NEUTRAL if ignored else shade(colour(label), step if shaded else 0, strength))
    return found


def _skeleton(classes: Sequence[str] | Sequence[Category], label: int) -> tuple[tuple[int, int], ...]:
    item = classes[label] if label < len(classes) else ""
    return () if isinstance(item, str) else item.skeleton


def _seen(points: Float, *, predicted: bool) -> Float:
    """[K, 3] with v = 0 for points to leave out, 1 for hidden ones, 2 for those that are seen."""
    if not predicted:
        return points
    least, sure = _POINT_SCORES
    return np.concatenate([points[:, :2], ((points[:, 2:] >= least) * 1.0 + (points[:, 2:] >= sure))], axis=1)


# Shapes


def _fill(picture: Picture, mask: MaskCrop, own: Colour) -> None:
    crop = clip(mask, picture.shape[1], picture.shape[0])
    rows, columns = crop.bitmap.shape
    part = picture[crop.y : crop.y + rows, crop.x : crop.x + columns]
    blended = part[crop.bitmap] * (1 - _MASK_OPACITY) + np.array(own) * _MASK_OPACITY
    part[crop.bitmap] = np.rint(blended).astype(np.uint8)


def _outline(picture: Picture, mask: MaskCrop, own: Colour, line: int) -> None:
    """The outermost `line` pixels of the mask, so that the outlines of objects that touch stay apart."""
    crop = clip(mask, picture.shape[1], picture.shape[0])
    if crop.bitmap.size == 0:
        return
    inside = np.pad(crop.bitmap.astype(np.uint8), line)
    core = cv2.erode(inside, np.ones((2 * line + 1, 2 * line + 1), dtype=np.uint8))[line:-line, line:-line]
    rows, columns = crop.bitmap.shape
    picture[crop.y : crop.y + rows, crop.x : crop.x + columns][crop.bitmap & (core == 0)] = own


def _fixed(points: Float) -> NDArray[np.int32]:
    """Continuous coordinates -> OpenCV's fixed point, whose origin is the centre of the first pixel."""
    return np.clip(np.rint((points - 0.5) * (1 << _SHIFT)), -(2**30), 2**30).astype(np.int32)


def _polygon(picture: Picture, corners: Float, own: Colour, line: int) -> None:
    cv2.polylines(picture, [_fixed(corners)], True, own, line, cv2.LINE_AA, _SHIFT)


def _rectangle(picture: Picture, box: tuple[float, float, float, float], own: Colour, line: int) -> None:
    # The line lies on the inner side of the box's edge, and inside the image, so that a box at the border shows all four sides.
    height, width = picture.shape[:2]
    x1, y1 = max(round(box[0]), 0), max(round(box[1]), 0)
    x2, y2 = min(max(round(box[2]), x1 + 1), width), min(max(round(box[3]), y1 + 1), height)
    if x1 >= x2 or y1 >= y2:
        return
    picture[y1 : y1 + line, x1:x2] = own
    picture[max(y2 - line, y1) : y2, x1:x2] = own
    picture[y1:y2, x1 : x1 + line] = own
    picture[y1:y2, max(x2 - line, x1) : x2] = own


def _keypoints(picture: Picture, points: Float, skeleton: Sequence[tuple[int, int]], own: Colour, radius: int) -> None:
    """Limbs with a dark rim, then the points over them in white rings; hidden points (v = 1) are hollow."""
    limb = max(2, round(radius * 0.7))
    rim = limb + 2 * (limb // 3)  # none on small figures, which it would hide
    drawn = [(a, b) for a, b in skeleton if max(a, b) < len(points) and points[a, 2] > 0 and points[b, 2] > 0]
    for width, ink in ((rim, (0, 0, 0)), (limb, own)):
        for a, b in drawn:
            ends = _fixed(points[[a, b], :2])
            cv2.line(picture, ends[0].tolist(), ends[1].tolist(), ink, width, cv2.LINE_AA, _SHIFT)
    for (x, y), v in zip(_fixed(points[:, :2]).tolist(), points[:, 2], strict=True):
        if v > 0:
            cv2.circle(picture, (x, y), (radius + 1) << _SHIFT, (255, 255, 255), -1, cv2.LINE_AA, _SHIFT)
            cv2.circle(picture, (x, y), radius << _SHIFT, own, 1 if v == 1 else -1, cv2.LINE_AA, _SHIFT)
