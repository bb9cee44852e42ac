"""Every task from labels to results: train, evaluate, predict and export one small model each, through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pelagia
from pelagia.cli.main import main
from pelagia.core import image as core_image
from pelagia.core import masks as core_masks
from pelagia.core.oriented import canonical
from pelagia.core.types import Category, Instances, PanopticMap, SemanticMap, Task
from pelagia.data.dataset import Dataset
from pelagia.models import registry

SIDE = 64
CATEGORIES = (
    Category(1, "bright", "", ("head", "tail"), ((0, 1),), (0, 1)),
    Category(2, "dark", "", ("head", "tail"), ((0, 1),), (0, 1)),
)


def _cases() -> list[Any]:
    """One architecture and task a case; sizes of one family do the same."""
    first = {entry.builder: entry for entry in reversed(registry.entries())}
    return [pytest.param(entry.name, task, id=f"{entry.name}-{task}") for entry in first.values() for task in entry.tasks]


def draw(folder: Path, images: int = 4) -> Dataset:
    """Grey images with a bright and a dark ellipse each, with masks, oriented boxes and two keypoints."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    items = []
    for number in range(images):
        rng = np.random.default_rng([5, number])
        image = rng.integers(110, 130, (SIDE, SIDE, 1)).astype(np.uint8)
        crops, turned, points = [], [], []
        for label, centre in enumerate(((17, 32), (46, 32))):
            cx, cy = centre + rng.uniform(-3, 3, 2)
            angle = rng.uniform(-1.5, 1.5)
            along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
            across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
            bitmap = (along / 12) ** 2 + (across / 7) ** 2 < 1
            image[bitmap] = (230, 20)[label]
            crops.append(core_masks.crop_from_bitmap(bitmap))
            turned.append([cx, cy, 24.0, 14.0, angle])
            tips = np.array([[cx, cy]]) + np.array([[12.0], [-12.0]]) * [[np.cos(angle), np.sin(angle)]]
            points.append(np.concatenate([tips.clip(0, SIDE), [[2.0], [2.0]]], axis=1))
        path = folder / f"{number}.png"
        core_image.write(path, image)
        truth = Instances(
            np.array([0, 1]),
            boxes=np.array([core_masks.bounds(crop) for crop in crops]),
            oriented=canonical(np.array(turned)),
            masks=tuple(crops),
            keypoints=np.array(points),
        )
        items.append((path, (SIDE, SIDE), truth))
    return Dataset.from_instances(CATEGORIES, items, root=folder, splits={"train": range(images), "val": range(images)})


def small(name: str) -> str:
    """The name of the same model with its tiny options, registered for tests."""
    entry = registry.entry(name)
    tiny = f"{name}-tiny-for-tests"
    if tiny not in registry._entries:
        registry._entries[tiny] = replace(entry, name=tiny, defaults={**entry.defaults, **entry.tiny})
    return tiny


@pytest.fixture(autouse=True)
def _only_real_models_remain() -> Any:
    yield
    for name in [name for name in registry._entries if name.endswith("-tiny-for-tests")]:
        del registry._entries[name]


@pytest.mark.parametrize(("name", "task"), _cases())
def test_from_labels_to_results(name: str, task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw(tmp_path / "images").with_task(task)
    size = registry.entry(name).tiny_input[0]
    run = pelagia.train(small(name), data, epochs=1, batch=2, imgsz=size, threads=1, out=str(tmp_path / "run"))
    assert run.best.is_file()
    assert (run.folder / "train_batch.png").is_file()
    assert np.isfinite(run.history[0]["loss"])
    predictor = pelagia.load(run.folder)
    found = predictor.predict(tmp_path / "images" / "0.png")
    assert isinstance(found, {"semantic": SemanticMap, "panoptic": PanopticMap}.get(task, Instances))
    assert pelagia.evaluate(predictor, data).lines()
    images = [str(path) for path in sorted((tmp_path / "images").glob("*.png"))]
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(run.folder), *images, "--out", str(tmp_path / "found"), "--json"])
    assert stop.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["images"]) == 4
    assert json.loads((tmp_path / "found" / "results.json").read_text())["complete"] is True
    assert len(list((tmp_path / "found" / "pictures").glob("*.jpg"))) == 4
