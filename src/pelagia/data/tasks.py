"""The same labels as the truth of another task: what each task needs, and what is derived or left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.lazy import resolve
from pelagia.core.types import BACKGROUND, IGNORE_INDEX, Category, Float, Mask, MaskCrop, Task, ground_label
from pelagia.data import label_maps
from pelagia.data.annotation_builder import AnnotationBuilder
from pelagia.data.annotations import build_shapes
from pelagia.data.findings import Finding
from pelagia.errors import DataError

if TYPE_CHECKING:
    from pelagia.data.dataset import Dataset

__all__ = ["retask", "with_outlines"]


def retask(dataset: Dataset, task: Task) -> Dataset:
    """See `Dataset.with_task`."""
    if task == dataset.task and (task != "oriented" or dataset.annotations.oriented is not None):
        return dataset
    _check(dataset, task)
    if dataset.mask_files is not None:
        if len(dataset.annotations) or task == "semantic":
            return replace(dataset, task=task)
        return retask(_objects_of_maps(dataset), task)
    dataset = _without_background(dataset)
    if task in ("semantic", "panoptic"):
        return replace(_with_background(dataset, task), task=task)
    if dataset.panoptic_files is not None:
        dataset = replace(_things(dataset), task="instance")
    annotations, findings = dataset.annotations, dataset.findings
    if task == "oriented" and annotations.oriented is None and len(annotations):
        oriented, missing = _derive_oriented(dataset)
        annotations = replace(annotations, oriented=oriented)
        if missing:
            text = "objects have no outline: their upright boxes serve as oriented boxes"
            findings = (*findings, Finding("warning", "oriented.upright", text, str(dataset.root), missing))
    return replace(dataset, task=task, annotations=annotations, findings=findings)


def with_outlines(dataset: Dataset) -> Dataset:
    """Data with panoptic images as data with outlines: the mask of each object as run lengths."""
    if dataset.panoptic_files is None:
        return dataset
    flat = dataset.annotations
    runs = {}
    for index in range(len(dataset)):
        width, height = (int(side) for side in dataset.sizes[index])
        masks = dataset.truth(index, masks=True).masks or ()
        for row, mask in enumerate(masks, start=int(flat.starts[index])):
            if mask.area:
                runs[row] = core_masks.crop_to_rle(mask, height, width).counts
    annotations = replace(flat, shapes=build_shapes({}, runs, len(flat)))
    return replace(dataset, annotations=annotations, panoptic_files=None)


def _check(dataset: Dataset, task: Task) -> None:
    flat = dataset.annotations
    if dataset.mask_files is not None and task in ("panoptic", "keypoints") and not len(flat):
        text = f"the label images hold the class of each pixel and no single objects, which the task {task!r} needs"
        raise DataError(text, where=dataset.root)
    outlines = flat.shapes is not None or dataset.panoptic_files is not None or not len(flat)
    if task in ("instance", "panoptic") and not outlines:
        raise DataError(f"the labels hold no outlines, which the task {task!r} needs", where=dataset.root)
    if task == "semantic" and not outlines and dataset.mask_files is None:
        text = "the data set has no semantic label images and no outlines to paint them from, which the task 'semantic' needs"
        raise DataError(text, where=dataset.root)
    if task == "keypoints" and flat.keypoints is None and len(flat):
        raise DataError("the labels hold no keypoints", where=dataset.root)


def _with_background(dataset: Dataset, task: Task) -> Dataset:
    """Data from outlines with a class for the pixels between them: the last one, unless one of that name exists.

    Panoptic images say what is void, and so do outlines of stuff for the task `panoptic`.
    """
    if dataset.panoptic_files is not None:
        return dataset
    if task == "panoptic" and any(not category.is_thing for category in dataset.categories):
        return dataset
    for label, category in enumerate(dataset.categories):
        if category.name.strip().casefold() == BACKGROUND:
            if task == "panoptic":
                break  # objects are called so: it is no class of all that is left
            return replace(dataset, background=label)
    if len(dataset.categories) >= IGNORE_INDEX and task == "semantic":
        text = f"{len(dataset.categories)} classes and the background; a class map holds 255 (255 = ignore)"
        raise DataError(text, where=dataset.root)
    used = {category.id for category in (*dataset.categories, *dataset.ignored)}
    category = Category(0 if 0 not in used else max(used) + 1, BACKGROUND, is_thing=False)
    return replace(dataset, categories=(*dataset.categories, category), background=len(dataset.categories))


def _objects_of_maps(dataset: Dataset) -> Dataset:
    """Data with label images of classes as data with outlines: the components (4 neighbours) of each class but the ground, which
    is the class called background, else the first; ignored pixels are regions to ignore."""
    ground = ground_label(dataset.categories)
    ndimage = resolve("scipy.ndimage", purpose="find the objects of label images")
    builder = AnnotationBuilder()
    for index in range(len(dataset)):
        labels = dataset.semantic(index).labels
        height, width = labels.shape
        for label in np.unique(labels[labels != ground]).tolist():
            numbers, count = ndimage.label(labels == label)
            ignore = label == IGNORE_INDEX
            for crop in label_maps.segment_crops(numbers, count):
                runs = core_masks.crop_to_rle(crop, height, width).counts
                place = 0 if ignore else label - (label > ground)
                builder.add(index, place, core_masks.bounds(crop), area=float(crop.area), ignore=ignore, runs=runs)
    annotations = builder.build(len(dataset))
    count = int(np.count_nonzero(~annotations.ignore))
    text = f"objects are the components of each class but {dataset.categories[ground].name}, which is the ground"
    return replace(
        dataset,
        categories=tuple(category for label, category in enumerate(dataset.categories) if label != ground),
        task="instance",
        annotations=annotations,
        mask_files=None,
        mask_values=None,
        findings=(*dataset.findings, Finding("info", "objects.components", text, str(dataset.root), count)),
    )


def _without_background(dataset: Dataset) -> Dataset:
    """What `_with_background` added is taken away."""
    label = dataset.background
    if label is None:
        return dataset
    added = label == len(dataset.categories) - 1 and not dataset.categories[label].is_thing
    categories = dataset.categories[:-1] if added else dataset.categories
    return replace(dataset, categories=categories, background=None)


def _things(dataset: Dataset) -> Dataset:
    """Panoptic data without stuff: its segments and its classes are left out, with a finding."""
    stuff: Mask = np.array([not category.is_thing for category in dataset.categories], dtype=np.bool_)
    if not stuff.any():
        return dataset
    labels = np.cumsum(~stuff) - 1
    flat = dataset.annotations
    flat = flat.select(~stuff[flat.labels] | (flat.ignored_as >= 0))
    renumbered = np.maximum(labels[flat.labels], 0)
    renumbered.flags.writeable = False
    left_out = len(dataset.annotations) - len(flat)
    text = f"segments of stuff are left out with their {int(stuff.sum())} classes; the task needs single objects"
    findings = (*dataset.findings, Finding("info", "stuff.left_out", text, str(dataset.root), left_out))
    categories = tuple(category for category in dataset.categories if category.is_thing)
    return replace(dataset, categories=categories, annotations=replace(flat, labels=renumbered), findings=findings)


def _derive_oriented(dataset: Dataset) -> tuple[Float, int]:
    """[M, 5] from outlines, and how many objects had none."""
    flat = dataset.annotations
    images = flat.images
    corners = np.stack([flat.boxes[:, [0, 2, 2, 0]], flat.boxes[:, [1, 1, 3, 3]]], axis=2)
    oriented: Float = core_oriented.from_corners(corners)
    if dataset.panoptic_files is not None:
        for index in range(len(dataset)):
            rows = range(int(flat.starts[index]), int(flat.starts[index + 1]))
            crops: Sequence[MaskCrop] = dataset.truth(index, masks=True).masks or ()
            for row, mask in zip(rows, crops, strict=True):
                if mask.area:
                    oriented[row] = core_masks.min_area_box(mask)
        return oriented, 0
    present: Mask = np.zeros(len(flat), dtype=np.bool_) if flat.shapes is None else flat.shapes.present
    for row in np.flatnonzero(present).tolist():
        assert flat.shapes is not None
        rings = flat.shapes.rings(row)
        if rings:
            oriented[row] = core_oriented.from_points(np.concatenate(rings))
            continue
        width, height = dataset.sizes[images[row]]
        crop = flat.shapes.crop(row, int(width), int(height))
        if crop is not None and crop.area:
            oriented[row] = core_masks.min_area_box(crop)
    return oriented, int(np.count_nonzero(~present))
