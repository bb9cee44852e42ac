"""COCO annotations read in columns are those read one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pelagia.data.dataset import Dataset
from pelagia.data.formats import coco
from pelagia.data.formats.coco_columns import plain_columns
from pelagia.data.formats.common import ReadOptions

WIDTH, HEIGHT = 60, 50
ROWS, LABELS, SIZES = {3: 0, 9: 1}, {1: 0, 5: 1}, [(WIDTH, HEIGHT), (WIDTH, HEIGHT)]


def entry(rng: np.random.Generator, number: int, outline: str) -> dict[str, Any]:
    x, y, w, h = (float(value) for value in (*rng.uniform(0, 30, 2), *rng.uniform(2, 20, 2)))
    values: dict[str, Any] = {
        "id": number,
        "image_id": int(rng.choice([3, 9])),
        "category_id": int(rng.choice([1, 5])),
        "bbox": [x, y, w, h],
        "area": float(rng.choice([w * h, rng.uniform(1, 400)])),
        "iscrowd": int(rng.random() < 0.2),
    }
    if outline == "polygon":
        values["segmentation"] = [
            (np.array([x, y]) + rng.uniform(0, 15, (int(rng.integers(3, 7)), 2))).ravel().tolist()
            for _ in range(rng.integers(1, 3))
        ]
    elif outline == "runs":
        bitmap = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        bitmap[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = 1
        values["segmentation"] = {
            "size": [HEIGHT, WIDTH],
            "counts": coco_mask.encode(np.asfortranarray(bitmap))["counts"].decode(),
        }
    elif outline == "empty":
        values["segmentation"] = []
    return values


def write(folder: Path, entries: list[dict[str, Any]]) -> Path:
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in ROWS],
        "categories": [{"id": i, "name": f"c{i}"} for i in LABELS],
        "annotations": entries,
    }
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def both(path: Path, **options: Any) -> tuple[Dataset, Dataset]:
    fast = coco.read(path, ReadOptions(**options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco, "plain_columns", lambda *_, **__: None)
        return fast, coco.read(path, ReadOptions(**options))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from(["none", "empty", "polygon", "runs"]), min_size=1, max_size=12))
def test_columns_are_the_data_set(tmp_path_factory: pytest.TempPathFactory, seed: int, outlines: list[str]) -> None:
    rng = np.random.default_rng(seed)
    entries = [entry(rng, number, outline) for number, outline in enumerate(outlines, start=10)]
    assert plain_columns(entries, ROWS, LABELS, SIZES) is not None
    fast, slow = both(write(tmp_path_factory.mktemp("coco"), entries))
    assert fast.content_hash == slow.content_hash
    assert fast.findings == slow.findings
    np.testing.assert_array_equal(fast.annotations.ids, slow.annotations.ids)
    for image in range(2):
        one, two = fast.truth(image), slow.truth(image)
        np.testing.assert_array_equal(one.box_array, two.box_array)
        np.testing.assert_array_equal(one.areas, two.areas)


ODD: dict[str, dict[str, Any]] = {
    "unknown image": {"image_id": 4},
    "unknown class": {"category_id": 2},
    "no extent": {"bbox": [5, 5, 0, 4]},
    "outside": {"bbox": [70, 5, 3, 4]},
    "five numbers": {"bbox": [5, 5, 3, 4, 0.1]},
    "no box": {"bbox": []},
    "text": {"bbox": [5, 5, "3", "x"]},
    "not finite": {"area": float("inf")},
    "area in words": {"area": "12"},
    "id twice": {"id": 1},
    "id in words": {"id": "a"},
    "keypoints": {"keypoints": [1, 2, 2]},
    "ignored": {"ignore": 1},
    "difficult": {"difficult": 1},
    "half a ring": {"segmentation": [[1, 2, 3, 4]]},
    "odd ring": {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    "closed ring": {"segmentation": [[1, 2, 9, 4, 5, 9, 1, 2]]},
    "flat ring": {"segmentation": [[1, 2, 1, 4, 1, 6]]},
    "numbers, not rings": {"segmentation": [1, 2, 9, 4, 5, 9]},
    "text in a ring": {"segmentation": [[1, 2, "9", 4, 5, 9]]},
    "plain runs": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [10, 5, HEIGHT * WIDTH - 15]}},
    "runs of another size": {"segmentation": {"size": [HEIGHT, 61], "counts": "0"}},
    "broken runs": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "zzz"}},
    "no pixel": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "d]2"}},
    "outline in words": {"segmentation": "x"},
}


@pytest.mark.parametrize("name", ODD)
def test_what_asks_for_a_decision_is_read_one_by_one(name: str) -> None:
    rng = np.random.default_rng(0)
    entries = [entry(rng, 1, "polygon"), {**entry(rng, 2, "none"), **ODD[name]}]
    assert plain_columns(entries, ROWS, LABELS, SIZES) is None


def test_boxes_without_extent_stay_if_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    entries = [
        entry(rng, 1, "none"),
        {**entry(rng, 2, "none"), "bbox": [5, 5, 0, 4]},
        {**entry(rng, 3, "none"), "bbox": [70, 5, 3, 4]},
    ]
    path = write(tmp_path, entries)
    fast, slow = both(path, keep_empty=True)
    assert len(fast.annotations) == len(slow.annotations) == 3
    assert fast.content_hash == slow.content_hash
    assert len(both(path)[0].annotations) == 1
