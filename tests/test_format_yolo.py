"""YOLO labels: rows, data.yaml, list files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets import codes, draw
from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.data.formats.yolo import label_file, plain_name, sniff
from pelagia.data.open import open_dataset
from pelagia.errors import FormatError

YAML = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: diatom\n  1: copepod\n"


def data(folder: Path, *rows: str, yaml: str = YAML, size: tuple[int, int] = (80, 40)) -> Path:
    """A data.yaml with one training image with `rows` and one validation image without labels."""
    draw(folder / "images" / "train" / "a.png", *size)
    draw(folder / "images" / "val" / "b.png", *size)
    labels = folder / "labels" / "train" / "a.txt"
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text("\n".join(rows) + "\n")
    (folder / "data.yaml").write_text(yaml)
    return folder / "data.yaml"


def test_box_row(tmp_path: Path) -> None:
    dataset = open_dataset(data(tmp_path, "1 0.5 0.25 0.5 0.25"))
    assert dataset.task == "detect"
    np.testing.assert_allclose(dataset.truth(0).box_array, [[20, 5, 60, 15]])
    assert dataset.truth(0).labels.tolist() == [1]
    assert dataset.names == ("train/a.png", "val/b.png")
    assert {name: rows.tolist() for name, rows in dataset.splits.items()} == {"train": [0], "val": [1]}


def test_polygon_row(tmp_path: Path) -> None:
    dataset = open_dataset(data(tmp_path, "0 0.125 0.25 0.5 0.25 0.5 0.75", "0 0.5 0.5 0.25 0.25"))
    assert dataset.task == "instance"
    truth = dataset.truth(0, masks=True)
    np.testing.assert_allclose(truth.box_array, [[10, 10, 40, 30], [30, 15, 50, 25]])
    assert truth.masks is not None
    ring = np.array([[10.0, 10], [40, 10], [40, 30]])
    np.testing.assert_array_equal(core_masks.paste(truth.masks[0], 40, 80), core_masks.rasterise([ring], 40, 80))
    assert truth.masks[1].area == 200  # a box in a polygon file has its box as mask


def test_nine_numbers_follow_the_task(tmp_path: Path) -> None:
    oriented = np.array([[40.0, 20.0, 20.0, 8.0, 0.5]])
    corners = core_oriented.to_corners(oriented)[0] / [80, 40]
    path = data(tmp_path, "0 " + " ".join(f"{value:.12g}" for value in corners.reshape(-1)))
    guessed = open_dataset(path)
    assert guessed.task == "oriented"
    assert "yolo.oriented" in codes(guessed)
    np.testing.assert_allclose(guessed.truth(0).oriented, oriented, atol=1e-9)
    polygon = open_dataset(path, task="instance")
    assert polygon.annotations.oriented is None
    assert polygon.annotations.shapes is not None
    np.testing.assert_allclose(polygon.with_task("oriented").truth(0).oriented, oriented, atol=1e-9)


def test_nine_numbers_among_polygons_are_a_polygon(tmp_path: Path) -> None:
    path = data(tmp_path, "0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4", "0 0.1 0.1 0.3 0.1 0.3 0.4")
    assert open_dataset(path).task == "instance"


def test_oriented_task_on_rows_of_every_kind(tmp_path: Path) -> None:
    oriented = np.array([[40.0, 20.0, 20.0, 8.0, 0.5]])
    corners = core_oriented.to_corners(oriented)[0] / [80, 40]
    quad = "0 " + " ".join(map(repr, corners.reshape(-1).tolist()))
    polygon = quad + " " + " ".join(map(repr, corners[0].tolist()))  # the same outline, with its first corner once more
    box = "0 0.5 0.5 0.25 0.25"
    upright = [[40, 20, 20, 10, 0]]
    for rows in ((quad, polygon, box), (polygon, box), (box,)):
        found = open_dataset(data(tmp_path, *rows), task="oriented").truth(0).oriented
        expected = np.concatenate([np.repeat(oriented, len(rows) - 1, axis=0), upright])
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_keypoints(tmp_path: Path, dimensions: int) -> None:
    visible = ["", ""] if dimensions == 2 else [" 1", " 2"]
    yaml = YAML + f"kpt_shape: [2, {dimensions}]\nflip_idx: [1, 0]\n"
    path = data(tmp_path, f"0 0.5 0.5 0.5 0.5 0.25 0.5{visible[0]} 0.75 0.5{visible[1]}", yaml=yaml)
    dataset = open_dataset(path)
    assert dataset.task == "keypoints"
    assert dataset.categories[0].flip == (1, 0)
    expected = [[[20, 20, 2 if dimensions == 2 else 1], [60, 20, 2]]]
    np.testing.assert_allclose(dataset.truth(0).keypoints, expected)


@pytest.mark.parametrize(
    "names", ["names: [diatom, copepod]", "names: {0: diatom, 1: copepod}", "names:\n- diatom\n- copepod\nnc: 2"]
)
def test_names(tmp_path: Path, names: str) -> None:
    dataset = open_dataset(data(tmp_path, "1 0.5 0.5 0.1 0.1", yaml=f"train: images/train\nval: images/val\n{names}\n"))
    assert dataset.class_names == ("diatom", "copepod")
    assert [category.id for category in dataset.categories] == [0, 1]


def test_splits_by_list_files_and_lists(tmp_path: Path) -> None:
    for name in "abc":
        draw(tmp_path / "images" / f"{name}.png", 20, 20)
    (tmp_path / "train.txt").write_text("./images/a.png\n\nimages/b.png\n")
    (tmp_path / "data.yaml").write_text("train: [train.txt]\nval:\n- images\nnames: [x]\n")
    dataset = open_dataset(tmp_path)
    assert dataset.names == ("a.png", "b.png", "c.png")
    assert dataset.splits["train"].tolist() == [0, 1]
    assert dataset.splits["val"].tolist() == [0, 1, 2]


def test_list_file_alone(tmp_path: Path) -> None:
    data(tmp_path, "0 0.5 0.5 0.1 0.1")
    (tmp_path / "some.txt").write_text("images/train/a.png\n")
    dataset = open_dataset(tmp_path / "some.txt", classes=["diatom", "copepod"])
    assert len(dataset) == len(dataset.annotations) == 1
    with pytest.raises(FormatError, match="classes="):
        open_dataset(tmp_path / "some.txt")


def test_folder_without_yaml(tmp_path: Path) -> None:
    data(tmp_path, "0 0.5 0.5 0.1 0.1").unlink()
    (tmp_path / "classes.txt").write_text("diatom\ncopepod\n")
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("diatom", "copepod")
    assert list(dataset.splits) == ["train", "val"]


def test_label_file_follows_the_last_folder_images() -> None:
    assert label_file(Path("/images/x/images/a/b.c.jpg")) == Path("/images/x/labels/a/b.c.txt")
    assert label_file(Path("/x/b.jpg")) == Path("/x/b.txt")
    assert plain_name(Path("/d/train/images/a.jpg"), Path("/d")) == "train/a.jpg"
    assert plain_name(Path("/d/images"), Path("/d")) == "images"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.1", "at least 4"),
        ("0 0.5 0.5 0.1 x", "numbers"),
        ("0 0.5 0.5 0.1 nan", "finite"),
        ("0 0.5 0.5 0.1 0.1 0.9", "prediction"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "neither"),
        ("0 40 20 10 10", "no fraction"),
    ],
)
def test_malformed_row_is_refused_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    path = data(tmp_path, "0 0.5 0.5 0.1 0.1", row)
    with pytest.raises(FormatError, match=message) as caught:
        open_dataset(path)
    assert str(caught.value).startswith(f"{tmp_path / 'labels' / 'train' / 'a.txt'}:2")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [a\n", "not YAML"),
        ("- a\n", "mapping"),
        ("train: images/train\nnames: 3\n", "names"),
        ("train: images/train\nnames: {a: b}\n", "whole number"),
        ("train: images/train\nnames: [a, a]\n", "same name"),
        ("names: [a]\n", "train:"),
        ("train: nowhere\nnames: [a]\n", "nowhere"),
        ("train: 3\nnames: [a]\n", "train must be"),
        ("train: images/train\nnames: [a]\nkpt_shape: [2, 4]\n", "kpt_shape"),
        ("train: images/train\nnames: [a]\nkpt_shape: [2, 3]\nflip_idx: [0, 0]\n", "flip_idx"),
        ("train: !!python/object/apply:os.system ['true']\nnames: [a]\n", "not YAML"),
    ],
)
def test_malformed_yaml_is_refused(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        open_dataset(data(tmp_path, "0 0.5 0.5 0.1 0.1", yaml=yaml))
    assert "data.yaml" in str(caught.value)


def test_keypoint_row_of_wrong_length(tmp_path: Path) -> None:
    path = data(tmp_path, "0 0.5 0.5 0.5 0.5 0.1 0.1", yaml=YAML + "kpt_shape: [2, 3]\n")
    with pytest.raises(FormatError, match="needs 11 numbers"):
        open_dataset(path)


def test_corrections_are_findings(tmp_path: Path) -> None:
    path = data(tmp_path, "7 0.5 0.5 0.1 0.1", "0 0.5 0.5 0 0.1", yaml=YAML.replace("names", "nc: 5\nnames"))
    (tmp_path / "labels" / "train" / "orphan.txt").write_text("")
    (tmp_path / "images" / "train" / "broken.png").write_bytes(b"no image")
    dataset = open_dataset(path)
    assert len(dataset.annotations) == 0
    assert len(dataset) == 2
    expected = {"yolo.nc", "image.unreadable", "annotation.category", "box.degenerate", "label.orphan", "image.unlabelled"}
    assert set(codes(dataset)) == expected
    where = {finding.code: finding.where for finding in dataset.findings}
    assert where["annotation.category"].endswith("a.txt:1")
    assert where["box.degenerate"].endswith("a.txt:2")


def test_missing_folder_falls_back_with_a_warning(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.png", 20, 20)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "mine.yaml").write_text("path: ../gone\ntrain: images/train2017\nval: images/val2017\nnames: [x]\n")
    dataset = open_dataset(tmp_path / "mine.yaml")
    assert len(dataset.annotations) == 1
    assert not dataset.splits
    assert {"yolo.path", "yolo.folder", "yolo.splits", "yolo.labels"} <= set(codes(dataset))


def test_several_yaml_files_need_a_choice(tmp_path: Path) -> None:
    data(tmp_path, "0 0.5 0.5 0.1 0.1").rename(tmp_path / "one.yaml")
    (tmp_path / "two.yaml").write_text(YAML)
    with pytest.raises(FormatError, match=r"one\.yaml, two\.yaml"):
        open_dataset(tmp_path)


def test_sniff(tmp_path: Path) -> None:
    assert sniff(data(tmp_path, "0 0.5 0.5 0.1 0.1")) > 0.8
    assert sniff(tmp_path) > 0.8
    assert sniff(tmp_path / "images") == 0
