"""More objects in an image than a predictor of sets has queries: told once, with the count."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pelagia.core import image as core_image
from pelagia.core.types import Category, Instances
from pelagia.data.augment import AugmentOptions
from pelagia.data.dataset import Dataset
from pelagia.models.registry import create, entry
from pelagia.train.loop import train
from pelagia.train.options import TrainOptions
from pelagia.train.prepare import too_few_queries


def crowd(folder: Path, counts: list[int], flagged: int = 0) -> Dataset:
    """Images with so many objects; the first `flagged` of each are crowds."""
    items = []
    for number, count in enumerate(counts):
        core_image.write(folder / f"{number}.png", np.full((64, 64, 1), 90, dtype=np.uint8))
        corner = np.arange(count)[:, None] * np.array([[2.0, 1.0]])
        crowds = np.arange(count) < flagged
        truth = Instances(np.zeros(count, dtype=np.int64), boxes=np.hstack([corner, corner + 9]), crowd=crowds)
        items.append((folder / f"{number}.png", (64, 64), truth))
    return Dataset.from_instances(["a", "b"], items, root=folder, task="detect")


def test_the_run_tells_of_images_with_more_objects_than_queries(tmp_path: Path) -> None:
    queries = entry("detr-r50").tiny["queries"]
    data = crowd(tmp_path, [3, queries + 5, queries + 1, queries])
    options = TrainOptions(
        model="detr-r50",
        model_options=tuple(f"{name}={value}" for name, value in entry("detr-r50").tiny.items()),
        out=str(tmp_path / "run"),
        epochs=2,
        batch=4,
        imgsz=64,
        threads=1,
        val_fraction=0.0,
        augment=AugmentOptions(mosaic=0.0),
    )
    train(options, data, quiet=True)
    lines = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "queries" in line]
    assert len(lines) == 1
    assert (
        f"2 of 4 training images hold more objects than the {queries} queries of detr-r50, at most {queries + 5} (1.png)"
        in lines[0]
    )


def test_crowds_and_models_without_queries_give_no_warning(tmp_path: Path) -> None:
    queries = entry("detr-r50").tiny["queries"]
    data = crowd(tmp_path, [queries + 2], flagged=2)
    model = create("detr-r50", data.categories, "detect", input_size=64, options=entry("detr-r50").tiny)
    assert too_few_queries(model, data) == []
    assert too_few_queries(model, crowd(tmp_path, [queries + 3], flagged=2)) != []
    plain = create("yolo11n", data.categories, "detect", input_size=64, options=entry("yolo11n").tiny)
    assert too_few_queries(plain, crowd(tmp_path, [queries + 20])) == []


def test_the_pieces_of_stuff_are_one_segment(tmp_path: Path) -> None:
    name = "mask2former-r50"
    queries = entry(name).tiny["queries"]
    things = crowd(tmp_path, [queries + 4])
    stuff = tuple(Category(category.id, category.name, is_thing=False) for category in things.categories)
    model = create(name, stuff, "panoptic", input_size=64, options=entry(name).tiny)
    items = [(tmp_path / "0.png", (64, 64), things.truth(0))]
    assert too_few_queries(model, Dataset.from_instances(stuff, items, root=tmp_path, task="detect")) == []
    assert len(too_few_queries(model, things)) == 1
