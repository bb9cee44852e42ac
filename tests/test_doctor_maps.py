"""`pelagia doctor` on class maps, panoptic images, outlines and keypoints: each fault planted, each found where it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets import draw, write_json
from pelagia.core.types import Category
from pelagia.data.dataset import Dataset
from pelagia.data.doctor import Report, examine
from pelagia.data.label_pixels import write_label_pixels
from pelagia.data.open import open_dataset
from pelagia.data.panoptic_png import write_ids


def found(report: Report, code: str) -> list[tuple[str, str, int]]:
    """Severity, last part of the place, and count of the findings of a kind."""
    return [(f.severity, Path(f.where).name, f.count) for f in report.findings if f.code == code]


def class_maps(folder: Path, *maps: NDArray[np.uint8]) -> Dataset:
    for index, labels in enumerate(maps):
        draw(folder / "images" / f"{index}.png", 40 + index, 30)
        write_label_pixels(folder / "masks" / f"{index}.png", labels)
    return open_dataset(folder, classes=["water", "diatom", "ice"])


def test_class_maps(tmp_path: Path) -> None:
    first, second = np.zeros((30, 40), dtype=np.uint8), np.full((30, 41), 255, dtype=np.uint8)
    first[0, 0], first[5, 5:7], first[10:13, 10] = 1, 1, 255
    dataset = class_maps(tmp_path, first, second)
    report = examine(dataset)
    assert found(report, "class.empty") == [("warning", "ice", 1)]
    assert found(report, "mask.specks") == [("info", "diatom", 2)]
    assert found(report, "mask.empty") == [("warning", "1.png", 1)]
    table = report.tables[0]
    assert [row[:3] for row in table.rows] == [("water", 0, 1194), ("diatom", 1, 3), ("ice", 2, 0), ("(ignored)", 255, 1233)]
    assert [row[4] for row in table.rows] == [1, 1, 0, 0]
    assert found(report, "class.rare") == []
    assert not report.has_errors
    assert len(examine(dataset, images=False).tables) == 0


def test_rare_classes_are_told_with_their_remedy(tmp_path: Path) -> None:
    labels = np.zeros((30, 40), dtype=np.uint8)
    labels[3, 3:5], labels[10:] = 1, 2
    report = examine(class_maps(tmp_path, labels))
    assert found(report, "class.rare") == [("warning", "diatom", 1)]
    assert "0.167 %" in next(f.message for f in report.findings if f.code == "class.rare")


def test_class_maps_that_changed_since(tmp_path: Path) -> None:
    dataset = class_maps(tmp_path, *(np.zeros((30, 40 + k), dtype=np.uint8) for k in range(5)))
    write_label_pixels(tmp_path / "masks" / "0.png", np.full((30, 40), 77, dtype=np.uint8))
    (tmp_path / "masks" / "1.png").unlink()
    (tmp_path / "masks" / "2.png").write_bytes(b"no image")
    write_label_pixels(tmp_path / "masks" / "3.png", np.zeros((30, 40), dtype=np.uint8))
    for mapped in (dataset, replace(dataset, mask_values=((0, 0), (1, 1), (2, 2), (255, 255)))):
        report = examine(mapped)
        assert found(report, "mask.value") == [("error", "0.png", 1)]
        assert found(report, "mask.missing") == [("error", "1.png", 1)]
        assert found(report, "mask.broken") == [("error", "2.png", 1)]
        assert found(report, "mask.size") == [("error", "3.png", 1)]
        assert report.tables[0].rows[0][2] == 44 * 30


def panoptic(folder: Path) -> Dataset:
    kinds = [{"id": 1, "name": "diatom"}, {"id": 2, "name": "water", "isthing": 0}]
    images, annotations = [], []
    for index in range(4):
        ids = np.full((30, 40), 9, dtype=np.int32)
        ids[5:15, 5:25] = 4
        draw(folder / "images" / f"{index}.jpg", 40, 30)
        (folder / "pan").mkdir(exist_ok=True)
        write_ids(folder / "pan" / f"{index}.png", ids)
        segments = [{"id": 9, "category_id": 2, "bbox": [0, 0, 40, 30]}, {"id": 4, "category_id": 1, "bbox": [5, 5, 20, 10]}]
        images.append({"id": index, "file_name": f"{index}.jpg", "width": 40, "height": 30})
        annotations.append({"image_id": index, "file_name": f"{index}.png", "segments_info": segments})
    return open_dataset(write_json(folder / "pan.json", {"images": images, "annotations": annotations, "categories": kinds}))


def test_panoptic_images(tmp_path: Path) -> None:
    dataset = panoptic(tmp_path)
    codes = ("segment.unlisted", "segment.empty", "mask.outside_box", "mask.size", "mask.missing", "mask.empty")
    assert [found(examine(dataset), code) for code in codes] == [[]] * 6
    ids = np.full((30, 40), 9, dtype=np.int32)
    ids[0, 0:3] = 70_000
    write_ids(tmp_path / "pan" / "0.png", ids)
    ids[:], ids[20:25, 5:25] = 9, 4
    write_ids(tmp_path / "pan" / "1.png", ids)
    write_ids(tmp_path / "pan" / "2.png", ids[:20])
    (tmp_path / "pan" / "3.png").unlink()
    report = examine(dataset)
    assert found(report, "segment.unlisted") == [("error", "0.png#70000", 1)]
    assert found(report, "segment.empty") == [("error", "0.png#4", 1)]
    assert found(report, "mask.outside_box") == [("warning", "1.png#4", 1)]
    assert found(report, "mask.size") == [("error", "2.png", 1)]
    assert found(report, "mask.missing") == [("error", "3.png", 1)]
    write_ids(tmp_path / "pan" / "3.png", np.zeros((30, 40), dtype=np.int32))
    assert found(examine(dataset), "mask.empty") == [("warning", "3.png", 1)]
    semantic = examine(dataset.with_task("semantic"))
    assert found(semantic, "mask.broken") == [("error", "0.jpg", 1), ("error", "2.jpg", 1)]
    assert semantic.tables[0].title == "Classes by pixels"


def coco(folder: Path, annotations: list[dict[str, object]], **category: object) -> Dataset:
    draw(folder / "a.png", 40, 30)
    entries = [{"id": k + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, **entry} for k, entry in enumerate(annotations)]
    image = {"id": 1, "file_name": "a.png", "width": 40, "height": 30}
    document = {"images": [image], "annotations": entries, "categories": [{"id": 1, "name": "fish", **category}]}
    return open_dataset(write_json(folder / "x.json", document))


def test_outlines(tmp_path: Path) -> None:
    square = [5.0, 5, 15, 5, 15, 15, 5, 15]
    dataset = coco(
        tmp_path,
        [
            {"bbox": [5, 5, 10, 10], "segmentation": [square]},
            {"bbox": [20, 5, 10, 10], "segmentation": [[20.1, 5.1, 20.2, 5.1, 20.2, 5.2]]},
            {"bbox": [20, 15, 18, 14], "segmentation": [[20, 15, 28, 15, 28, 29, 20, 29]]},
            {"bbox": [1, 20, 9, 9]},
            {"bbox": [8, 8, 10, 10], "segmentation": [[8, 8, 18, 8, 18, 18, 8, 18]]},
        ],
    )
    report = examine(dataset)
    assert found(report, "mask.empty") == [("warning", "a.png#2", 1)]
    assert found(report, "mask.outside_box") == [("warning", "a.png#3", 1)]
    assert [item[2] for item in found(report, "outline.missing")] == [1]
    assert [item[2] for item in found(report, "outline.overlap")] == [1]
    assert found(examine(dataset, images=False), "mask.empty") == []


def test_keypoints(tmp_path: Path) -> None:
    box = {"bbox": [5, 5, 10, 10]}
    dataset = coco(
        tmp_path,
        [
            {**box, "keypoints": [6, 6, 2, 14, 14, 1, 0, 0, 0]},
            {**box, "keypoints": [6, 6, 2, 39, 14, 2, 50, 14, 2]},
            {**box, "keypoints": [0, 0, 0, 0, 0, 0, 0, 0, 0]},
            {**box, "keypoints": [6, 6, 3, 14, 14, 1, 7, 7, 2]},
            {**box, "keypoints": [6, 6, 2, 14, 14, 1, 7, 7, 2, 8, 8, 2]},
        ],
        keypoints=["nose", "left_eye", "tail"],
    )
    report = examine(dataset)
    assert found(report, "keypoint.outside_box") == [("warning", "a.png#2", 1)]
    assert found(report, "keypoint.outside") == [("warning", "a.png#2", 1)]
    assert [item[2] for item in found(report, "keypoint.none")] == [1]
    assert found(report, "keypoint.flag") == [("error", "a.png#4", 1)]
    assert found(report, "keypoint.count") == [("error", "a.png#5", 1)]
    assert found(report, "keypoint.flip") == [("warning", "fish", 1)]


@pytest.mark.parametrize(
    ("keypoints", "flip", "severities"),
    [
        (("left", "right"), (1, 0), []),
        (("left", "right"), (1, 1), ["error"]),
        (("left", "right"), (0,), ["error"]),
        (("left", "right"), (), ["warning", "warning"]),
        (("head", "tail"), (), []),
    ],
)
def test_mirrored_partners(tmp_path: Path, keypoints: tuple[str, ...], flip: tuple[int, ...], severities: list[str]) -> None:
    dataset = coco(tmp_path, [{"bbox": [5, 5, 10, 10], "keypoints": [6, 6, 2, 14, 14, 1]}], keypoints=list(keypoints))
    changed = replace(dataset, categories=(Category(1, "fish", keypoints=keypoints, flip=flip),))
    assert [item[0] for item in found(examine(changed), "keypoint.flip")] == severities
