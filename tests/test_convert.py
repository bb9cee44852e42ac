"""Conversions: every pair of formats keeps what both can hold, and says what it cannot; counts of the real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from datasets import codes, draw, real, same_truth, survey, write_json
from pelagia.core import oriented as core_oriented
from pelagia.core.types import Instances
from pelagia.data.convert import convert, richest_task
from pelagia.data.dataset import Dataset
from pelagia.data.formats.writing import WriteOptions
from pelagia.data.label_pixels import write_label_pixels
from pelagia.data.open import FORMATS, open_dataset, sniff
from pelagia.errors import DataError, FormatError, OptionError, PelagiaError

HOLDS = {
    "boxes": ("coco", "yolo", "voc"),
    "oriented": ("coco", "yolo", "voc", "dota"),
    "masks": ("coco", "yolo", "labels"),
    "keypoints": ("coco", "yolo"),
}
TASKS = {"boxes": "detect", "oriented": "oriented", "masks": "instance", "keypoints": "keypoints"}


@pytest.mark.parametrize(
    ("kind", "first", "second"), [(kind, a, b) for kind, formats in HOLDS.items() for a in formats for b in formats]
)
def test_there_and_on(tmp_path: Path, kind: str, first: str, second: str) -> None:
    dataset = survey(tmp_path / "src", kind)
    task = TASKS[kind]
    convert(dataset, tmp_path / "one", first)
    one = open_dataset(tmp_path / "one", task=task)  # type: ignore[arg-type]
    assert one.format == first
    same_truth(dataset, one, masks=kind == "masks")
    convert(one, tmp_path / "two", second)
    two = open_dataset(tmp_path / "two", task=task)  # type: ignore[arg-type]
    same_truth(dataset, two, masks=kind == "masks")
    assert [(c.id, c.name) for c in two.categories] == [(c.id, c.name) for c in dataset.categories]
    for name in ("train", "val"):
        assert sorted(two.split(name).names) == sorted(dataset.split(name).names)
    assert sorted(two.splits) == ["train", "val"]
    assert two[0].image.shape == dataset[dataset.names.index(two.names[0])].image.shape


@pytest.mark.parametrize("format", list(FORMATS))
def test_written_folder_is_recognised(tmp_path: Path, format: str) -> None:
    convert(survey(tmp_path / "src", "masks"), tmp_path / "out", format)
    assert sniff(tmp_path / "out") == format


def test_written_yaml_works_from_any_working_directory(tmp_path: Path) -> None:
    convert(survey(tmp_path / "src", "boxes"), tmp_path / "out", "yolo")
    document = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert "path" not in document
    assert (tmp_path / "out" / document["val"]).is_file()


def test_crowd_and_ignore_are_lost_aloud(tmp_path: Path) -> None:
    path = draw(tmp_path / "src" / "a.png", 40, 30)
    boxes = np.array([[1.0, 1, 9, 9], [2, 2, 8, 8], [3, 3, 7, 7]])
    truth = Instances(np.zeros(3, dtype=np.int64), boxes, crowd=[True, False, False], difficult=[False, False, True])
    dataset = Dataset.from_instances(["a"], [(path, (40, 30), truth)], root=tmp_path / "src")
    losses = {f.code: f.count for f in convert(dataset, tmp_path / "yolo", "yolo").losses}
    assert losses["flag.region"] == losses["flag.difficult"] == 1
    assert len(open_dataset(tmp_path / "yolo").annotations) == 2
    losses = {f.code: f.count for f in convert(dataset, tmp_path / "voc", "voc").losses}
    assert losses["flag.region"] == 1
    assert open_dataset(tmp_path / "voc").truth(0).difficult.tolist() == [True, False, True]
    assert not convert(dataset, tmp_path / "coco", "coco").losses
    again = open_dataset(tmp_path / "coco").truth(0)
    assert again.crowd.tolist() == [True, False, False]
    assert again.difficult.tolist() == [False, False, True]


def test_boxes_beyond_the_border_are_cut_aloud(tmp_path: Path) -> None:
    path = draw(tmp_path / "src" / "a.png", 40, 30)
    dataset = Dataset.from_instances(["a"], [(path, (40, 30), Instances([0], [[-5.0, 20, 10, 35]]))], root=tmp_path / "src")
    assert "box.cut" in [f.code for f in convert(dataset, tmp_path / "yolo", "yolo").losses]
    np.testing.assert_allclose(open_dataset(tmp_path / "yolo").truth(0).box_array, [[0, 20, 10, 30]], atol=1e-9)


def test_task_chooses_what_is_written(tmp_path: Path) -> None:
    dataset = survey(tmp_path / "src", "masks")
    assert richest_task(dataset) == "instance"
    report = convert(dataset, tmp_path / "boxes", "yolo", task="detect")
    assert "outline" in [f.code for f in report.losses]
    assert open_dataset(tmp_path / "boxes").task == "detect"
    convert(dataset, tmp_path / "oriented", "yolo", task="oriented")
    again = open_dataset(tmp_path / "oriented")
    assert again.task == "oriented"
    place = again.names.index(dataset.names[0])
    expected = dataset.with_task("oriented").truth(0).oriented
    assert expected is not None
    found = again.truth(place).oriented
    assert found is not None
    assert np.diag(core_oriented.iou(found, expected)).min() > 0.999999


def test_semantic_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for stem in "ab":
        draw(tmp_path / "src" / "images" / f"{stem}.png", 40, 30)
        pixels = rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (30, 40))
        write_label_pixels(tmp_path / "src" / "semantic" / f"{stem}.png", pixels)
    dataset = open_dataset(tmp_path / "src", classes=["water", "plankton", "detritus"])
    convert(dataset, tmp_path / "out", "labels")
    again = open_dataset(tmp_path / "out")
    assert again.class_names == dataset.class_names
    for index in range(2):
        np.testing.assert_array_equal(again.semantic(index).labels, dataset.semantic(index).labels)
    assert [f.code for f in convert(dataset, tmp_path / "coco", "coco").losses] == ["semantic"]


@pytest.mark.parametrize("mode", ["copy", "link", "none"])
def test_images_are_copied_linked_or_left(tmp_path: Path, mode: str) -> None:
    dataset = survey(tmp_path / "src", "boxes")
    convert(dataset, tmp_path / "out", "coco", options=WriteOptions(images=mode))  # type: ignore[arg-type]
    target = tmp_path / "out" / "images" / dataset.names[0]
    assert target.is_symlink() == (mode == "link")
    assert target.is_file() == (mode != "none")
    images = dataset.root if mode == "none" else None
    again = open_dataset(tmp_path / "out", images=images)
    np.testing.assert_array_equal(again[0].image, dataset[0].image)


def test_missing_images_do_not_stop_a_conversion(tmp_path: Path) -> None:
    dataset = survey(tmp_path / "src", "boxes")
    dataset.image_paths[3].unlink()
    report = convert(dataset, tmp_path / "out", "voc")
    assert [(f.severity, f.count) for f in report.losses if f.code == "image.missing"] == [("error", 1)]
    assert len(open_dataset(tmp_path / "out")) == 4


def test_report_is_json(tmp_path: Path) -> None:
    report = convert(survey(tmp_path / "src", "keypoints"), tmp_path / "out.json", "coco").to_dict()
    assert report["images"] == 4
    assert report["objects"] == 9
    assert report["task"] == "keypoints"
    write_json(tmp_path / "report.json", report)


def test_refusals(tmp_path: Path) -> None:
    dataset = survey(tmp_path / "src", "boxes")
    with pytest.raises(OptionError, match="unknown format"):
        convert(dataset, tmp_path / "out", "csv")
    with pytest.raises(OptionError, match="source itself"):
        convert(dataset, tmp_path / "src", "yolo")
    with pytest.raises(DataError, match="no outlines"):
        convert(dataset, tmp_path / "out", "labels")
    with pytest.raises(OptionError, match="unknown format"):
        open_dataset(tmp_path / "src", format="csv")
    with pytest.raises(FormatError, match="does not exist"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(FormatError, match="no known annotation format"):
        open_dataset(tmp_path / "src")
    with pytest.raises(OptionError, match="unknown task"):
        open_dataset(tmp_path / "src", task="count")  # type: ignore[arg-type]


REAL_DATA = [
    ("hit-uav/oriented.json", {"angle": "rad-cw"}, "coco", "oriented", 150, 1378, 4),
    ("hit-uav/horizontal.json", {}, "coco", "detect", 150, 1378, 4),
    ("hit-uav/xml", {}, "voc", "oriented", 150, 1378, 4),
    ("bccd", {}, "voc", "detect", 292, 3943, 3),
    ("aquarium", {}, "yolo", "detect", 300, 2306, 7),
    ("coco-mini/boxes_yolo.yaml", {}, "yolo", "detect", 100, 741, 80),
    ("coco-mini/instances_yolo.yaml", {}, "yolo", "instance", 100, 746, 80),
    ("coco-mini/semantic.yaml", {}, "labels", "semantic", 100, 0, None),
    ("nuclei", {}, "labels", "instance", 160, 6377, 1),
    ("em-membranes", {}, "labels", "semantic", 24, 0, 2),
    ("coco-keypoints/instances.json", {}, "coco", "detect", 50, 470, 80),
    ("coco-keypoints/person_keypoints.json", {"task": "keypoints"}, "coco", "keypoints", 50, 99, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "format", "task", "images", "objects", "classes"), REAL_DATA)
def test_real_data(
    name: str, options: dict[str, str], format: str, task: str, images: int, objects: int, classes: int | None
) -> None:
    dataset = open_dataset(real(name), **options)  # type: ignore[arg-type]
    assert (dataset.format, dataset.task, len(dataset), len(dataset.annotations)) == (format, task, images, objects)
    assert classes is None or len(dataset.categories) == classes
    assert not [finding for finding in dataset.findings if finding.severity == "error"]
    sample = dataset[0]
    assert (sample.image.shape[1], sample.image.shape[0]) == tuple(dataset.sizes[0])


@pytest.mark.slow
def test_real_oriented_boxes_agree_between_json_and_xml() -> None:
    json, xml = open_dataset(real("hit-uav/oriented.json"), angle="rad-cw"), open_dataset(real("hit-uav/xml"))
    place = {name: index for index, name in enumerate(xml.names)}
    for index, name in enumerate(json.names):
        one, two = json.truth(index).oriented, xml.truth(place[name]).oriented
        assert one is not None
        assert two is not None
        assert core_oriented.iou(one, two).max(axis=1, initial=0).min(initial=1) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bccd", "aquarium", "nuclei"])
def test_real_round_trips(tmp_path: Path, name: str) -> None:
    dataset = open_dataset(real(name)).subset(range(12))
    for format in ("coco", "yolo", dataset.format):
        try:
            convert(dataset, tmp_path / format, format, options=WriteOptions(images="link"))
            again = open_dataset(tmp_path / format, task=dataset.task)
        except PelagiaError as error:
            raise AssertionError(f"{name} as {format}") from error
        same_truth(dataset, again, masks=dataset.task == "instance")
        assert "box.degenerate" not in codes(again)
