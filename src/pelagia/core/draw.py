"""Pictures for people: instances drawn onto an image.

Sizes follow the image, so that a picture of 200 pixels and a scan of 8,000 both read well on a screen, and follow the object, so
that an outline never hides what it surrounds. Labels avoid each other; see `draw_instances` for the rule.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pelagia.core.image import to_rgb
from pelagia.core.oriented import to_corners
from pelagia.core.types import Float, Instances, Mask, MaskCrop

__all__ = ["colour", "display", "draw_instances"]

_Colour: TypeAlias = tuple[int, int, int]
_Picture: TypeAlias = NDArray[np.uint8]
_Rect: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive

#: The palette of Okabe and Ito (2008), told apart under every common colour blindness; black is left out (it is no outline on a
#: dark image) and the order puts the strongest contrasts first.
_BASE: tuple[_Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (204, 121, 167),
)
_NEUTRAL: _Colour = (170, 170, 170)
_SMALLEST_FONT = 10
_MASK_OPACITY = 0.35
#: A label may cover at most this share of another object: in a sparse scene, in a crowded one.
_MOST_COVERED = (1 / 3, 0.1)
#: A scene is crowded when its labels would cover more than this share of it.
_CROWDED = 0.1
#: Sub-pixel bits of OpenCV's drawing functions.
_SHIFT = 4


def colour(label: int) -> _Colour:
    """The colour of a class, RGB in 0 to 255.

    Labels 0 to 6 have the Okabe-Ito colours, 7 to 13 darker and 14 to 20 paler ones (lightness still tells them apart when hue
    does not); from 21 on hues advance by the golden angle.
    """
    tone, base = divmod(label, len(_BASE))
    if tone == 0:
        return _BASE[base]
    if tone == 1:
        return _mix(_BASE[base], (0, 0, 0), 0.45)
    if tone == 2:
        return _mix(_BASE[base], (255, 255, 255), 0.55)
    step = label - 3 * len(_BASE)
    red, green, blue = colorsys.hls_to_rgb(0.618034 * step % 1, (0.45, 0.62, 0.34, 0.75)[step % 4], 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def display(image: NDArray[Any]) -> _Picture:
    """Any image as a fresh uint8 RGB picture [H, W, 3], for looking only: 16 bit is stretched from percentile 0.1 to 99.9."""
    if image.dtype == np.uint8:
        return np.array(to_rgb(image), order="C")
    step = max(1, math.isqrt(image.shape[0] * image.shape[1] // 1_000_000))
    low, high = np.percentile(image[::step, ::step], [0.1, 99.9])
    scale = 255.0 / max(high - low, 1.0)
    table = np.clip((np.arange(np.iinfo(image.dtype).max + 1) - low) * scale + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(to_rgb(table[image]))


def draw_instances(
    image: NDArray[Any],
    instances: Instances,
    class_names: Sequence[str],
    *,
    scores: bool = True,
    labels: bool = True,
    skeleton: Sequence[tuple[int, int]] = (),
) -> _Picture:
    """A copy of `image` as uint8 RGB [H, W, 3] with its objects: masks, boxes or oriented boxes, keypoints and labels.

    With s = sqrt(H W), lines are s / 450 pixels wide, at most a tenth of the object's shorter side, and text is s / 50 high, at
    least 10 pixels. Masks are translucent with an outline. Regions to ignore are grey and have no label.

    Label rule. A scene is crowded when all labels together would cover more than a tenth of it; then text is a quarter of the
    object's longer side, and a label wider than twice that side is not drawn. The best object of each class comes first, then all
    by score (truth: by size). A label is tried above its box, inside it, below and beside it; with its score, without it, then
    smaller. It must lie in the image, touch no other label, and cover at most a third (crowded: a tenth) of any other object.
    Where nothing fits it is dropped, but the best object of each class always keeps one.
    """
    picture = display(image)
    if len(instances) == 0:
        return picture
    height, width = picture.shape[:2]
    side = math.sqrt(height * width)
    boxes = instances.box_array
    if instances.masks is not None:
        for label, ignored, mask in zip(instances.labels, instances.ignore, instances.masks, strict=True):
            _fill(picture, mask, _NEUTRAL if ignored else colour(int(label)))
    corners = None if instances.oriented is None else to_corners(instances.oriented)
    # Large objects first, so that small ones lie on top.
    for index in np.argsort(-_areas(boxes), kind="stable"):
        own = _NEUTRAL if instances.ignore[index] else colour(int(instances.labels[index]))
        x1, y1, x2, y2 = boxes[index]
        shape = boxes[index, 2:] - boxes[index, :2] if corners is None else instances.oriented[index, 2:4]  # type: ignore[index]
        line = max(1, min(round(side / 450), round(float(min(shape)) / 10)))
        if instances.masks is not None:
            _outline(picture, instances.masks[index], own, line)
        if corners is not None:
            _polygon(picture, corners[index], own, line)
        elif instances.masks is None or line > 1:
            _rectangle(picture, (x1, y1, x2, y2), own, line if instances.masks is None else 1)
        if instances.keypoints is not None:
            _keypoints(picture, instances.keypoints[index], skeleton, own, max(2, round(1.5 * line)))
    if labels:
        for text, rect, size, own in _place(instances, boxes, class_names, (width, height), scores):
            _tab(picture, text, rect, size, own)
    return picture


def _mix(first: _Colour, second: _Colour, share: float) -> _Colour:
    red, green, blue = (round(a * (1 - share) + b * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _areas(boxes: Float) -> Float:
    area: Float = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    return area


# Shapes


def _fill(picture: _Picture, mask: MaskCrop, own: _Colour) -> None:
    height, width = mask.bitmap.shape
    x1, y1 = max(mask.x, 0), max(mask.y, 0)
    x2, y2 = min(mask.x + width, picture.shape[1]), min(mask.y + height, picture.shape[0])
    if x1 >= x2 or y1 >= y2:
        return
    inside = mask.bitmap[y1 - mask.y : y2 - mask.y, x1 - mask.x : x2 - mask.x]
    part = picture[y1:y2, x1:x2]
    blended = part[inside] * (1 - _MASK_OPACITY) + np.array(own) * _MASK_OPACITY
    part[inside] = np.rint(blended).astype(np.uint8)


def _outline(picture: _Picture, mask: MaskCrop, own: _Colour, line: int) -> None:
    if mask.bitmap.size == 0:
        return
    bitmap = mask.bitmap.astype(np.uint8)
    contours, _ = cv2.findContours(bitmap, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(mask.x, mask.y))
    cv2.drawContours(picture, contours, -1, own, line, cv2.LINE_AA)


def _fixed(points: Float) -> NDArray[np.int32]:
    """Continuous coordinates -> OpenCV's fixed point, whose origin is the centre of the first pixel."""
    return np.clip(np.rint((points - 0.5) * (1 << _SHIFT)), -(2**30), 2**30).astype(np.int32)


def _polygon(picture: _Picture, corners: Float, own: _Colour, line: int) -> None:
    cv2.polylines(picture, [_fixed(corners)], True, own, line, cv2.LINE_AA, _SHIFT)


def _rectangle(picture: _Picture, box: tuple[float, float, float, float], own: _Colour, line: int) -> None:
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


def _keypoints(picture: _Picture, points: Float, skeleton: Sequence[tuple[int, int]], own: _Colour, radius: int) -> None:
    """Visible points (v >= 0.5 of a score, v = 2 of truth) are filled, hidden ones (v = 1 of truth) hollow."""
    seen = points[:, 2] > 0
    for a, b in skeleton:
        if max(a, b) < len(points) and seen[a] and seen[b]:
            ends = _fixed(points[[a, b], :2])
            cv2.line(picture, ends[0].tolist(), ends[1].tolist(), own, max(1, radius // 2), cv2.LINE_AA, _SHIFT)
    for (x, y), v in zip(_fixed(points[:, :2]).tolist(), points[:, 2], strict=True):
        if v > 0:
            cv2.circle(picture, (x, y), (radius + 1) << _SHIFT, (255, 255, 255), -1, cv2.LINE_AA, _SHIFT)
            cv2.circle(picture, (x, y), radius << _SHIFT, own, 1 if v == 1 else -1, cv2.LINE_AA, _SHIFT)


# Labels


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=4096)
def _extent(text: str, size: int) -> tuple[int, int]:
    """Width and height of a label's tab; the height is the same for all texts."""
    font = _font(size)
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Ålgp")
    return math.ceil(right - left) + 2 * _padding(size), math.ceil(bottom - top) + 2 * (_padding(size) // 2)


def _padding(size: int) -> int:
    return max(2, round(size / 4))


def _texts(instances: Instances, class_names: Sequence[str], scores: bool) -> list[list[str]]:
    """For each object its label, the fullest first."""
    texts = []
    for index, label in enumerate(instances.labels.tolist()):
        name = class_names[label] if label < len(class_names) else str(label)
        name += " (crowd)" if instances.crowd[index] else ""
        full = [f"{name} {instances.scores[index]:.2f}"] if scores and instances.scores is not None else []
        texts.append([*full, name])
    return texts


def _order(instances: Instances, boxes: Float) -> tuple[list[int], int]:
    """Objects to label, the best of each class first, and how many of these there are."""
    worth = _areas(boxes) if instances.scores is None else instances.scores
    order = np.argsort(-worth, kind="stable")
    order = order[~instances.ignore[order]]
    firsts = np.zeros(len(order), dtype=np.bool_)
    firsts[np.unique(instances.labels[order], return_index=True)[1]] = True
    return [*order[firsts].tolist(), *order[~firsts].tolist()], int(firsts.sum())


def _place(
    instances: Instances, boxes: Float, class_names: Sequence[str], size: tuple[int, int], scores: bool
) -> Iterator[tuple[str, _Rect, int, _Colour]]:
    """Text, place, font size and colour of each label that finds room."""
    largest = max(_SMALLEST_FONT, round(math.sqrt(size[0] * size[1]) / 50))
    texts = _texts(instances, class_names, scores)
    order, kept = _order(instances, boxes)
    total = sum(math.prod(_extent(texts[index][0], largest)) for index in order)
    crowded = total > _CROWDED * size[0] * size[1]
    areas = np.maximum(_areas(boxes), 1.0)
    taken = np.zeros((len(order), 4))
    count = 0
    for rank, index in enumerate(order):
        box = boxes[index]
        longer = float(max(box[2:] - box[:2]))
        small = max(_SMALLEST_FONT, min(largest, round(longer / 4)))
        choices = [(text, font) for font in dict.fromkeys((small,) if crowded else (largest, small)) for text in texts[index]]
        if crowded:
            choices = [choice for choice in choices if _extent(*choice)[0] <= 2 * longer]
        # Only what lies within reach of the largest tab can be in its way.
        reach = np.max([_extent(*choice) for choice in choices], axis=0, initial=0)
        around = np.concatenate([box[:2] - reach - 1, box[2:] + reach + 1])
        near = _touch(boxes, around)
        near[index] = False
        others, sizes = boxes[near], areas[near]
        blocked = taken[:count][_touch(taken[:count], around)]
        found = next(
            (
                (text, rect, font)
                for text, font in choices
                for rect in _candidates(box, _extent(text, font), size)
                if not _touch(blocked, rect).any() and (_overlap(others, rect) <= _MOST_COVERED[crowded] * sizes).all()
            ),
            None,
        )
        if found is None and rank < kept:
            text = texts[index][-1]
            found = text, next(_candidates(box, _extent(text, small), size, forced=True)), small
        if found is not None:
            taken[count] = found[1]
            count += 1
            yield found[0], found[1], found[2], colour(int(instances.labels[index]))


def _candidates(box: Float, extent: tuple[int, int], size: tuple[int, int], *, forced: bool = False) -> Iterator[_Rect]:
    """Places for a tab: above, inside at the top, below, right, left; those that lie in the image."""
    width, height = extent
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    x = max(0, min(x1, size[0] - width))
    places = [(x, y1 - height), (x, y1), (x, y2), (x2, y1), (x1 - width, y1)]
    if y2 - y1 < 2 * height or x2 - x1 < width:  # inside, the tab would hide a small object
        places.pop(1)
    for left, top in places:
        if min(left, top) >= 0 and left + width <= size[0] and top + height <= size[1]:
            yield left, top, left + width, top + height
    if forced:
        top = max(0, min(y1, size[1] - height))
        yield x, top, x + width, top + height


def _touch(boxes: Float, rect: _Rect | Float) -> Mask:
    left, top, right, bottom = rect
    touching: Mask = (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
    return touching


def _overlap(boxes: Float, rect: _Rect) -> Float:
    left, top, right, bottom = rect
    wide = np.minimum(boxes[:, 2], right) - np.maximum(boxes[:, 0], left)
    high = np.minimum(boxes[:, 3], bottom) - np.maximum(boxes[:, 1], top)
    covered: Float = np.maximum(wide, 0) * np.maximum(high, 0)
    return covered


def _tab(picture: _Picture, text: str, rect: _Rect, size: int, own: _Colour) -> None:
    left, top, right, bottom = rect
    # Black or white, whichever differs more from the tab in relative luminance (WCAG 2.1); 0.18 is where both contrasts meet.
    ink = (0, 0, 0) if _luminance(own) > 0.18 else (255, 255, 255)
    tab = Image.new("RGB", (right - left, bottom - top), own)
    font = _font(size)
    x, y = font.getbbox(text)[0], font.getbbox("Ålgp")[1]
    ImageDraw.Draw(tab).text((_padding(size) - x, _padding(size) // 2 - y), text, fill=ink, font=font)
    part = picture[max(top, 0) : bottom, max(left, 0) : right]
    part[:] = np.asarray(tab)[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]]


def _luminance(own: _Colour) -> float:
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in own)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
