"""Text on pictures: the labels of objects, which avoid each other, and the legend of classes below a map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pelagia.core.palette import Colour, Picture, ink_on
from pelagia.core.types import Float, Instances, Mask

__all__ = ["box_areas", "legend", "place", "tab"]

_Rect: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive

_SMALLEST_FONT = 10
#: A label may cover at most this share of another object: in a sparse scene, in a crowded one.
_MOST_COVERED = (1 / 3, 0.1)
#: A scene is crowded when its labels would cover more than this share of it; then text is so small that they cover just as much.
_CROWDED = 0.1
#: A legend is at most this share as high as its picture, but has at least two lines.
_LEGEND_SHARE = 0.4


def box_areas(boxes: Float) -> Float:
    """[N, 4] -> [N], 0 for a box turned inside out."""
    area: Float = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    return area


def text_size(width: int, height: int) -> int:
    """Height of text in a picture of that size: a fiftieth of sqrt(width height), at least 10 pixels."""
    return max(_SMALLEST_FONT, round(math.sqrt(width * height) / 50))


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
    worth = box_areas(boxes) if instances.scores is None else instances.scores
    order = np.argsort(-worth, kind="stable")
    order = order[~instances.ignore[order]]
    firsts = np.zeros(len(order), dtype=np.bool_)
    firsts[np.unique(instances.labels[order], return_index=True)[1]] = True
    return [*order[firsts].tolist(), *order[~firsts].tolist()], int(firsts.sum())


def _sizes(fair: int, small: int) -> list[int]:
    """Heights of text to try, the largest first: `fair`, its halves, and in the end `small`."""
    sizes = []
    while fair > small:
        sizes.append(fair)
        fair //= 2
    return [*sizes, small]


def place(
    instances: Instances,
    boxes: Float,
    class_names: Sequence[str],
    size: tuple[int, int],
    scores: bool,
    colours: Sequence[Colour],
    anchors: Float | None = None,
) -> Iterator[tuple[str, _Rect, int, Colour]]:
    """Text, place, font size and colour (that of its object in `colours`) of each label that finds room in a picture of `size`
    (width, height); see `draw_instances` for the rule.

    `anchors` [N, 3] are the centres and radii of circles inside the objects; a label that fits into its circle goes there.
    """
    largest = text_size(*size)
    texts = _texts(instances, class_names, scores)
    order, kept = _order(instances, boxes)
    total = sum(math.prod(_extent(texts[index][0], largest)) for index in order)
    room = _CROWDED * math.prod(size)
    crowded = total > room
    # The area of a label goes with the square of its height.
    fair = math.floor(largest * math.sqrt(room / total)) if crowded else largest
    areas = np.maximum(box_areas(boxes), 1.0)
    taken = np.zeros((len(order), 4))
    count = 0
    for rank, index in enumerate(order):
        box = boxes[index]
        longer = float(max(box[2:] - box[:2]))
        small = max(_SMALLEST_FONT, min(largest, round(longer / 4)))
        choices = [(text, font) for font in _sizes(fair, small) for text in texts[index]]
        if fair < small:
            choices = [choice for choice in choices if _extent(*choice)[0] <= 2 * longer]
        # Only what lies within reach of the largest tab can be in its way.
        reach = np.max([_extent(*choice) for choice in choices], axis=0, initial=0)
        around = np.concatenate([box[:2] - reach - 1, box[2:] + reach + 1])
        near = _touch(boxes, around)
        near[index] = False
        others, sizes = boxes[near], areas[near]
        blocked = taken[:count][_touch(taken[:count], around)]
        inside = _inside(choices, None if anchors is None else anchors[index], blocked)
        found = inside or next(
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
            yield found[0], found[1], found[2], colours[index]


def _inside(choices: Sequence[tuple[str, int]], circle: Float | None, blocked: Float) -> tuple[str, _Rect, int] | None:
    """The first label that fits into the circle x, y, r and touches none that is `blocked`."""
    for text, font in choices:
        if circle is None:
            return None
        width, height = _extent(text, font)
        left, top = round(float(circle[0]) - width / 2), round(float(circle[1]) - height / 2)
        rect = (left, top, left + width, top + height)
        if math.hypot(width, height) <= 2 * circle[2] and not _touch(blocked, rect).any():
            return text, rect, font
    return None


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


def tab(picture: Picture, text: str, rect: _Rect, size: int, own: Colour) -> None:
    """Draw a label: text of that font `size` on a tab of colour `own`, black or white as it reads better."""
    left, top, right, bottom = rect
    label = Image.new("RGB", (right - left, bottom - top), own)
    font = _font(size)
    x, y = font.getbbox(text)[0], font.getbbox("Ålgp")[1]
    ImageDraw.Draw(label).text((_padding(size) - x, _padding(size) // 2 - y), text, fill=ink_on(own), font=font)
    part = picture[max(top, 0) : bottom, max(left, 0) : right]
    part[:] = np.asarray(label)[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]]


def legend(entries: Sequence[tuple[Colour, str]], width: int, height: int) -> Picture:
    """A strip [S, width, 3] to be put below a picture of that size: a patch of each colour and its text, in lines as wide as fit.

    Where the lines would be more than two fifths of the picture's height, the last entry tells how many are left out.
    """
    size = text_size(width, height)
    line = _extent("", size)[1] + _padding(size)
    most = max(2, int(_LEGEND_SHARE * height / line))
    rows = _lines(entries, size, width)
    if len(rows) > most:
        left_out = sum(map(len, rows[most:])) + 1
        rows = [*rows[: most - 1], [*rows[most - 1][:-1], (None, f"+ {left_out} more")]]
    strip = Image.new("RGB", (width, len(rows) * line + _padding(size)), (255, 255, 255))
    pen, font = ImageDraw.Draw(strip), _font(size)
    top = font.getbbox("Ålgp")[1]
    for number, row in enumerate(rows):
        x, y = _padding(size), number * line + _padding(size)
        for own, text in row:
            if own is not None:
                pen.rectangle((x, y, x + size - 1, y + size - 1), fill=own, outline=(90, 90, 90), width=max(1, size // 12))
                x += size + _padding(size)
            pen.text((x, y - top), text, fill=(20, 20, 20), font=font)
            x += _extent(text, size)[0] + _padding(size)
    return np.array(strip)


def _lines(entries: Sequence[tuple[Colour, str]], size: int, width: int) -> list[list[tuple[Colour | None, str]]]:
    """The entries in lines; a text wider than a line is cut."""
    rows: list[list[tuple[Colour | None, str]]] = [[]]
    room = width
    for own, text in entries:
        need = size + 2 * _padding(size)
        while len(text) > 2 and need + _extent(text, size)[0] > width - _padding(size):
            text = text[:-2] + "…"
        need += _extent(text, size)[0]
        if need > room and rows[-1]:
            rows.append([])
            room = width
        rows[-1].append((own, text))
        room -= need
    return rows
