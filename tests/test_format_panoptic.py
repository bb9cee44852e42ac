"""COCO panoptic files as a data set: reading, writing, converting to and from other formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets import codes, draw, real, survey, write_json
from pelagia.cli import main as cli_main
from pelagia.core.types import Category
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from pelagia.data.open import open_dataset, sniff
from pelagia.data.panoptic_png import read_ids, write_ids
from pelagia.errors import DataError, FormatError

KINDS = [
    {"id": 7, "name": "copepod", "isthing": 1},
    {"id": 3, "name": "water", "supercategory": "sea", "isthing": 0},
    {"id": 9, "name": "DontCare", "isthing": 1},
]


def ids_of(shift: int = 0) -> NDArray[np.int32]:
    ids = np.full((30, 40), 500, dtype=np.int32)
    ids[2:8, 3 + shift : 9 + shift] = 70_001
    ids[20:25, 30:38] = 2
    ids[0] = 0
    return ids


def segment(number: int, category: int, box: list[float] | None = None, **more: Any) -> dict[str, Any]:
    return {"id": number, "category_id": category, **({} if box is None else {"bbox": box}), **more}


def data(folder: Path, *, names: tuple[str, ...] = ("a", "b"), file: str = "panoptic", **parts: Any) -> Path:
    """A panoptic data set of 40 x 30 images; `parts` replace those of the document."""
    images, annotations = [], []
    for index, name in enumerate(names):
        draw(folder / "images" / f"{name}.jpg", 40, 30)
        (folder / file).mkdir(exist_ok=True)
        write_ids(folder / file / f"{name}.png", ids_of(index))
        images.append({"id": 10 + index, "file_name": f"{name}.jpg", "width": 40, "height": 30})
        segments = [
            segment(500, 3, [0, 1, 40, 29]),
            segment(70_001, 7, [3 + index, 2, 6, 6]),
            segment(2, 7, [30, 20, 8, 5], iscrowd=1),
        ]
        annotations.append({"image_id": 10 + index, "file_name": f"{name}.png", "segments_info": segments})
    return write_json(folder / f"{file}.json", {"images": images, "annotations": annotations, "categories": KINDS} | parts)


def same(first: Dataset, second: Dataset) -> None:
    """Assert equal panoptic maps under the same names and classes, whatever the numbers of the segments."""
    names = [category.name for category in first.categories]
    assert [(c.id, c.name, c.is_thing) for c in first.categories] == [(c.id, c.name, c.is_thing) for c in second.categories]
    assert sorted(Path(name).stem for name in first.names) == sorted(Path(name).stem for name in second.names)
    place = {Path(name).stem: index for index, name in enumerate(second.names)}
    for index, name in enumerate(first.names):
        a, b = first.panoptic(index), second.panoptic(place[Path(name).stem])
        assert len(a.segments) == len(b.segments) > 0
        pairs = np.unique(np.stack([a.ids, b.ids]).reshape(2, -1), axis=1)
        assert len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
        of_a = {segment.id: (names[segment.label], segment.crowd) for segment in a.segments} | {0: ("", False)}
        of_b = {segment.id: (names[segment.label], segment.crowd) for segment in b.segments} | {0: ("", False)}
        assert all(of_a[x] == of_b[y] for x, y in pairs.T.tolist())


def test_a_file_is_a_data_set(tmp_path: Path) -> None:
    path = data(tmp_path)
    assert sniff(path) == sniff(tmp_path) == "panoptic"
    dataset = open_dataset(path)
    assert (dataset.task, dataset.format) == ("panoptic", "panoptic")
    assert dataset.categories == (Category(7, "copepod"), Category(3, "water", "sea", is_thing=False))
    assert dataset.names == ("a.jpg", "b.jpg")
    assert dataset.image_ids.tolist() == [10, 11]
    assert dataset.annotations.ids.tolist() == [500, 70_001, 2] * 2
    assert dataset.annotations.crowd.tolist() == [False, False, True] * 2
    assert codes(dataset) == ["category.ignored"]
    np.testing.assert_array_equal(dataset.panoptic(1).ids, ids_of(1))
    sample = dataset[1]
    assert sample.truth.masks is not None
    assert [mask.area for mask in sample.truth.masks] == [29 * 40 - 36 - 40, 36, 40]
    np.testing.assert_array_equal(sample.truth.box_array[1], [4, 2, 10, 8])
    assert open_dataset(path, task="semantic").semantic(0).labels[0].tolist() == [255] * 40
    assert open_dataset(path, task="detect").class_names == ("copepod",)


def test_boxes_that_are_not_stated_come_from_the_pixels(tmp_path: Path) -> None:
    segments = [segment(500, 3), segment(70_001, 7, [9, 9, 0, 0]), segment(2, 9, [300, 300, 5, 5]), segment(77, 7)]
    path = data(tmp_path, names=("a",))
    document = json.loads(path.read_text())
    document["annotations"][0]["segments_info"] = segments
    del document["images"]
    dataset = open_dataset(write_json(path, document))
    assert dataset.annotations.boxes.tolist() == [[0, 1, 40, 30], [3, 2, 9, 8], [30, 20, 38, 25]]
    assert codes(dataset) == ["category.ignored", "segment.empty"]
    assert dataset.sizes.tolist() == [[40, 30]]
    assert dataset.names == ("a.jpg",)
    assert dataset.truth(0).ignore.tolist() == [False, False, True]
    assert (dataset.panoptic(0).ids[20:25, 30:38] == 0).all()


def test_files_of_splits_are_read_together(tmp_path: Path) -> None:
    data(tmp_path, names=("a",), file="panoptic_train2017")
    data(tmp_path, names=("b", "c"), file="panoptic_val2017")
    dataset = open_dataset(tmp_path)
    assert {name: rows.tolist() for name, rows in dataset.splits.items()} == {"train": [0], "val": [1, 2]}
    assert dataset.split("val").panoptic_files == ("panoptic_val2017/b.png", "panoptic_val2017/c.png")
    np.testing.assert_array_equal(dataset.split("val").panoptic(0).ids, ids_of(0))
    data(tmp_path, names=("d",), file="panoptic_more")
    with pytest.raises(FormatError, match="several panoptic files"):
        open_dataset(tmp_path)


def test_images_called_like_their_maps_are_told_apart(tmp_path: Path) -> None:
    path = data(tmp_path, names=("a",))
    draw(tmp_path / "images" / "a.png", 40, 30)
    (tmp_path / "images" / "a.jpg").unlink()
    document = json.loads(path.read_text())
    document["images"][0]["file_name"] = "a.png"
    assert open_dataset(write_json(path, document)).files == ("images/a.png",)


def test_missing_files_are_told(tmp_path: Path) -> None:
    path = data(tmp_path, names=("a", "b", "c"))
    (tmp_path / "panoptic" / "b.png").unlink()
    (tmp_path / "images" / "c.jpg").unlink()
    dataset = open_dataset(path)
    assert dataset.names == ("a.jpg", "c.jpg")
    assert codes(dataset) == ["category.ignored", "mask.missing", "image.missing"]


def test_pixels_without_a_segment_are_an_error(tmp_path: Path) -> None:
    path = data(tmp_path)
    write_ids(tmp_path / "panoptic" / "a.png", ids_of() + 1)
    with pytest.raises(DataError, match=r"a\.png: .*not listed: \[1, 3, 501, 70002\]"):
        open_dataset(path)[0]


def test_round_trip(tmp_path: Path) -> None:
    dataset = open_dataset(data(tmp_path / "src")).with_splits({"train": [1], "val": [0]})
    report = convert(dataset, tmp_path / "out", "panoptic")
    assert (report.task, report.losses) == ("panoptic", ())
    again = open_dataset(tmp_path / "out")
    same(dataset, again)
    assert again.image_ids.tolist() == [10, 11]
    assert {name: rows.tolist() for name, rows in again.splits.items()} == {"train": [1], "val": [0]}
    np.testing.assert_array_equal(again.annotations.boxes, dataset.annotations.boxes)
    document = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [item["area"] for item in document["annotations"][0]["segments_info"]] == [1084, 36, 40]
    convert(dataset, tmp_path / "alone.json", "panoptic")
    same(dataset, open_dataset(tmp_path / "alone.json", images=tmp_path / "src" / "images"))


def test_outlines_become_panoptic_and_what_is_lost_is_told(tmp_path: Path) -> None:
    dataset = survey(tmp_path / "src", "masks")
    report = convert(dataset, tmp_path / "out", "panoptic")
    assert [finding.code for finding in report.losses] == ["outline.pixels"]
    again = open_dataset(tmp_path / "out")
    same(dataset.with_task("panoptic"), again)
    assert again.categories[-1] == Category(0, "background", is_thing=False)
    with pytest.raises(DataError, match="no outlines"):
        convert(survey(tmp_path / "boxes", "boxes"), tmp_path / "no", "panoptic")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("format", ["coco", "yolo", "labels", "voc"])
def test_panoptic_becomes_single_objects(tmp_path: Path, format: str) -> None:
    dataset = open_dataset(data(tmp_path / "src"))
    report = convert(dataset, tmp_path / "out", format)
    assert "stuff.left_out" in [finding.code for finding in report.losses]
    again = open_dataset(tmp_path / "out")
    assert "copepod" in again.class_names
    expected = dataset.with_task("instance").truth(0, masks=True)
    place = [Path(name).stem for name in again.names].index("a")
    if format == "voc":
        np.testing.assert_allclose(again.truth(place).box_array[0], expected.box_array[0])
        return
    found = open_dataset(tmp_path / "out", task="instance").truth(place, masks=True)
    assert found.masks is not None
    assert expected.masks is not None
    assert (found.masks[0].x, found.masks[0].y, found.masks[0].area) == (3, 2, 36)


@pytest.mark.parametrize("format", ["coco", "yolo", "labels", "voc", "dota"])
def test_panoptic_written_as_panoptic_keeps_its_masks_or_says_so(tmp_path: Path, format: str) -> None:
    dataset = open_dataset(data(tmp_path / "src"))
    report = convert(dataset, tmp_path / "out", format, task="panoptic")
    told = [finding.code for finding in report.losses if finding.severity != "info"]
    if format in ("voc", "dota"):
        assert "outlines" in told
        return
    if format == "coco":
        assert told == []
        same(dataset, open_dataset(tmp_path / "out", task="panoptic"))
        return
    again = open_dataset(tmp_path / "out", task="instance")
    found = again.truth([Path(name).stem for name in again.names].index("a"), masks=True).masks
    assert found is not None
    assert {1084, 36} <= {mask.area for mask in found}


def test_a_background_that_no_object_stands_for_is_told(tmp_path: Path) -> None:
    dataset = survey(tmp_path / "src", "masks")
    for format in ("coco", "yolo", "labels"):
        report = convert(dataset, tmp_path / format, format, task="panoptic")
        assert ("background", len(dataset)) in [(finding.code, finding.count) for finding in report.losses]
    assert "background" not in [finding.code for finding in convert(dataset, tmp_path / "out", "panoptic").losses]


def test_panoptic_becomes_class_maps(tmp_path: Path) -> None:
    dataset = open_dataset(data(tmp_path / "src"))
    report = convert(dataset, tmp_path / "out", "labels", task="semantic")
    assert [finding.code for finding in report.losses] == ["objects"]
    again = open_dataset(tmp_path / "out")
    assert again.task == "semantic"
    expected = dataset.with_task("semantic")
    for index in range(2):
        np.testing.assert_array_equal(again.semantic(index).labels, expected.semantic(index).labels)
    with pytest.raises(DataError, match="no single objects"):
        convert(again, tmp_path / "back", "panoptic")


def test_instances_become_class_maps(tmp_path: Path) -> None:
    dataset = survey(tmp_path / "src", "masks")
    convert(dataset, tmp_path / "out", "labels", task="semantic")
    again = open_dataset(tmp_path / "out")
    assert again.class_names == (*dataset.class_names, "background")
    expected = dataset.with_task("semantic")
    place = {name: index for index, name in enumerate(again.names)}
    for index, name in enumerate(dataset.names):
        np.testing.assert_array_equal(again.semantic(place[name]).labels, expected.semantic(index).labels)


@pytest.mark.slow
def test_real_panoptic_data_agree_with_their_own_class_maps(tmp_path: Path) -> None:
    folder = real("coco-mini")
    dataset = open_dataset(folder / "panoptic.json")
    assert len(dataset) == 100
    assert [code for code in codes(dataset) if code != "category.ignored"] == []
    semantic = dataset.with_task("semantic")
    masks = open_dataset(folder / "semantic.yaml", images=folder / "images")
    place = {Path(name).stem: index for index, name in enumerate(masks.names)}
    names = np.array([*(c.name for c in masks.categories)])
    for index in range(0, 100, 7):
        ours = semantic.semantic(index).labels
        theirs = masks.semantic(place[Path(dataset.names[index]).stem]).labels
        known = ours != 255
        assert (names[theirs[~known]] == "unlabeled").all()
        np.testing.assert_array_equal(np.array(dataset.class_names)[ours[known]], names[theirs[known]])
        truth = dataset.truth(index, masks=True)
        assert truth.masks is not None
        boxes = np.array([(m.x, m.y, m.x + m.bitmap.shape[1], m.y + m.bitmap.shape[0]) for m in truth.masks])
        np.testing.assert_array_equal(boxes, truth.box_array)
    part = dataset.subset(np.arange(3))
    convert(part, tmp_path / "out", "panoptic")
    same(part, open_dataset(tmp_path / "out"))


def test_ids_are_written_as_coco_states(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255, 256], [65535, 65536, 70_001, (1 << 24) - 1]], dtype=np.int32)
    write_ids(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(read_ids(tmp_path / "a.png"), ids)


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli_main.main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_the_command_line_converts_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path / "src")
    assert run("convert", path, tmp_path / "maps", "--to", "labels", "--write-task", "semantic") == 0
    assert "[objects]" in capsys.readouterr().out
    assert run("convert", path, tmp_path / "coco", "--to", "coco") == 0
    assert "[stuff.left_out]" in capsys.readouterr().out
    assert run("convert", tmp_path / "coco", tmp_path / "back", "--to", "panoptic", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["task"], report["images"], report["objects"]) == ("panoptic", "panoptic", 2, 4)
    assert run("doctor", tmp_path / "back") == 0
    assert "task: panoptic" in capsys.readouterr().out
