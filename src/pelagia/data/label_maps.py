"""Maps of objects: for every pixel the object, painted from outlines or read from a panoptic image.

In a map of n objects a pixel is 0 (of no object) or k + 1 (of object k). Where outlines overlap, a smaller object lies above a
larger one, and of two equal ones the later lies above; what is no single object (crowds, regions to ignore, objects without an
outline) lies below all others. Class maps, panoptic maps and the masks of panoptic truth are all taken from this one map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.lazy import resolve
from pelagia.core.types import IGNORE_INDEX, Category, Float, Int, Mask, MaskCrop, PanopticMap, Segment, SemanticMap
from pelagia.errors import DataError

__all__ = ["class_map", "number_segments", "paint", "panoptic_map", "segment_bounds", "segment_crops"]


def paint(crops: Sequence[MaskCrop], below: Mask, width: int, height: int) -> NDArray[np.int32]:
    """[H, W], the map of n objects from their masks; `below` [n] marks those that lie under all others."""
    areas = np.array([crop.area for crop in crops], dtype=np.int64)
    result = np.zeros((height, width), dtype=np.int32)
    for row in np.lexsort((-areas, ~below)).tolist():
        crop = core_masks.clip(crops[row], width, height)
        rows, columns = crop.bitmap.shape
        result[crop.y : crop.y + rows, crop.x : crop.x + columns][crop.bitmap] = row + 1
    return result


def number_segments(ids: NDArray[np.int32], segments: Int, where: str | None) -> NDArray[np.int32]:
    """The map [H, W] of the objects whose ids are `segments` [n], from the `ids` [H, W] of a panoptic image (0 = void).

    `where` is the file to name in an error; None lets pixels of other ids be of no object.

    Raises:
        DataError: a pixel has an id that is not listed.
    """
    order = np.argsort(segments, kind="stable")
    table = np.concatenate([[0], segments[order]])
    # Runs of equal pixels are looked up at once: there are far fewer of them than pixels.
    flat = ids.reshape(-1)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])) if len(flat) else np.zeros(0, dtype=np.int64)
    values = flat[starts]
    place = np.minimum(np.searchsorted(table, values), len(table) - 1)
    strange = table[place] != values
    if strange.any() and where is not None:
        found = np.unique(values[strange])[:5].tolist()
        text = f"the pixels hold segment ids that are not listed: {found}; list them, or run `pelagia doctor` on the data"
        raise DataError(text, where=where)
    numbers = np.where(strange, 0, np.concatenate([[0], order + 1])[place]).astype(np.int32)
    return np.repeat(numbers, np.diff(starts, append=len(flat))).reshape(ids.shape)


def segment_crops(numbers: NDArray[np.int32], count: int) -> tuple[MaskCrop, ...]:
    """The tight masks of the objects 0 to `count` - 1 of a map, 0 x 0 for one without a pixel."""
    ndimage = resolve("scipy.ndimage", purpose="cut masks from a map of objects")
    crops = []
    for row, window in enumerate(ndimage.find_objects(numbers, max_label=count)):
        if window is None:
            crops.append(MaskCrop(0, 0, np.zeros((0, 0), dtype=np.bool_)))
        else:
            crops.append(MaskCrop(window[1].start, window[0].start, numbers[window] == row + 1))
    return tuple(crops)


def segment_bounds(ids: NDArray[np.int32], segments: Int) -> Float:
    """[n, 4] x1, y1, x2, y2 around the pixels of each id of `segments` [n]; zeros for one without a pixel."""
    crops = segment_crops(number_segments(ids, segments, None), len(segments))
    return np.array([core_masks.bounds(crop) for crop in crops]).reshape(-1, 4)


def class_map(numbers: NDArray[np.int32], labels: Int, void: Mask, background: int | None) -> SemanticMap:
    """The class of every pixel: `labels` [n] of the objects, 255 where `void` [n], `background` (255 if None) between them."""
    table = np.full(len(labels) + 1, IGNORE_INDEX, dtype=np.uint8)
    if background is not None:
        table[0] = background
    table[1:][~void] = labels[~void]
    return SemanticMap(table[numbers])


def panoptic_map(
    numbers: NDArray[np.int32],
    ids: Int,
    labels: Int,
    crowd: Mask,
    void: Mask,
    categories: Sequence[Category],
    background: int | None,
) -> PanopticMap:
    """The segments of an image: object k has the id `ids[k]`, none where `void`, crowds keep their flag; one without a pixel is
    left out.

    Objects of one class of stuff are one segment with the id of the first. Pixels of no object are the segment `background`,
    with an id above all others, or void if that is None.
    """
    ids = merge_stuff(ids, labels, void | crowd, categories)
    table = np.zeros(len(ids) + 1, dtype=np.int32)
    table[1:] = np.where(void, 0, ids)
    most = int(ids.max(initial=0)) + 1
    if background is not None:
        table[0] = most
    result = table[numbers]
    present = set(np.unique(result).tolist())
    segments = [
        Segment(number, int(labels[row]), crowd=bool(crowd[row]))
        for row, number in enumerate(ids.tolist())
        if not void[row] and number in present and number not in ids[:row]
    ]
    if background is not None and most in present:
        segments.append(Segment(most, background))
    return PanopticMap(result, tuple(segments))


def merge_stuff(ids: Int, labels: Int, apart: Mask, categories: Sequence[Category]) -> Int:
    """[n], `ids` with one id, the first, for all objects of a class of stuff but those `apart`."""
    result = ids.copy()
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero((labels == label) & ~apart)
        if len(rows) > 1 and not categories[label].is_thing:
            result[rows] = ids[rows[0]]
    return result
