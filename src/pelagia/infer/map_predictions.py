"""Predicted maps made by any tool: label images of objects, semantic label images, and COCO panoptic files.

Maps are read when they are asked for, so that a survey of large scans need not fit into memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core import tiff as core_tiff
from pelagia.core.types import IGNORE_INDEX, SemanticMap
from pelagia.data.dataset import Dataset
from pelagia.data.formats.common import image_files
from pelagia.data.formats.writing import read_categories
from pelagia.data.label_pixels import LABEL_SUFFIXES, MAX_LABEL_PIXELS, read_label_pixels
from pelagia.errors import EvaluationError, ImageError
from pelagia.infer.match_images import MapList, check_folder, known_sizes, match_files, refuse_size
from pelagia.infer.panoptic_files import PanopticFile, pair_panoptic, read_panoptic

__all__ = [
    "MapList",
    "PanopticFile",
    "pair_panoptic",
    "read_label_predictions",
    "read_panoptic",
    "read_semantic_predictions",
]

#: What the name of a predicted label image may have after that of its image.
_ENDINGS = ("_cp_masks", "_masks", "_mask", "_labels", "_label", "_instances", "_semantic", "_pred")


# Label images


def read_label_predictions(
    folder: str | Path, dataset: Dataset
) -> tuple[Sequence[NDArray[Any]], Sequence[NDArray[Any]], list[str]]:
    """Predicted and true label images [H, W] of every image of `dataset`, 0 = background, each other value one object.

    Predictions are the PNG, TIFF or BMP files in `folder` that are called like the images, or so with `_mask`, `_cp_masks` and
    the like after the name; TIFF may have 32 bits. An image without a file has no predicted object. Third come the names of
    files for images that `dataset` does not have: they are left out, since it may be a split.

    Truth is painted object by object, 1 to n in the order of `dataset`; a pixel in several belongs to the last, as in the label
    images that `pelagia convert` writes. Data read from label images keep their values. Crowds and regions to ignore are no
    single objects and become background.

    Raises:
        FormatError: no such folder.
        EvaluationError: the labels hold no outlines, none of the files is for an image of `dataset`, two are for one, or a name
            means several images; when a map is asked for, also if its size is not its image's.
        ImageError: when a map is asked for: broken, in colour, or not of whole numbers from 0.
    """
    folder = Path(folder)
    if dataset.annotations.shapes is None and len(dataset.annotations):
        raise EvaluationError("the labels hold no outlines to compare label images with", where=dataset.root)
    files, unknown = _label_files(folder, dataset)
    dataset = replace(dataset, sizes=known_sizes(dataset, range(len(dataset))))
    predicted = MapList(partial(_predicted_objects, dataset, files), len(dataset))
    return predicted, MapList(partial(_true_objects, dataset), len(dataset)), unknown


def _label_files(folder: Path, dataset: Dataset) -> tuple[dict[int, Path], list[str]]:
    check_folder(folder)
    files = [file for file in image_files(folder) if file.suffix.lower() in LABEL_SUFFIXES]
    if not files:
        raise EvaluationError(f"there is no label image here; expected {', '.join(LABEL_SUFFIXES)}", where=folder)
    return match_files(files, folder, dataset.names, endings=_ENDINGS)


def _predicted_objects(dataset: Dataset, files: Mapping[int, Path], index: int) -> NDArray[Any]:
    width, height = dataset.sizes[index].tolist()
    if index not in files:
        return np.zeros((height, width), dtype=np.uint8)
    wide = _read_wide(files[index])
    pixels = read_label_pixels(files[index]) if wide is None else wide
    _check_size(pixels, dataset, index, files[index])
    return pixels


def _true_objects(dataset: Dataset, index: int) -> NDArray[Any]:
    width, height = dataset.sizes[index].tolist()
    truth = dataset.truth(index, masks=True)
    assert truth.masks is not None
    flat = dataset.annotations
    numbers = np.arange(1, len(truth) + 1)
    if dataset.format == "labels":  # whose ids are the values of the source
        numbers = flat.ids[flat.starts[index] : flat.starts[index + 1]]
    pixels = np.zeros((height, width), dtype=np.uint16 if numbers.max(initial=0) <= 65535 else np.uint32)
    for row in np.flatnonzero(~(truth.crowd | truth.ignore)).tolist():
        crop = core_masks.clip(truth.masks[row], width, height)
        rows, columns = crop.bitmap.shape
        pixels[crop.y : crop.y + rows, crop.x : crop.x + columns][crop.bitmap] = numbers[row]
    return pixels


def _read_wide(path: Path) -> NDArray[np.uint32] | None:
    """[H, W], the first page of a TIFF of 32-bit integers; None for any other file."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            if page.dtype not in (np.uint32, np.int32) or len(page.shape) != 2:
                return None
            if page.shape[0] * page.shape[1] > MAX_LABEL_PIXELS:
                text = f"the label image has {page.shape[1]} x {page.shape[0]} pixels, more than {MAX_LABEL_PIXELS:,}"
                raise ImageError(text, where=path)
            pixels = np.asarray(page.asarray())
    except core_tiff.BROKEN as error:
        raise ImageError(f"the label image cannot be read ({error})", where=path) from error
    if pixels.size and int(pixels.min()) < 0:
        raise ImageError(f"label values must be 0 or more, got {pixels.min()}", where=path)
    return pixels.astype(np.uint32, copy=False)


def _check_size(pixels: NDArray[Any], dataset: Dataset, index: int, path: Path) -> None:
    width, height = dataset.sizes[index].tolist()
    if pixels.shape != (height, width):
        refuse_size(pixels.shape, (height, width), dataset.names[index], path)


# Semantic maps


def read_semantic_predictions(folder: str | Path, dataset: Dataset) -> tuple[Sequence[SemanticMap], list[str]]:
    """The predicted class of every pixel, one `SemanticMap` per image of `dataset`, to compare with its `semantic`.

    The files are found as by `read_label_predictions`. Their pixels have the values of the truth's files: where
    `dataset.mask_values` translates those to labels, it translates these. With a `categories.json` in the folder or beside it, as
    `pelagia predict` and `pelagia convert` write it, a value is a position in that list, and classes are the same where their
    names are; one that the truth does not have counts as no class. 255 says "no class", as does an image without a file in all
    its pixels. Beside the maps, the names of files for images that `dataset` does not have.

    Raises:
        FormatError: no such folder.
        EvaluationError: the data set has no semantic maps, none of the files is for one of its images, two are for one, or a name
            means several images; when a map is asked for, also if its size is not its image's or a value stands for no class.
        ImageError: when a map is asked for: broken, in colour, or not of whole numbers from 0.
    """
    if dataset.task != "semantic":
        text = "the data set has no semantic label images to compare with; take its task 'semantic' if it has outlines"
        raise EvaluationError(text, where=dataset.root)
    files, unknown = _label_files(Path(folder), dataset)
    dataset = replace(dataset, sizes=known_sizes(dataset, range(len(dataset))))
    pairs = _stated_classes(Path(folder), dataset)
    return MapList(partial(_predicted_classes, dataset, files, pairs), len(dataset)), unknown


def _stated_classes(folder: Path, dataset: Dataset) -> tuple[tuple[int, int], ...]:
    """Pixel value of a prediction -> label of the truth."""
    stated = read_categories(folder) or read_categories(folder.parent)
    if stated is not None:
        places = {name: label for label, name in enumerate(dataset.class_names)}
        if not any(category.name in places for category in stated):
            theirs, ours = (", ".join(item.name for item in some[:5]) for some in (stated, dataset.categories))
            raise EvaluationError(f"no predicted class ({theirs}) has the name of a class of the truth ({ours})", where=folder)
        pairs = [(value, places.get(category.name, IGNORE_INDEX)) for value, category in enumerate(stated)]
        return (*pairs, *(() if len(pairs) > IGNORE_INDEX else ((IGNORE_INDEX, IGNORE_INDEX),)))
    if dataset.mask_values is not None:
        return dataset.mask_values
    return tuple((value, value) for value in (*range(len(dataset.categories)), IGNORE_INDEX))


def _predicted_classes(dataset: Dataset, files: Mapping[int, Path], pairs: Sequence[tuple[int, int]], index: int) -> SemanticMap:
    width, height = dataset.sizes[index].tolist()
    if index not in files:
        return SemanticMap(np.full((height, width), IGNORE_INDEX, dtype=np.uint8))
    pixels = read_label_pixels(files[index])
    _check_size(pixels, dataset, index, files[index])
    table = np.zeros(65536, dtype=np.uint16)
    known = np.zeros(65536, dtype=np.bool_)
    for value, label in pairs:
        table[value], known[value] = label, True
    strange = ~known[pixels]
    if strange.any():
        values = ", ".join(map(str, np.unique(pixels[strange])[:5]))
        expected = ", ".join(str(value) for value, _ in sorted(pairs)[:10])
        text = f"the values {values} stand for no class; expected are {expected}{', ...' if len(pairs) > 10 else ''}"
        raise EvaluationError(text, where=files[index])
    labels = table[pixels]
    return SemanticMap(labels.astype(np.uint8) if labels.max(initial=0) <= 255 else labels)
