"""Small data sets drawn for the tests of formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pelagia.core import masks as core_masks
from pelagia.core.types import Category, Instances
from pelagia.data.dataset import Dataset

REAL = Path(__file__).parents[2] / "shared" / "data"

CATEGORIES = (Category(7, "Chaetoceros sp."), Category(3, "Ålgæ, mixed"), Category(21, "copepod"))


def real(name: str) -> Path:
    """A folder of the real data, or skip."""
    if not (REAL / name).exists():
        pytest.skip(f"the real data {name} are not beside the repository")
    return REAL / name


def draw(path: Path, width: int, height: int, *, orientation: int | None = None) -> Path:
    """Write an image; with an EXIF `orientation` the stored picture is width x height before it is applied."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if orientation is None:
        image.save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def coco(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A COCO document of one image of 40 x 30 and two categories with a gap in their ids."""
    document = {
        "images": [{"id": 5, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [{"id": k + 1, "image_id": 5, "category_id": 2, **entry} for k, entry in enumerate(annotations)],
        "categories": [{"id": 2, "name": "diatom"}, {"id": 9, "name": "copepod"}],
    }
    return document | changes


def codes(dataset: Dataset) -> list[str]:
    return [finding.code for finding in dataset.findings]


def random_oriented(rng: np.random.Generator, count: int, width: int, height: int) -> np.ndarray:
    """Oriented boxes wholly inside the image."""
    w = rng.uniform(6, 12, count)
    h = w * rng.uniform(0.3, 0.9, count)
    margin = 10
    centre = rng.uniform([margin, margin], [width - margin, height - margin], (count, 2))
    return np.column_stack([centre, w, h, rng.uniform(-np.pi / 2, np.pi / 2 - 1e-3, count)])


def survey(folder: Path, kind: str, *, images: int = 4) -> Dataset:
    """A drawn data set of `kind` boxes, oriented, masks or keypoints, in sub-folders, with a background image and splits."""
    rng = np.random.default_rng(11)
    items = []
    for index in range(images):
        width, height = 64 + index, 48 + 2 * index
        path = draw(folder / f"cruise {index % 2}" / f"bild_ö{index}.png", width, height)
        count = 0 if index == 2 else 3
        items.append((path, (width, height), _instances(rng, kind, count, width, height)))
    categories = CATEGORIES
    if kind == "keypoints":
        categories = tuple(Category(c.id, c.name, "", ("head", "tail"), ((0, 1),), (0, 1)) for c in CATEGORIES)
    splits = {"train": [0, 2], "val": [1]}
    return Dataset.from_instances(categories, items, root=folder, splits=splits)


def _instances(rng: np.random.Generator, kind: str, count: int, width: int, height: int) -> Instances:
    labels = rng.permutation(3)[:count]
    low = rng.uniform([0, 0], [width - 25, height - 25], (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 24, (count, 2))], axis=1)
    if kind == "oriented":
        return Instances(labels=labels, oriented=random_oriented(rng, count, width, height))
    if kind == "keypoints":
        points = np.concatenate([rng.uniform(0, 40, (count, 2, 2)), rng.integers(1, 3, (count, 2, 1))], axis=2)
        return Instances(labels=labels, boxes=boxes, keypoints=points)
    if kind == "masks":
        crops = []
        for k in range(count):  # apart from each other, so that a label image can hold them
            x, y = 2 + 20 * k, int(rng.integers(2, 20))
            bitmap = np.zeros((height, width), dtype=bool)
            bitmap[y : y + 14, x : x + 15] = rng.random((14, 15)) < 0.8
            bitmap[y + 5, x : x + 15] = True
            crops.append(core_masks.crop_from_bitmap(bitmap))
        bounds = np.array([core_masks.bounds(crop) for crop in crops]).reshape(-1, 4)
        return Instances(labels=labels, boxes=bounds, masks=tuple(crops))
    return Instances(labels=labels, boxes=boxes)


def same_truth(a: Dataset, b: Dataset, *, atol: float = 1e-6, masks: bool = False) -> None:
    """Assert that two data sets hold the same objects, in the same order, under the same image and class names."""
    assert sorted(a.names) == sorted(b.names)
    place = {name: index for index, name in enumerate(b.names)}
    for index, name in enumerate(a.names):
        first, second = a.truth(index, masks=masks), b.truth(place[name], masks=masks)
        assert (a.sizes[index] == b.sizes[place[name]]).all()
        assert [a.class_names[k] for k in first.labels] == [b.class_names[k] for k in second.labels]
        np.testing.assert_allclose(first.box_array, second.box_array, atol=atol)
        for field in ("oriented", "keypoints"):
            one, two = getattr(first, field), getattr(second, field)
            assert (one is None) == (two is None) or len(first) == 0
            if one is not None and two is not None:
                np.testing.assert_allclose(one, two, atol=atol)
        if masks:
            assert first.masks is not None
            assert second.masks is not None
            height, width = int(a.sizes[index][1]), int(a.sizes[index][0])
            for one, two in zip(first.masks, second.masks, strict=True):
                np.testing.assert_array_equal(core_masks.paste(one, height, width), core_masks.paste(two, height, width))
