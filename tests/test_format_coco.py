"""COCO JSON against pycocotools and the format's definition."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference
from pycocotools.coco import COCO

from datasets import coco, codes, draw, survey, write_json
from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.data.formats.coco import sniff
from pelagia.data.formats.coco_categories import flip_partners
from pelagia.data.formats.coco_write import coco_dict
from pelagia.data.open import open_dataset
from pelagia.errors import FormatError, OptionError

SQUARE = [[4, 5, 14, 5, 14, 11, 4, 11]]


def test_box_is_continuous_xywh(tmp_path: Path) -> None:
    dataset = open_dataset(write_json(tmp_path / "x.json", coco({"bbox": [1.5, 2.25, 10, 20.5]})))
    np.testing.assert_array_equal(dataset.truth(0).box_array, [[1.5, 2.25, 11.5, 22.75]])
    assert dataset.annotations.ids.tolist() == [1]
    assert dataset.image_ids.tolist() == [5]
    assert [category.id for category in dataset.categories] == [2, 9]


@pytest.mark.parametrize("kind", ["compressed", "uncompressed"])
@given(seed=st.integers(0, 2**32 - 1), fill=st.floats(0.05, 1))
@settings(max_examples=20, deadline=None)
def test_run_lengths_equal_pycocotools(tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int, fill: float) -> None:
    bitmap = np.random.default_rng(seed).random((30, 40)) < fill
    bitmap[3, 4] = True
    rle = reference.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    counts = rle["counts"].decode() if kind == "compressed" else core_masks.encode(bitmap).counts.tolist()
    entry = {"bbox": reference.toBbox(rle).tolist(), "segmentation": {"size": [30, 40], "counts": counts}, "iscrowd": 0}
    dataset = open_dataset(write_json(tmp_path_factory.mktemp("rle") / "x.json", coco(entry)))
    masks = dataset.truth(0, masks=True).masks
    assert masks is not None
    np.testing.assert_array_equal(core_masks.paste(masks[0], 30, 40), bitmap)
    assert dataset.truth(0).areas == pytest.approx([reference.area(rle)])


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools itself
def test_polygon_parts_fill_like_pycocotools(tmp_path: Path) -> None:
    rings = [[2.5, 3, 12, 4, 8.25, 14], [20, 10, 33.7, 11, 30, 25.5, 19, 20]]
    dataset = open_dataset(write_json(tmp_path / "x.json", coco({"bbox": [2.5, 3, 31.2, 22.5], "segmentation": rings})))
    masks = dataset.truth(0, masks=True).masks
    assert masks is not None
    expected = reference.decode(reference.merge(reference.frPyObjects(rings, 30, 40))).astype(bool)
    np.testing.assert_array_equal(core_masks.paste(masks[0], 30, 40), expected)


def test_missing_box_comes_from_the_outline(tmp_path: Path) -> None:
    dataset = open_dataset(write_json(tmp_path / "x.json", coco({"segmentation": SQUARE})))
    np.testing.assert_array_equal(dataset.truth(0).box_array, [[4, 5, 14, 11]])
    assert "annotation.box" in codes(dataset)


@pytest.mark.parametrize(
    ("angle", "value"), [("rad-cw", 0.3), ("rad-ccw", -0.3), ("deg-cw", math.degrees(0.3)), ("deg-ccw", -math.degrees(0.3))]
)
def test_five_numbers_are_an_oriented_box(tmp_path: Path, angle: str, value: float) -> None:
    path = write_json(tmp_path / "x.json", coco({"bbox": [20, 15, 12, 5, value]}))
    dataset = open_dataset(path, angle=angle)
    assert dataset.task == "oriented"
    oriented = dataset.truth(0).oriented
    assert oriented is not None
    np.testing.assert_allclose(oriented, [[20, 15, 12, 5, 0.3]])
    np.testing.assert_allclose(dataset.truth(0).box_array, core_oriented.bounds(oriented))


def test_angle_must_be_stated_and_must_fit(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", coco({"bbox": [20, 15, 12, 5, 30.0]}))
    with pytest.raises(FormatError, match=r"x\.json#1: bbox has 5 numbers.*rad-cw"):
        open_dataset(path)
    with pytest.raises(FormatError, match="beyond 2 pi"):
        open_dataset(path, angle="rad-cw")
    with pytest.raises(OptionError, match="rad-cw"):
        open_dataset(path, angle="degrees")
    assert open_dataset(path, angle="deg-cw").truth(0).oriented is not None


def test_five_number_boxes_round_trip(tmp_path: Path) -> None:
    dataset = survey(tmp_path / "data", "oriented")
    for angle in ("rad-cw", "deg-ccw"):
        path = write_json(tmp_path / f"{angle}.json", coco_dict(dataset, angle=angle))
        again = open_dataset(path, angle=angle, images=tmp_path / "data")
        for index in range(len(dataset)):
            np.testing.assert_allclose(again.truth(index).oriented, dataset.truth(index).oriented, atol=1e-9)


def test_keypoints_and_their_partners(tmp_path: Path) -> None:
    categories = [{"id": 2, "name": "fish", "keypoints": ["nose", "left_fin", "right_fin"], "skeleton": [[1, 2], [1, 3]]}]
    entry = {"bbox": [1, 1, 20, 20], "keypoints": [5, 6, 2, 7, 8, 1, 0, 0, 0], "num_keypoints": 2}
    dataset = open_dataset(write_json(tmp_path / "x.json", coco(entry, categories=categories)), task="keypoints")
    keypoints = dataset.truth(0).keypoints
    assert keypoints is not None
    np.testing.assert_array_equal(keypoints[0], [[5, 6, 2], [7, 8, 1], [0, 0, 0]])
    assert dataset.categories[0].skeleton == ((0, 1), (0, 2))
    assert dataset.categories[0].flip == (0, 2, 1)
    assert coco_dict(dataset)["annotations"][0]["num_keypoints"] == 2
    assert coco_dict(dataset)["categories"][0]["skeleton"] == [[1, 2], [1, 3]]


def test_flip_partners() -> None:
    assert flip_partners(("left-eye", "right-eye", "tail", "left_lone")) == (1, 0, 2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "4 numbers"),
        ({"bbox": [1, 2, "three", 4]}, "must be numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "finite"),
        ({"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3]]}, "pairs"),
        ({"bbox": [1, 2, 3, 4], "segmentation": {"size": [30, 40], "counts": "!!"}}, "broken"),
        ({"bbox": [1, 2, 3, 4], "segmentation": {"size": [30, 40], "counts": [5, 5]}}, "add up"),
        ({"bbox": [1, 2, 3, 4], "segmentation": {"counts": [1200]}}, "size"),
        ({"bbox": [1, 2, 3, 4], "segmentation": "polygon"}, "segmentation"),
        ({"bbox": [1, 2, 3, 4], "keypoints": [1, 2]}, "x, y, v"),
        ({"bbox": [1, 2, 3, 4], "area": "big"}, "area"),
    ],
)
def test_malformed_annotation_is_refused_with_file_and_id(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(coco(change)))
    with pytest.raises(FormatError, match=message) as caught:
        open_dataset(path)
    assert str(caught.value).startswith(f"{path}#1")


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"images": {}},
        {"images": [], "annotations": 3, "categories": []},
        {"images": [], "annotations": [3], "categories": []},
        {"images": [{"id": 1}], "annotations": [], "categories": []},
        {"images": ["a.png"], "annotations": [], "categories": []},
        {"images": [], "annotations": [], "categories": [{"id": 1}]},
        {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
        {"images": [{"id": 1, "file_name": "gone.png"}], "annotations": [], "categories": []},
        {"images": [], "annotations": [{"segments_info": []}], "categories": []},
    ],
)
def test_malformed_document_is_refused(tmp_path: Path, document: object) -> None:
    with pytest.raises(FormatError) as caught:
        open_dataset(write_json(tmp_path / "x.json", document), format="coco")
    assert "x.json" in str(caught.value)


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"images": [\n{"id": 1,,}]}')
    with pytest.raises(FormatError, match=r"x\.json:2"):
        open_dataset(tmp_path / "x.json")


def test_two_images_with_one_id(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 4, "height": 4}, {"id": 1, "file_name": "b.png", "width": 4, "height": 4}]
    with pytest.raises(FormatError, match="two images have this id"):
        open_dataset(write_json(tmp_path / "x.json", coco(images=images)))


def test_references_to_nothing_are_findings(tmp_path: Path) -> None:
    path = write_json(
        tmp_path / "x.json", coco({"bbox": [1, 1, 2, 2], "image_id": 77}, {"bbox": [1, 1, 2, 2], "category_id": 4}, {})
    )
    dataset = open_dataset(path)
    assert len(dataset.annotations) == 0
    found = {finding.code: finding.where for finding in dataset.findings}
    assert found["annotation.image"] == f"{path}#1"
    assert found["annotation.category"] == f"{path}#2"
    assert found["annotation.empty"] == f"{path}#3"


@pytest.mark.parametrize("place", ["", "images", "../images", "../train2017", "../images/train2017"])
def test_images_are_found(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "data" / "annotations"
    file = draw(folder / place / "a.png", 40, 30)
    dataset = open_dataset(write_json(folder / "instances_train2017.json", coco({"bbox": [1, 1, 5, 5]})))
    assert dataset.image_paths[0].samefile(file)
    assert dataset[0].image.shape == (30, 40, 3)


def test_missing_images_are_told_and_labels_stay(tmp_path: Path) -> None:
    dataset = open_dataset(write_json(tmp_path / "x.json", coco({"bbox": [1, 1, 5, 5]})))
    assert codes(dataset) == ["image.missing"]
    assert len(dataset.truth(0)) == 1


def test_folder_with_a_file_for_each_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        draw(tmp_path / split / f"{split}.png", 40, 30)
        images = [{"id": 0, "file_name": f"{split}.png", "width": 40, "height": 30}]
        document = coco({"bbox": [1, 1, 5, 5], "image_id": 0}, images=images)
        write_json(tmp_path / split / "_annotations.coco.json", document)
    dataset = open_dataset(tmp_path)
    assert {name: rows.tolist() for name, rows in dataset.splits.items()} == {"train": [0], "val": [1]}
    assert dataset.image_ids.tolist() == [1, 2]
    assert dataset.split("val")[0].name == "valid.png"


def test_several_files_need_a_choice(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 40, 30)
    write_json(tmp_path / "horizontal.json", coco({"bbox": [1, 1, 5, 5]}))
    write_json(tmp_path / "oriented.json", coco({"bbox": [9, 9, 5, 3, 0.1]}))
    with pytest.raises(FormatError, match=r"horizontal\.json, oriented\.json"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, task="oriented", angle="rad-cw").task == "oriented"
    assert open_dataset(tmp_path, task="detect").task == "detect"


def test_sniff(tmp_path: Path) -> None:
    assert sniff(write_json(tmp_path / "x.json", coco())) > 0.8
    assert sniff(write_json(tmp_path / "y.json", {"a": 1})) < 0.5
    assert sniff(write_json(tmp_path / "z.txt", coco())) == 0


def test_ignore_flag_and_category(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "DontCare"}, {"id": 2, "name": "diatom"}]
    document = coco({"bbox": [1, 1, 5, 5], "category_id": 0}, {"bbox": [9, 9, 5, 5], "ignore": 1}, categories=categories)
    dataset = open_dataset(write_json(tmp_path / "x.json", document))
    assert dataset.class_names == ("diatom",)
    assert dataset.truth(0).ignore.tolist() == [True, True]
    written = coco_dict(dataset)
    assert [entry["category_id"] for entry in written["annotations"]] == [0, 2]
    assert [entry.get("ignore", 0) for entry in written["annotations"]] == [0, 1]
    assert {(c["id"], c["name"]) for c in written["categories"]} == {(0, "DontCare"), (2, "diatom")}


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools itself
def test_written_file_is_read_by_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    dataset = survey(tmp_path / "data", "masks")
    path = write_json(tmp_path / "x.json", coco_dict(dataset))
    other = COCO(str(path))
    capsys.readouterr()
    assert len(other.getAnnIds()) == len(dataset.annotations)
    for annotation in other.loadAnns(other.getAnnIds(imgIds=[1])):
        row = annotation["id"] - 1
        masks = dataset.truth(0, masks=True).masks
        assert masks is not None
        np.testing.assert_array_equal(other.annToMask(annotation).astype(bool), core_masks.paste(masks[row], 48, 64))
