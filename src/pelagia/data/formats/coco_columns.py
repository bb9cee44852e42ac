"""COCO annotations in the common case, in columns: a hundred thousand objects in the time that one by one takes a few thousand.

The columns are taken only when nothing in them asks for a decision: every image and category is known, every box has four numbers
and some extent inside its image, every id is used once, every outline is whole. Otherwise the annotations are read one by one,
where each correction leaves a finding. Both ways give the same data set; a test holds them equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.masks import rle_from_strings
from pelagia.core.types import Float, Int
from pelagia.data.annotation_builder import Columns
from pelagia.errors import LabelError

__all__ = ["plain_columns"]


class _OddError(Exception):
    """Something asks for a decision."""


def plain_columns(
    entries: Sequence[Mapping[str, Any]],
    rows: Mapping[Any, int],
    labels: Mapping[int, int],
    sizes: Sequence[tuple[int, int]],
    *,
    keep_empty: bool = False,
) -> tuple[Columns, Float] | None:
    """The annotations in columns, and [M] the square pixels inside each outline (NaN without one); None where one of them needs a
    closer look.

    Args:
        rows: image id -> index.
        labels: category id -> label, negative for regions to ignore.
        sizes: width and height of the images.
        keep_empty: boxes without extent or outside their image are nothing to ask about.
    """
    try:
        return _columns(entries, rows, labels, np.asarray(sizes, dtype=np.int64).reshape(-1, 2), keep_empty)
    except (_OddError, KeyError, TypeError, ValueError, OverflowError, LabelError):
        return None


def _columns(
    entries: Sequence[Mapping[str, Any]], rows: Mapping[Any, int], labels: Mapping[int, int], sizes: Int, keep_empty: bool
) -> tuple[Columns, Float]:
    count = len(entries)
    keys = set().union(*entries)
    for odd in keys & {"keypoints", "ignore", "difficult"}:
        _plain(not any(entry.get(odd) for entry in entries))

    def column(key: str) -> list[Any]:
        return list(map(itemgetter(key), entries))

    image = np.array([rows[value] for value in column("image_id")], dtype=np.int64)
    label = np.array([labels[value] for value in column("category_id")], dtype=np.int64)
    ids = np.array(_whole(column("id")), dtype=np.int64)
    _plain(bool((label >= 0).all()) and len(np.unique(ids)) == count)
    crowded = [entry.get("iscrowd", 0) for entry in entries] if "iscrowd" in keys else [0] * count
    crowd = np.array(_whole(crowded), dtype=np.int64) != 0
    boxes = np.array(column("bbox"), dtype=np.float64).reshape(count, -1)
    stated = column("area")
    _plain(boxes.shape[1] == 4 and {*map(type, stated)} <= {int, float})
    areas = np.array(stated, dtype=np.float64)
    extents = boxes[:, 2:].copy()
    boxes[:, 2:] += boxes[:, :2]
    width, height = sizes[image].T
    fine = np.isfinite(boxes).all(axis=1) & np.isfinite(areas)
    if keep_empty:
        fine &= (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
    else:
        fine &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
        fine &= (width > 0) & (boxes[:, 0] < width) & (boxes[:, 1] < height)
    _plain(bool(fine.all()))

    outlines: list[Any] = [entry.get("segmentation") for entry in entries] if "segmentation" in keys else []
    polygons = [row for row, outline in enumerate(outlines) if isinstance(outline, list) and outline]
    encoded = [row for row, outline in enumerate(outlines) if isinstance(outline, dict)]
    _plain(not any(isinstance(outline, str | int | float) and outline for outline in outlines))
    outline_areas = np.full(count, np.nan)
    rings = _polygons([outlines[row] for row in polygons], polygons, outline_areas)
    runs = _runs([outlines[row] for row in encoded], encoded, sizes[image[encoded]] if encoded else sizes[:0], outline_areas)
    return Columns(image, label, ids, boxes, extents, areas, crowd, rings, runs), outline_areas


def _plain(condition: bool) -> None:
    if not condition:
        raise _OddError


def _whole(values: list[Any]) -> list[int]:
    _plain({*map(type, values)} <= {int})
    return values


def _polygons(outlines: Sequence[Any], rows: Sequence[int], areas: Float) -> dict[int, list[Float]]:
    if not outlines:
        return {}
    _plain(all(isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 for outline in outlines for ring in outline))
    rings = list(chain.from_iterable(outlines))
    flat = np.array(list(chain.from_iterable(rings)))
    _plain(flat.dtype.kind in "if" and bool(np.isfinite(flat).all()))
    points = flat.astype(np.float64).reshape(-1, 2)
    lengths = np.array([len(ring) // 2 for ring in rings], dtype=np.int64)
    ends = np.cumsum(lengths)
    begins = ends - lengths
    closed = (points[begins] == points[ends - 1]).all(axis=1)
    extent = np.maximum.reduceat(points, begins) - np.minimum.reduceat(points, begins)
    _plain(not closed.any() and bool((extent > 0).all()))
    x, y = (points - np.repeat(points[begins], lengths, axis=0)).T
    cross = np.append(x[:-1] * y[1:] - y[:-1] * x[1:], 0.0)
    cross[ends - 1] = 0.0
    area = np.abs(np.add.reduceat(cross, begins)) / 2
    parts = [len(outline) for outline in outlines]
    areas[rows] = np.bincount(np.repeat(rows, parts), area, len(areas))[rows]
    pieces = iter(np.split(points, ends[:-1]))
    return {row: [next(pieces) for _ in range(count)] for row, count in zip(rows, parts, strict=True)}


def _runs(outlines: Sequence[Mapping[str, Any]], rows: Sequence[int], sizes: Int, areas: Float) -> dict[int, NDArray[np.uint32]]:
    if not outlines:
        return {}
    texts = [outline["counts"] for outline in outlines]
    stated = np.array([outline["size"] for outline in outlines], dtype=np.int64).reshape(len(outlines), -1)
    _plain(all(isinstance(text, str) for text in texts) and np.array_equal(stated, sizes[:, ::-1]))
    counts, starts = rle_from_strings(texts, stated.prod(axis=1))
    result = dict(zip(rows, np.split(counts, starts[1:-1]), strict=True))
    place = np.arange(len(counts)) - np.repeat(starts[:-1], np.diff(starts))
    area = np.add.reduceat(np.where(place % 2 == 1, counts, 0).astype(np.int64), starts[:-1])
    _plain(bool((area > 0).all()))
    areas[np.asarray(rows)] = area
    return result
