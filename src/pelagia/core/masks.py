"""Binary masks: run lengths (COCO), polygons, crops, and what is measured on them.

A mask lives as a `MaskCrop` (a small bitmap with an offset), on disk as run lengths or polygons. Run lengths go down the columns
first, begin with background, and are COCO's to the bit, its text form and its rule for polygons included. Nothing here works at
the size of the image unless it is asked for a full bitmap.

The polygon rule: the border is sampled at a fifth of a pixel, each column is cut at the samples around its middle, and what lies
between cuts is inside by parity. It is the rule of the COCO API, so areas and IoUs agree with published scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pelagia.core import oriented as oriented_boxes
from pelagia.core.contours import to_polygons
from pelagia.core.lazy import resolve
from pelagia.core.types import Float, Int, Mask, MaskCrop
from pelagia.errors import LabelError

__all__ = [
    "RLE",
    "bounds",
    "clip",
    "crop_from_bitmap",
    "crop_from_polygon",
    "crop_from_rle",
    "crop_to_rle",
    "decode",
    "encode",
    "intersections",
    "iou",
    "min_area_box",
    "paste",
    "polygon_area",
    "rasterise",
    "rle_area",
    "rle_from_buffer",
    "rle_from_string",
    "rle_from_strings",
    "rle_to_string",
    "to_polygons",
    "unite",
]

_SCALE = 5  # border samples per pixel of the polygon rule
_MOST_SAMPLES = 100_000_000  # of one ring: a border of 20 million pixels, far beyond any image that can be read


@dataclass(frozen=True, slots=True)
class RLE:
    """Run lengths of a mask: `counts` [R] uint32 down the columns, alternating, the first (maybe 0) of background.

    They add up to height * width.
    """

    height: int
    width: int
    counts: NDArray[np.uint32]


def encode(bitmap: Mask) -> RLE:
    """A bitmap [H, W] -> its run lengths."""
    height, width = bitmap.shape
    flat = np.asarray(bitmap, dtype=np.bool_).T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0] if len(flat) and flat[0] else []
    counts = np.diff(np.concatenate([[0], first, changes, [len(flat)]]))
    return RLE(height, width, counts.astype(np.uint32))


def decode(rle: RLE) -> Mask:
    """Run lengths -> the bitmap [H, W].

    Raises:
        LabelError: the runs do not add up to the size.
    """
    _check(rle)
    value = np.arange(len(rle.counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(value, rle.counts).reshape(rle.width, rle.height).T)


def rle_area(rle: RLE) -> int:
    """Number of pixels set."""
    return int(rle.counts[1::2].sum(dtype=np.int64))


def _check(rle: RLE) -> None:
    total = int(rle.counts.sum(dtype=np.int64))
    if total != rle.height * rle.width:
        raise LabelError(f"the run lengths add up to {total} pixels, but {rle.height} x {rle.width} are {rle.height * rle.width}")


def rle_to_string(rle: RLE) -> str:
    """The compressed text of COCO: from the fourth on each run minus the one two before, in signed groups of 5 bits, least first.

    A character is 48 + the group, + 32 if more groups follow.
    """
    value = rle.counts.astype(np.int64)
    value[3:] -= rle.counts[1:-2].astype(np.int64)
    digits, follows = [], []
    pending = np.ones(len(value), dtype=np.bool_)
    while pending.any():
        digit = value & 0x1F
        value >>= 5
        more = np.where(digit & 0x10, value != -1, value != 0)
        digits.append(np.where(pending, 48 + digit + 32 * more, 0))
        follows.append(pending)
        pending = pending & more
    if not digits:
        return ""
    return np.stack(digits, axis=1)[np.stack(follows, axis=1)].astype(np.uint8).tobytes().decode("ascii")


def rle_from_string(text: str | bytes, height: int, width: int) -> RLE:
    """What `rle_to_string` wrote.

    Raises:
        LabelError: a character outside the alphabet, a text cut short, or runs that do not add up to height * width.
    """
    counts, _ = rle_from_strings([text], np.array([height * width], dtype=np.int64))
    return RLE(height, width, counts)


def rle_from_strings(texts: Sequence[str | bytes], pixels: Int) -> tuple[NDArray[np.uint32], Int]:
    """The runs of N compressed texts, joined: counts [Q], of which mask n owns counts[starts[n]:starts[n + 1]], and starts [N +
    1].

    Args:
        pixels: [N] height * width of each mask.

    Raises:
        LabelError: as `rle_from_string`; `where` names the mask by its position.
    """
    data = [text if isinstance(text, bytes) else text.encode("ascii", "replace") for text in texts]
    lengths = np.array([len(item) for item in data], dtype=np.int64)
    return rle_from_buffer(np.frombuffer(b"".join(data), dtype=np.uint8), lengths, pixels)


def rle_from_buffer(text: NDArray[np.uint8], lengths: Int, pixels: Int) -> tuple[NDArray[np.uint32], Int]:
    """`rle_from_strings` for N texts of `lengths` [N] characters that lie one after another in `text`."""
    kernels = resolve("pelagia.core.kernels", purpose="read compressed masks")
    counts, sizes = np.empty(len(text), dtype=np.uint32), np.empty(len(lengths), dtype=np.int64)
    count, mask = kernels.decode_runs(text, lengths, np.asarray(pixels, dtype=np.int64), counts, sizes)
    if count < 0:
        raise LabelError(f"this is not a compressed COCO mask: {_FAULTS[-1 - count]}", where=f"mask {mask}")
    return counts[:count].copy(), np.concatenate([[0], np.cumsum(sizes)])


#: What `kernels.decode_runs` may complain of.
_FAULTS = (
    "a character outside '0' to 'o'",
    "it is cut short",
    "a number is longer than 32 bits",
    "a run is below 0 or longer than the image",
    "its runs do not add up to the image's height times width",
    "it is empty",
)


def _crossings(ring: Float, height: int, width: int) -> Int:
    """Where parity flips: sorted positions down the columns, by the polygon rule of COCO."""
    points = np.asarray(ring, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise LabelError("a polygon has a coordinate that is not finite")
    if len(points) == 0:
        return np.zeros(0, dtype=np.int64)
    grid = points * _SCALE + 0.5
    if np.abs(grid).max() > 2.0**31 or np.abs(np.diff(grid, axis=0, append=grid[:1])).sum() > _MOST_SAMPLES:
        raise LabelError(f"a polygon reaches to {np.abs(points).max():.3g} px, far beyond any image")
    start = np.trunc(grid).astype(np.int64)
    end = np.roll(start, -1, axis=0)
    run = np.abs(end - start)
    flat = run[:, 0] >= run[:, 1]  # x is the leading axis
    lead, other = np.where(flat, 0, 1), np.where(flat, 1, 0)
    edge = np.arange(len(points))
    flip = start[edge, lead] > end[edge, lead]
    low, high = np.where(flip[:, None], end, start), np.where(flip[:, None], start, end)
    steps = run[edge, lead]
    slope = (high - low)[edge, other] / np.maximum(steps, 1)
    # Samples of all edges in order of travel; `t` counts from the low end of the leading axis.
    count = steps + 1
    which = np.repeat(edge, count)
    t = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    t = np.where(flip[which], steps[which] - t, t)
    leading = t + low[edge, lead][which]
    trailing = np.trunc(low[edge, other][which] + slope[which] * t + 0.5).astype(np.int64)
    u, v = np.where(flat[which], leading, trailing), np.where(flat[which], trailing, leading)
    step = np.flatnonzero(u[1:] != u[:-1])
    left, top = np.minimum(u[step], u[step + 1]), np.minimum(v[step], v[step + 1])
    # (left + 0.5) / 5 - 0.5 is whole where left = 5 column + 2.
    column, rest = np.divmod(left - 2, _SCALE)
    used = (rest == 0) & (column >= 0) & (column < width)
    row = np.ceil(np.clip((top[used] + 0.5) / _SCALE - 0.5, 0, height)).astype(np.int64)
    return np.sort(column[used] * height + row)


def _ring_runs(ring: Float, height: int, width: int) -> tuple[Int, Int]:
    """Starts and ends (exclusive) of runs down the columns."""
    flips = _crossings(ring, height, width)
    if len(flips) % 2:  # the last run ends with the image
        flips = np.append(flips, height * width)
    return flips[0::2], flips[1::2]


def rasterise(rings: Sequence[Float], height: int, width: int) -> Mask:
    """Polygon rings [P, 2] -> the bitmap [height, width] of their union, by COCO's rule; parts outside the image are cut.

    A ring is closed by itself; crossing itself it fills by parity; fewer than 3 points fill nothing.

    Raises:
        LabelError: a coordinate is not finite or absurdly large.
    """
    change = np.zeros(height * width + 1, dtype=np.int32)
    for ring in rings:
        start, end = _ring_runs(ring, height, width)
        np.add.at(change, start, 1)
        np.add.at(change, end, -1)
    return np.ascontiguousarray((np.cumsum(change[:-1], dtype=np.int32) > 0).reshape(width, height).T)


def _crop_from_runs(start: Int, end: Int, height: int) -> MaskCrop:
    """Runs down the columns of an image of that height, overlapping or not -> a tight crop."""
    some = start < end
    start, end = start[some], end[some]
    if len(start) == 0:
        return MaskCrop(0, 0, np.zeros((0, 0), dtype=np.bool_))
    # Cut runs at column ends.
    first, pieces = start // height, (end - 1) // height - start // height + 1
    which = np.repeat(np.arange(len(start)), pieces)
    column = first[which] + np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    top = np.maximum(start[which] - column * height, 0)
    bottom = np.minimum(end[which] - column * height, height)
    x, y = int(column.min()), int(top.min())
    change = np.zeros((int(column.max()) - x + 1, int(bottom.max()) - y + 1), dtype=np.int32)
    np.add.at(change, (column - x, top - y), 1)
    np.add.at(change, (column - x, bottom - y), -1)
    inside = np.cumsum(change[:, :-1], axis=1, dtype=np.int32) > 0
    return MaskCrop(x, y, np.ascontiguousarray(inside.T))


def crop_from_polygon(rings: Sequence[Float], height: int, width: int) -> MaskCrop:
    """As `rasterise`, but only the crop that holds something, at the cost of the crop; a crop of 0 x 0 when nothing is inside."""
    runs = [_ring_runs(ring, height, width) for ring in rings]
    empty = np.zeros(0, dtype=np.int64)
    start, end = (np.concatenate([empty, *parts]) for parts in (zip(*runs, strict=True) if runs else ((), ())))
    return _crop_from_runs(start, end, height)


def crop_from_rle(rle: RLE) -> MaskCrop:
    """Run lengths -> a tight crop, without the full bitmap.

    Raises:
        LabelError: the runs do not add up to the size.
    """
    _check(rle)
    ends = np.cumsum(rle.counts.astype(np.int64))
    background = ends[0::2][: len(ends) // 2]
    return _crop_from_runs(background, ends[1::2], max(rle.height, 1))


def crop_to_rle(crop: MaskCrop, height: int, width: int) -> RLE:
    """The run lengths of a crop in an image of that size; what lies outside is cut."""
    crop = clip(crop, width, height)
    # A row of background on either side makes every run begin and end inside its column.
    padded = np.pad(crop.bitmap, ((1, 1), (0, 0))).T
    column, row = np.nonzero(padded[:, 1:] != padded[:, :-1])
    position = (column + crop.x) * height + row + crop.y
    start, end = position[0::2], position[1::2]
    apart = start[1:] != end[:-1]  # a run that reaches the bottom goes on at the top of the next column
    start, end = start[np.concatenate([[True], apart])[: len(start)]], end[np.concatenate([apart, [True]])[: len(end)]]
    edges = np.stack([start, end], axis=1).ravel()
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    if len(edges) and edges[-1] == height * width:
        counts = counts[:-1]
    return RLE(height, width, counts.astype(np.uint32))


def crop_from_bitmap(bitmap: Mask) -> MaskCrop:
    """A bitmap of the whole image -> the tight crop of its set pixels, 0 x 0 when none is."""
    return _tight(MaskCrop(0, 0, np.asarray(bitmap, dtype=np.bool_)))


def _tight(crop: MaskCrop) -> MaskCrop:
    rows, columns = np.flatnonzero(crop.bitmap.any(axis=1)), np.flatnonzero(crop.bitmap.any(axis=0))
    if len(rows) == 0:
        return MaskCrop(crop.x, crop.y, np.zeros((0, 0), dtype=np.bool_))
    top, left = int(rows[0]), int(columns[0])
    part = crop.bitmap[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    return MaskCrop(crop.x + left, crop.y + top, np.ascontiguousarray(part))


def clip(crop: MaskCrop, width: int, height: int) -> MaskCrop:
    """The part of a crop inside an image; 0 x 0 when none is."""
    rows, columns = crop.shape
    left, top = min(max(crop.x, 0), width), min(max(crop.y, 0), height)
    right, bottom = min(max(crop.x + columns, left), width), min(max(crop.y + rows, top), height)
    if right <= left or bottom <= top:
        return MaskCrop(left, top, np.zeros((0, 0), dtype=np.bool_))
    return MaskCrop(left, top, crop.bitmap[top - crop.y : bottom - crop.y, left - crop.x : right - crop.x])


def paste(crop: MaskCrop, height: int, width: int) -> Mask:
    """The bitmap [height, width] of the whole image."""
    result = np.zeros((height, width), dtype=np.bool_)
    crop = clip(crop, width, height)
    rows, columns = crop.bitmap.shape
    result[crop.y : crop.y + rows, crop.x : crop.x + columns] = crop.bitmap
    return result


def bounds(crop: MaskCrop) -> Float:
    """[4] x1, y1, x2, y2 around the set pixels, x2 and y2 on their outer edge; of zero size when no pixel is set."""
    tight = _tight(crop)
    rows, columns = tight.bitmap.shape
    return np.array([tight.x, tight.y, tight.x + columns, tight.y + rows], dtype=np.float64)


def min_area_box(crop: MaskCrop) -> Float:
    """[5] cx, cy, w, h, angle: the smallest rectangle around the set pixels as unit squares, canonical; zeros if none is set."""
    rows = np.flatnonzero(crop.bitmap.any(axis=1))
    if len(rows) == 0:
        return np.zeros(5)
    left = crop.bitmap[rows].argmax(axis=1)
    right = crop.bitmap.shape[1] - crop.bitmap[rows, ::-1].argmax(axis=1)
    x, y = np.concatenate([left, right, left, right]), np.concatenate([rows, rows, rows + 1, rows + 1])
    box = oriented_boxes.from_points(np.stack([x, y], axis=1).astype(np.float64))
    box[:2] += crop.x, crop.y
    return box


def polygon_area(ring: Float) -> float:
    """The area inside a ring [P, 2] that does not cross itself, by the shoelace formula, in square pixels."""
    points = np.asarray(ring, dtype=np.float64).reshape(-1, 2)
    if len(points) < 3:
        return 0.0
    x, y = (points - points[0]).T  # relative, so that far from the origin nothing is lost
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def intersections(a: Sequence[MaskCrop], b: Sequence[MaskCrop]) -> Float:
    """Pixels set in both, for every pair: N and M crops -> [N, M]."""
    result = np.zeros((len(a), len(b)))
    if not len(a) or not len(b):
        return result
    windows = _windows(b)
    for i, (first, window) in enumerate(zip(a, _windows(a), strict=True)):
        low, high = np.maximum(window[:2], windows[:, :2]), np.minimum(window[2:], windows[:, 2:])
        for j in np.flatnonzero((low < high).all(axis=1)).tolist():
            (x1, y1), (x2, y2) = low[j].tolist(), high[j].tolist()
            second = b[j]
            part_a = first.bitmap[y1 - first.y : y2 - first.y, x1 - first.x : x2 - first.x]
            part_b = second.bitmap[y1 - second.y : y2 - second.y, x1 - second.x : x2 - second.x]
            result[i, j] = np.count_nonzero(part_a & part_b)
    return result


def iou(a: Sequence[MaskCrop], b: Sequence[MaskCrop], crowd: Mask | None = None) -> Float:
    """IoU of every pair: N and M crops -> [N, M].

    Where `crowd` [M] is set, the union is replaced by the area of a (COCO's rule for regions of many objects). 0 where nothing
    is set.
    """
    area_a, area_b = (np.array([crop.area for crop in crops], dtype=np.float64) for crops in (a, b))
    result = intersections(a, b)
    union = area_a[:, None] + area_b[None, :] - result
    if crowd is not None:
        union = np.where(np.asarray(crowd, dtype=np.bool_)[None, :], area_a[:, None], union)
    return result / np.where(union > 0, union, 1.0)


def unite(crops: Sequence[MaskCrop]) -> MaskCrop:
    """The tight crop of the pixels that are set in any of `crops`; 0 x 0 when none is."""
    used = [crop for crop in crops if 0 not in crop.shape]
    if not used:
        return MaskCrop(0, 0, np.zeros((0, 0), dtype=np.bool_))
    windows = _windows(used)
    (left, top), (right, bottom) = windows[:, :2].min(axis=0).tolist(), windows[:, 2:].max(axis=0).tolist()
    bitmap = np.zeros((bottom - top, right - left), dtype=np.bool_)
    for crop, (x1, y1, x2, y2) in zip(used, windows.tolist(), strict=True):
        bitmap[y1 - top : y2 - top, x1 - left : x2 - left] |= crop.bitmap
    return _tight(MaskCrop(left, top, bitmap))


def _windows(crops: Sequence[MaskCrop]) -> Int:
    """[N, 4] x1, y1, x2, y2 of the crops themselves."""
    return np.array([(c.x, c.y, c.x + c.shape[1], c.y + c.shape[0]) for c in crops], dtype=np.int64)
