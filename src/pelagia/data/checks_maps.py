"""The checks of `pelagia doctor` on maps and outlines: class maps, panoptic images, masks of objects, keypoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.lazy import resolve
from pelagia.core.types import IGNORE_INDEX, Float, Int
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding
from pelagia.data.label_maps import segment_bounds
from pelagia.data.label_pixels import read_label_pixels
from pelagia.data.panoptic_png import read_ids
from pelagia.errors import PelagiaError

__all__ = ["SPECK_PX", "ClassPixels", "check_class_maps", "check_keypoints", "check_outlines", "check_panoptic", "count_pixels"]

#: A region of fewer pixels is a slip of the brush more often than an organism.
SPECK_PX = 5
#: A class with a smaller share of the pixels is hardly ever seen by windows at random.
_RARE = 0.002
#: An outline's bounds may differ from the box by this much and this share of its side: tools round, and simplify outlines.
_BOX_PX, _BOX_SHARE = 2.0, 0.1
#: A point may lie this far outside, in pixels: tools round.
_POINT_PX = 1.0
#: A point may lie outside its object's box by this share of the box's longer side.
_POINT_SHARE = 0.1


@dataclass(frozen=True)
class ClassPixels:
    """What the class maps hold: `pixels` [C] of each class, `images` [C] with it, `specks` [C] connected regions of fewer than 5
    pixels, `ignored` pixels, and the findings on the way."""

    pixels: Int
    images: Int
    specks: Int
    ignored: int
    findings: tuple[Finding, ...]


def count_pixels(dataset: Dataset) -> ClassPixels:
    """Read every class map once."""
    classes = len(dataset.categories)
    pixels, images, specks = (np.zeros(classes, dtype=np.int64) for _ in range(3))
    ignored = 0
    findings: list[Finding] = []
    for index in range(len(dataset)):
        where = _map_place(dataset, index)
        try:
            labels = dataset.semantic(index).labels
        except PelagiaError as error:
            findings.append(Finding("error", _code(dataset, index), error.reason, where))
            continue
        width, height = (int(side) for side in dataset.sizes[index])
        if width > 0 and labels.shape != (height, width):
            text = f"the map has {labels.shape[1]} x {labels.shape[0]} pixels, its image {width} x {height}; they must agree"
            findings.append(Finding("error", "mask.size", text, where))
            continue
        counts = np.bincount(labels.reshape(-1), minlength=IGNORE_INDEX + 1)
        ignored += int(counts[IGNORE_INDEX])
        counts[IGNORE_INDEX] = 0
        strange = np.flatnonzero(counts[classes:]) + classes
        if len(strange):
            text = f"pixel values {strange[:10].tolist()} stand for no class; name all classes, or correct the map"
            findings.append(Finding("error", "mask.value", text, where))
        if not counts[:classes].any():
            findings.append(Finding("warning", "mask.empty", "no pixel of the map has a class; it teaches nothing", where))
        pixels += counts[:classes]
        images += counts[:classes] > 0
        specks += _specks(labels, classes)
    return ClassPixels(pixels, images, specks, ignored, tuple(findings))


def _map_place(dataset: Dataset, index: int) -> str:
    if dataset.mask_files is not None:
        return str(dataset.root / dataset.mask_files[index])
    return dataset.names[index]


def _code(dataset: Dataset, index: int) -> str:
    """Why a map could not be had."""
    if dataset.mask_files is None:
        return "mask.broken"
    path = dataset.root / dataset.mask_files[index]
    if not path.is_file():
        return "mask.missing"
    try:
        read_label_pixels(path)
    except PelagiaError:
        return "mask.broken"
    return "mask.value"


def _specks(labels: NDArray[np.uint8] | NDArray[np.uint16], classes: int) -> Int:
    """[C], connected regions (by edges) of fewer than `SPECK_PX` pixels."""
    ndimage = resolve("scipy.ndimage", purpose="find small regions")
    found = np.zeros(classes, dtype=np.int64)
    for label in range(classes):
        own = labels == label
        if own.any():
            numbers, count = ndimage.label(own)
            found[label] = np.count_nonzero(np.bincount(numbers.reshape(-1), minlength=count + 1)[1:] < SPECK_PX)
    return found


def check_class_maps(dataset: Dataset, counted: ClassPixels) -> Iterator[Finding]:
    """Maps that cannot be used, classes that no pixel or hardly any has, classes absent from training, specks."""
    yield from counted.findings
    total = max(int(counted.pixels.sum()), 1)
    for label, name in enumerate(dataset.class_names):
        share = counted.pixels[label] / total
        if not counted.pixels[label]:
            yield Finding("warning", "class.empty", "no pixel is of this class; it cannot be learnt", name)
        elif share < _RARE:
            text = f"{100 * share:.3f} % of the pixels are of this class; train with crop and rare, or weigh the classes"
            yield Finding("warning", "class.rare", text, name)
        if counted.specks[label]:
            text = f"regions of fewer than {SPECK_PX} pixels are of this class; slips of the brush?"
            yield Finding("info", "mask.specks", text, name, int(counted.specks[label]))


def check_panoptic(dataset: Dataset) -> Iterator[Finding]:
    """Panoptic images that are missing, broken or of another size; ids that are listed or painted alone; boxes off the pixels."""
    if dataset.panoptic_files is None:
        return
    flat = dataset.annotations
    for index, file in enumerate(dataset.panoptic_files):
        path = dataset.root / file
        try:
            ids = read_ids(path)
        except PelagiaError as error:
            yield Finding("error", "mask.broken" if path.is_file() else "mask.missing", error.reason, str(path))
            continue
        width, height = (int(side) for side in dataset.sizes[index])
        if width > 0 and ids.shape != (height, width):
            text = f"the panoptic image has {ids.shape[1]} x {ids.shape[0]} pixels, its image {width} x {height}; they must agree"
            yield Finding("error", "mask.size", text, str(path))
            continue
        rows = slice(int(flat.starts[index]), int(flat.starts[index + 1]))
        listed = flat.ids[rows]
        painted = np.unique(ids)
        for number in np.setdiff1d(painted[painted != 0], listed).tolist():
            text = f"{np.count_nonzero(ids == number):,} pixels have this id, but no segment is listed with it"
            yield Finding("error", "segment.unlisted", text, f"{path}#{number}")
        if not painted.any():
            yield Finding("warning", "mask.empty", "every pixel is void; the image teaches nothing", str(path))
        bounds = segment_bounds(ids, listed)
        empty = (bounds[:, 2:] <= bounds[:, :2]).any(axis=1)
        for number in listed[empty].tolist():
            yield Finding("error", "segment.empty", "the segment is listed, but no pixel has its id", f"{path}#{number}")
        for row in np.flatnonzero(~empty & _off(bounds, flat.boxes[rows])).tolist():
            text = f"box {_numbers(flat.boxes[rows][row])} does not bound the segment's pixels, {_numbers(bounds[row])}"
            yield Finding("warning", "mask.outside_box", text, f"{path}#{listed[row]}")


def _off(bounds: Float, boxes: Float) -> NDArray[np.bool_]:
    """[n], whether a side of the box is off by more than rounding and simplifying explain."""
    side = (bounds[:, 2:] - bounds[:, :2]).max(axis=1, initial=0)
    found: NDArray[np.bool_] = np.abs(bounds - boxes).max(axis=1, initial=0) > np.maximum(_BOX_PX, _BOX_SHARE * side)
    return found


def _numbers(values: Float) -> str:
    return ", ".join(f"{value:g}" for value in values.tolist())


def check_outlines(dataset: Dataset) -> Iterator[Finding]:
    """Outlines without a pixel, off their box, missing beside others; objects that overlap."""
    flat = dataset.annotations
    if flat.shapes is None:
        return
    present = flat.shapes.present
    lacking = ~present & ~flat.ignore
    if lacking.any():
        text = "objects have no outline while others do; their boxes serve as masks"
        yield Finding("warning", "outline.missing", text, str(dataset.root), int(np.count_nonzero(lacking)))
    overlapping = 0
    for index, name in enumerate(dataset.names):
        width, height = (int(side) for side in dataset.sizes[index])
        if width <= 0 or height <= 0:
            continue
        rows = np.arange(flat.starts[index], flat.starts[index + 1])
        crops = {int(row): flat.shapes.crop(int(row), width, height) for row in rows if present[row]}
        covered = np.zeros((height, width), dtype=np.uint8)
        for row, crop in crops.items():
            where = f"{name}#{flat.ids[row]}"
            if crop is None or not crop.area:
                yield Finding("warning", "mask.empty", "the outline covers no pixel of the image; draw it again", where)
                continue
            inside = np.clip(flat.boxes[row], 0, [width, height, width, height])
            if _off(core_masks.bounds(crop)[None], inside[None])[0]:
                text = f"the outline, {_numbers(core_masks.bounds(crop))}, does not fill its box, {_numbers(inside)}"
                yield Finding("warning", "mask.outside_box", text, where)
            if not flat.crowd[row] and not flat.ignore[row]:
                part = core_masks.clip(crop, width, height)
                high, wide = part.bitmap.shape
                window = covered[part.y : part.y + high, part.x : part.x + wide]
                overlapping += int(window[part.bitmap].any())
                window[part.bitmap] = 1
    if overlapping:
        text = "outlines overlap; as maps and label images a pixel belongs to one object only (the smaller lies above)"
        yield Finding("info", "outline.overlap", text, str(dataset.root), overlapping)


def check_keypoints(dataset: Dataset) -> Iterator[Finding]:
    """Points outside image or box, objects without a point, flags that mean nothing, numbers of points and mirrored partners that
    do not fit the class."""
    flat = dataset.annotations
    if flat.keypoints is None:
        return
    for category in dataset.categories:
        yield from _check_names(category.name, category.keypoints, category.flip)
    images = flat.images
    points, flags = flat.keypoints[..., :2], flat.keypoints[..., 2]
    labelled = flags > 0
    objects = ~(flat.crowd | flat.ignore)

    def place(row: int) -> str:
        return f"{dataset.names[images[row]]}#{flat.ids[row]}"

    for row in np.flatnonzero(~np.isin(flags, (0, 1, 2)).all(axis=1)).tolist():
        strange = sorted(set(flags[row].tolist()) - {0.0, 1.0, 2.0})
        text = f"visibility must be 0 (not labelled), 1 (hidden) or 2 (visible), got {strange[:5]}"
        yield Finding("error", "keypoint.flag", text, place(row))
    for row in np.flatnonzero(objects).tolist():
        known = len(dataset.categories[int(flat.labels[row])].keypoints)
        extra = int(np.count_nonzero(labelled[row, known:])) if known else 0
        if extra:
            text = f"{extra} more points are labelled than the {known} that the class names"
            yield Finding("error", "keypoint.count", text, place(row))
    none = objects & ~labelled.any(axis=1)
    if none.any():
        text = "objects have no labelled point: they teach boxes, but no points"
        yield Finding("info", "keypoint.none", text, str(dataset.root), int(np.count_nonzero(none)))
    sizes = dataset.sizes[images].astype(np.float64).reshape(-1, 1, 2)
    off = ((points < -_POINT_PX) | ((points > sizes + _POINT_PX) & (sizes > 0))).any(axis=2) & labelled
    reach = _POINT_SHARE * (flat.boxes[:, 2:] - flat.boxes[:, :2]).max(axis=1, initial=0)[:, None, None] + _POINT_PX
    apart = (points < flat.boxes[:, None, :2] - reach) | (points > flat.boxes[:, None, 2:] + reach)
    apart = apart.any(axis=2) & labelled & ~off
    for code, found, what in (("keypoint.outside", off, "its image"), ("keypoint.outside_box", apart, "the object's box")):
        for row in np.flatnonzero(found.any(axis=1)).tolist():
            first = int(np.flatnonzero(found[row])[0])
            text = f"point {first + 1} at {_numbers(points[row, first])} lies outside {what}"
            yield Finding("warning", code, text, place(row), int(found[row].sum()))


def _check_names(name: str, keypoints: tuple[str, ...], flip: tuple[int, ...]) -> Iterator[Finding]:
    if not keypoints:
        yield Finding("info", "keypoint.names", "the class does not name its points; a mirrored image keeps left as left", name)
        return
    if flip and sorted(flip) != list(range(len(keypoints))):
        text = f"the mirrored partners {list(flip)} are no order of its {len(keypoints)} points"
        yield Finding("error", "keypoint.flip", text, name)
        return
    for index, point in enumerate(keypoints):
        words = set(point.lower().replace("-", "_").split("_"))
        if words & {"left", "right"} and (not flip or flip[index] == index):
            text = f"the point {point!r} has no partner on the other side, so that mirroring makes it wrong; switch flips off"
            yield Finding("warning", "keypoint.flip", text, name)
