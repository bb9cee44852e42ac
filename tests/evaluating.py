"""What the tests of `pelagia evaluate` share: labels and results of small images, and what the command told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pelagia.cli import main as cli_main
from pelagia.core.types import Category, Instances, MaskCrop

WIDTH, HEIGHT = 96, 64
CLASSES = [Category(3, "red", supercategory="warm"), Category(7, "orange", supercategory="warm"), Category(9, "blue")]


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli_main.main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def drawn(seed: int) -> Instances:
    rng = np.random.default_rng(seed)
    corner, side = rng.integers(0, 40, (6, 2)), rng.integers(8, 24, (6, 2))
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float64)
    crops = tuple(
        MaskCrop(int(x), int(y), np.ones((int(h), int(w)), dtype=bool)) for (x, y), (w, h) in zip(corner, side, strict=True)
    )
    return Instances(labels=rng.integers(0, 3, 6), boxes=boxes, masks=crops)


def truth_file(place: Path) -> Path:
    return next((place / "coco").rglob("*.json"))


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def panoptic(folder: Path, name: str, shift: int) -> Path:
    (folder / name).mkdir()
    annotations = []
    for index in range(3):
        ids = np.zeros((30, 30), dtype=np.int64)
        ids[:15] = 1
        ids[18 + index : 28 + index, 5 + shift : 15 + shift] = 300
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(colours).save(folder / name / f"{index}.png")
        segments = [{"id": 1, "category_id": 5, "iscrowd": 0}, {"id": 300, "category_id": 2, "iscrowd": 0}]
        annotations.append({"image_id": index, "file_name": f"{index}.png", "segments_info": segments})
    content = {
        "images": [{"id": index, "file_name": f"{index}.jpg", "width": 30, "height": 30} for index in range(3)],
        "categories": [{"id": 2, "name": "fish", "isthing": 1}, {"id": 5, "name": "water", "isthing": 0}],
        "annotations": annotations,
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"
