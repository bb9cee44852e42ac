"""Pictures of maps: the class of every pixel, or the segment of every pixel, laid over the image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.draw_text import legend as legend_strip
from pelagia.core.draw_text import place, tab
from pelagia.core.lazy import resolve
from pelagia.core.palette import ONE_CLASS, Colour, Picture, colour, display, shade
from pelagia.core.types import Category, Float, Instances, Int, Mask, PanopticMap, SemanticMap
from pelagia.errors import OptionError

__all__ = ["draw_panoptic", "draw_semantic"]

#: Share of the class's colour in the picture: of classes and stuff, of things.
_OPACITY = 0.45
_THING_OPACITY = 0.55

#: Rows that are coloured at once: on a scan of 8,000 pixels the whole picture in floats would take gigabytes.
_BAND = 128

#: Names of a class that is no finding: the image shows through.
_BACKGROUND = ("background", "void", "unlabelled", "unlabeled")


def draw_semantic(
    image: NDArray[Any],
    found: SemanticMap,
    categories: Sequence[Category],
    *,
    legend: bool = True,
    overwrite: bool = False,
) -> Picture:
    """A copy of `image` as uint8 RGB with its classes: colours laid over it, lines between classes, names and shares below.

    With s = sqrt(H W), a class has a line of s / 900 pixels along its border, on its own side, in its full colour. Beside a class
    of which so wide a line would cover more than a third, lines are half as wide, and so on down to one pixel: organisms of a
    large scan are not hidden by them. Pixels without a class (255) and those of a class called background stay as they are.

    With `legend` a strip below names the classes that occur, the largest first, with their share of the image; the picture is
    then [H + S, W, 3], else [H, W, 3].

    Raises:
        OptionError: the map is not of the size of the image.
    """
    picture = display(image, overwrite=overwrite)
    _check(picture, found.labels)
    count = len(categories)
    index = np.minimum(found.labels, min(count, np.iinfo(found.labels.dtype).max))  # count: no class
    shown = np.array([not is_background(category) for category in categories] + [False])
    colours = [*(colour(label) for label in range(count)), (0, 0, 0)]
    pixels = _pixels(index, count)
    _lay(picture, index, pixels, colours, np.where(shown, _OPACITY, 0.0))
    if not legend:
        return picture
    order = [label for label in np.argsort(-pixels, kind="stable").tolist() if pixels[label]]
    entries = [
        ((255, 255, 255) if not shown[label] else colour(label), f"{categories[label].name} {_share(pixels[label] / index.size)}")
        for label in order
    ]
    return _with_legend(picture, entries)


def draw_panoptic(
    image: NDArray[Any],
    found: PanopticMap,
    categories: Sequence[Category],
    *,
    scores: bool = True,
    labels: bool = True,
    legend: bool = True,
    overwrite: bool = False,
) -> Picture:
    """A copy of `image` as uint8 RGB with its segments: stuff in the flat colour of its class, things each in a shade of theirs.

    Lines and legend are those of `draw_semantic` (the width of lines by segment), the labels of things those of `draw_instances`,
    but inside a thing where it has room. The legend tells the share of stuff and the number of things, also of those that are
    too small for a shrunk map. Void stays as it is.

    Raises:
        OptionError: the map is not of the size of the image.
    """
    picture = display(image, overwrite=overwrite)
    _check(picture, found.ids)
    index, pixels = _segment_index(found)
    colours, things = _segment_colours(found, categories, pixels)
    opacity = np.where(things, _THING_OPACITY, _OPACITY)
    background = [is_background(categories[segment.label]) for segment in found.segments]
    opacity[np.flatnonzero(background)] = 0.0
    _lay(picture, index, pixels, [*colours, (0, 0, 0)], np.append(opacity, 0.0))
    if labels:
        objects, inks, circles = _things(found, index, colours, things)
        names = [category.name for category in categories]
        size = (picture.shape[1], picture.shape[0])
        for text, rect, font, own in place(objects, objects.box_array, names, size, scores, inks, circles):
            tab(picture, text, rect, font, own)
    return _with_legend(picture, _panoptic_entries(found, categories, pixels)) if legend else picture


def is_background(category: Category) -> bool:
    """Whether a class says that there is nothing, so that it is not coloured."""
    return category.name.lower() in _BACKGROUND


def _check(picture: Picture, labels: NDArray[Any]) -> None:
    if labels.shape != picture.shape[:2]:
        have, need = ("{1} x {0}".format(*shape[:2]) for shape in (labels.shape, picture.shape))
        raise OptionError(f"the map has {have} pixels, its image {need}; both must have one size")


def _lay(picture: Picture, index: NDArray[Any], pixels: Int, colours: Sequence[Colour], opacity: NDArray[np.float64]) -> None:
    """Blend colours[index] into the picture with opacity[index], and lines at full strength along borders between indices.

    The last colour is of what has no class or segment; `pixels` are those of each index before it.
    """
    table, share = np.array(colours, dtype=np.float32), opacity.astype(np.float32)
    widths = _line_widths(index, pixels, opacity > 0)
    for rows in _bands(index):
        edge = _edges(index, rows, widths)
        part = index[rows]
        amount = share[part]
        amount[edge & (amount > 0)] = 1.0
        blended = picture[rows] * (1 - amount[..., None]) + table[part] * amount[..., None]
        picture[rows] = np.rint(blended).astype(np.uint8)


def _bands(index: NDArray[Any]) -> Iterator[slice]:
    return (slice(top, min(top + _BAND, len(index))) for top in range(0, len(index), _BAND))


def _line_widths(index: NDArray[Any], pixels: Int, drawn: Mask) -> NDArray[np.uint8]:
    """[K], how wide lines may be beside each index: s / 900, halved until they cover at most a third of it. What is not `drawn`
    has no line to be hidden by, and as many lines as its neighbours allow."""
    most = max(1, round(math.sqrt(index.size) / 900))
    widths = np.full(len(drawn), most, dtype=np.uint8)
    if most == 1:
        return widths
    border = np.zeros(len(drawn), dtype=np.int64)
    for rows in _bands(index):
        border += np.bincount(index[rows][_edges(index, rows, np.ones_like(widths))], minlength=len(drawn))
    room = np.append(pixels, 0) / np.maximum(3 * border, 1)
    while (wide := drawn & (widths > np.maximum(room, 1))).any():
        widths[wide] //= 2
    return widths


def _edges(index: NDArray[Any], rows: slice, widths: NDArray[np.uint8]) -> Mask:
    """Which pixels of some rows have a pixel of another index no farther away, along both axes, than the width of either."""
    reach = int(widths.max())
    first = max(rows.start - reach, 0)
    around = index[first : rows.stop + reach]
    values, own = around.astype(np.float32), widths[around]  # exact up to 2^24; OpenCV knows no int32
    edge = np.zeros(around.shape, dtype=np.bool_)
    for width in np.unique(own).tolist():
        thick = own >= width
        chosen = values[thick]
        if chosen.min() == chosen.max():
            continue
        kernel = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
        low = cv2.erode(np.where(thick, values, np.float32(np.inf)), kernel)
        high = cv2.dilate(np.where(thick, values, np.float32(-np.inf)), kernel)
        edge |= thick & (low != high)
    return edge[rows.start - first : rows.stop - first]


def _segment_index(found: PanopticMap) -> tuple[NDArray[np.int32], Int]:
    """[H, W] position of each pixel's segment, their number for void; and the pixels of each segment."""
    count = len(found.segments)
    most = max([int(found.ids.max(initial=0)), *(segment.id for segment in found.segments)])
    table = np.full(most + 1, count, dtype=np.int32)
    for position, segment in enumerate(found.segments):
        table[segment.id] = position
    index = np.empty(found.ids.shape, dtype=np.int32)
    for rows in _bands(index):
        index[rows] = table[np.maximum(found.ids[rows], 0)]
    return index, _pixels(index, count)


def _pixels(index: NDArray[Any], count: int) -> Int:
    """How many pixels have each of the indices below `count`; band by band, since numpy counts in whole numbers of 8 bytes."""
    total = np.zeros(count + 1, dtype=np.int64)
    for rows in _bands(index):
        total += np.bincount(index[rows].reshape(-1), minlength=count + 1)
    return total[:count]


def _segment_colours(found: PanopticMap, categories: Sequence[Category], pixels: Int) -> tuple[list[Colour], Mask]:
    """Each segment's colour, and whether it is a thing; the largest thing of a class has the class's own."""
    colours = [colour(segment.label) for segment in found.segments]
    things = np.array([categories[segment.label].is_thing for segment in found.segments], dtype=np.bool_)
    strength = ONE_CLASS if len({segment.label for segment in found.segments}) == 1 else 1.0
    seen: dict[int, int] = {}
    for position in np.argsort(-pixels, kind="stable").tolist():
        label = found.segments[position].label
        if things[position]:
            seen[label] = seen.get(label, -1) + 1
            colours[position] = shade(colours[position], seen[label], strength)
    return colours, things


def _things(
    found: PanopticMap, index: NDArray[np.int32], colours: Sequence[Colour], things: Mask
) -> tuple[Instances, list[Colour], Float]:
    """The visible things as objects to be labelled, their colours, and the largest circle [N, 3] inside each."""
    index += 1  # numbers of objects begin at 1; a copy of the map would take as much memory again
    windows = resolve("scipy.ndimage", purpose="find the bounds of segments").find_objects(index)
    index -= 1
    chosen = [row for row in np.flatnonzero(things).tolist() if row < len(windows) and windows[row] is not None]
    boxes = [(windows[row][1].start, windows[row][0].start, windows[row][1].stop, windows[row][0].stop) for row in chosen]
    stated = [found.segments[row].score for row in chosen]
    objects = Instances(
        labels=np.array([found.segments[row].label for row in chosen], dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        scores=None if None in stated else np.array(stated, dtype=np.float64),
        crowd=np.array([found.segments[row].crowd for row in chosen], dtype=np.bool_),
    )
    circles = [_circle(index[windows[row]] == row, windows[row]) for row in chosen]
    return objects, [colours[row] for row in chosen], np.array(circles, dtype=np.float64).reshape(-1, 3)


def _circle(bitmap: Mask, window: tuple[slice, slice]) -> tuple[float, float, float]:
    """Centre and radius of the largest circle inside a segment: where the distance to its border is greatest."""
    depth = cv2.distanceTransform(np.pad(bitmap.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_5)
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(window[1].start + column - 0.5), float(window[0].start + row - 0.5), float(depth[row, column])


def _panoptic_entries(found: PanopticMap, categories: Sequence[Category], pixels: Int) -> list[tuple[Colour, str]]:
    """Stuff with its share, then things with their number, each the largest first."""
    area: dict[int, int] = {}
    number: dict[int, int] = {}
    for segment, size in zip(found.segments, pixels.tolist(), strict=True):
        if size or categories[segment.label].is_thing:
            area[segment.label] = area.get(segment.label, 0) + size
            number[segment.label] = number.get(segment.label, 0) + 1
    entries = []
    for label in sorted(area, key=lambda item: (categories[item].is_thing, -area[item])):
        name, own = categories[label].name, (255, 255, 255) if is_background(categories[label]) else colour(label)
        told = str(number[label]) if categories[label].is_thing else _share(area[label] / found.ids.size)
        entries.append((own, f"{name} {told}"))
    return entries


def _share(value: float) -> str:
    if 0 < value < 0.0005:
        return "<0.1%"
    return f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"


def _with_legend(picture: Picture, entries: Sequence[tuple[Colour, str]]) -> Picture:
    if not entries:
        return picture
    return np.concatenate([picture, legend_strip(entries, picture.shape[1], picture.shape[0])])
