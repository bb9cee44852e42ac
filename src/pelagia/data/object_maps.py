"""The map of the objects of an image, and masks cut from it, whatever the labels are: outlines or panoptic images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pelagia.core import image as core_image
from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.types import Float, Instances, Mask, MaskCrop
from pelagia.data import label_maps
from pelagia.data.panoptic_png import read_ids
from pelagia.errors import DataError

if TYPE_CHECKING:
    from pelagia.data.dataset import Dataset

__all__ = ["cut_truth", "object_map", "outline_masks", "void_objects"]


def outline_masks(dataset: Dataset, index: int, width: int, height: int) -> tuple[MaskCrop, ...]:
    """The outlines of the objects of image `index` as masks in an image of that size; the box of an object without one."""
    flat = dataset.annotations
    crops = []
    for row in range(int(flat.starts[index]), int(flat.starts[index + 1])):
        crop = None if flat.shapes is None else flat.shapes.crop(row, width, height)
        if crop is None:
            crop = core_masks.crop_from_polygon([_box_outline(dataset, row)], height, width)
        crops.append(crop)
    return tuple(crops)


def _box_outline(dataset: Dataset, row: int) -> Float:
    """[4, 2], the corners of the object's box, oriented where it has one."""
    flat = dataset.annotations
    if flat.oriented is not None:
        corners: Float = core_oriented.to_corners(flat.oriented[row : row + 1])[0]
        return corners
    x1, y1, x2, y2 = flat.boxes[row]
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def void_objects(dataset: Dataset, index: int) -> Mask:
    """[n], which objects of image `index` are no segment, since their pixels have no class: regions to ignore, and objects
    without an outline."""
    flat = dataset.annotations
    rows = slice(int(flat.starts[index]), int(flat.starts[index + 1]))
    void: Mask = flat.ignore[rows].copy()
    if dataset.panoptic_files is None and flat.shapes is not None:
        void |= ~flat.shapes.present[rows]
    return void


def object_map(dataset: Dataset, index: int) -> NDArray[np.int32]:
    """The map of the objects of image `index`; see `pelagia.data.label_maps`."""
    flat = dataset.annotations
    first, last = int(flat.starts[index]), int(flat.starts[index + 1])
    width, height = (int(value) for value in dataset.sizes[index])
    if dataset.panoptic_files is not None:
        path = dataset.root / dataset.panoptic_files[index]
        ids = read_ids(path)
        if min(width, height) > 0 and ids.shape != (height, width):
            text = f"the panoptic image has {ids.shape[1]} x {ids.shape[0]} pixels, its image {width} x {height}"
            raise DataError(f"{text}; they must agree", where=path)
        # Where stuff was left out, its pixels are of no object.
        where = str(path) if dataset.task in ("semantic", "panoptic") else None
        return label_maps.number_segments(ids, flat.ids[first:last], where)
    if flat.shapes is None and last > first:
        raise DataError("the labels hold no outlines to paint a map from", where=dataset.root)
    if min(width, height) <= 0:
        width, height = core_image.image_size(dataset.image_paths[index])
    below = void_objects(dataset, index) | flat.crowd[first:last]
    return label_maps.paint(outline_masks(dataset, index, width, height), below, width, height)


def cut_truth(dataset: Dataset, index: int, truth: Instances) -> Instances:
    """`truth` with masks cut from the map of objects."""
    numbers = object_map(dataset, index)
    masks = label_maps.segment_crops(numbers, len(truth))
    if dataset.panoptic_files is not None:
        return truth.replace(masks=masks)
    boxes = np.array([core_masks.bounds(crop) for crop in masks]).reshape(-1, 4)
    truth = truth.replace(masks=masks, boxes=boxes, ignore=void_objects(dataset, index), areas=None)
    truth = truth.select(np.array([crop.area > 0 for crop in masks], dtype=np.bool_))
    rest = core_masks.crop_from_bitmap(numbers == 0)
    if dataset.background is None or not rest.area:
        return truth
    found = Instances(np.array([dataset.background]), core_masks.bounds(rest)[None], masks=(rest,))
    if truth.keypoints is not None:
        found = found.replace(keypoints=np.zeros((1, *truth.keypoints.shape[1:])))
    return Instances.concatenate([truth, found])
