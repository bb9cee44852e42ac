"""Predicted maps: what is written is read back with the truth beside it, and every fault is named with its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from datasets import draw, survey
from pelagia.core.types import Category, Instances, MaskCrop, Segment
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from pelagia.data.open import open_dataset
from pelagia.errors import EvaluationError, FormatError, ImageError
from pelagia.infer.map_predictions import (
    MapList,
    PanopticFile,
    pair_panoptic,
    read_label_predictions,
    read_panoptic,
    read_semantic_predictions,
)
from pelagia.metrics.label_images import evaluate_label_images
from pelagia.metrics.panoptic import PanopticTally
from pelagia.metrics.semantic import evaluate_semantic

SHAPE = (30, 40)


def save(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


def blocks(*places: tuple[int, int, int], dtype: Any = np.uint16) -> NDArray[Any]:
    """Squares of 6 pixels: (row, column, value)."""
    pixels = np.zeros(SHAPE, dtype=dtype)
    for row, column, value in places:
        pixels[row : row + 6, column : column + 6] = value
    return pixels


# Label images


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Three images with label images whose numbers have gaps."""
    for name, pixels in (("a", blocks((2, 3, 1), (20, 30, 700))), ("b", blocks((5, 5, 3))), ("c", blocks())):
        draw(tmp_path / "truth" / "images" / f"{name}.png", *SHAPE[::-1])
        save(tmp_path / "truth" / "instances" / f"{name}.png", pixels)
    return tmp_path / "truth"


def test_label_images_are_paired_with_those_of_the_source(labelled: Path, tmp_path: Path) -> None:
    wanted = [blocks((2, 3, 70_000), dtype=np.uint32), blocks((5, 6, 9), dtype=np.uint8)]
    save(tmp_path / "found" / "a.tif", wanted[0])
    save(tmp_path / "found" / "b_cp_masks.png", wanted[1])
    save(tmp_path / "found" / "other.png", wanted[1])
    predicted, true, unknown = read_label_predictions(tmp_path / "found", open_dataset(labelled))
    assert unknown == ["other"]
    assert len(predicted) == len(true) == 3
    for got, pixels in zip(predicted, [*wanted, np.zeros(SHAPE)], strict=True):
        np.testing.assert_array_equal(got, pixels)
    for got, name in zip(true, "abc", strict=True):
        np.testing.assert_array_equal(got, np.asarray(Image.open(labelled / "instances" / f"{name}.png")))
    result = evaluate_label_images(true, predicted, thresholds=(0.5,))
    assert result.totals.tolist() == [[2, 0, 1]]


def test_truth_is_what_convert_writes(tmp_path: Path) -> None:
    data = survey(tmp_path / "data", "masks")
    convert(data, tmp_path / "labels", "labels")
    _, true, unknown = read_label_predictions(tmp_path / "labels" / "instances", data)
    assert unknown == []
    predicted, again, _ = read_label_predictions(tmp_path / "labels" / "instances", open_dataset(tmp_path / "labels"))
    assert {int(pixels.max()) for pixels in true} == {0, 3}
    place = {name: index for index, name in enumerate(open_dataset(tmp_path / "labels").names)}
    for name, pixels in zip(data.names, true, strict=True):
        np.testing.assert_array_equal(pixels, predicted[place[name]])
        np.testing.assert_array_equal(pixels, again[place[name]])


def test_of_overlapping_objects_the_last_is_painted_and_regions_are_not(tmp_path: Path) -> None:
    square = np.ones((6, 6), dtype=bool)
    crops = tuple(MaskCrop(x, 4, square) for x in (0, 3, 20, 30, 37))
    item = Instances(
        labels=np.zeros(5),
        boxes=np.array([[crop.x, 4, crop.x + 6, 10] for crop in crops]),
        masks=crops,
        crowd=np.array([False, False, True, False, False]),
        ignore=np.array([False, False, False, True, False]),
    )
    data = Dataset.from_instances(["x"], [("a.png", SHAPE[::-1], item)])
    save(tmp_path / "a.png", blocks())
    _, (true,), _ = read_label_predictions(tmp_path, data)
    expected = np.zeros(SHAPE)
    for value, left in ((1, 0), (2, 3), (5, 37)):
        expected[4:10, left : left + 6] = value
    np.testing.assert_array_equal(true, expected)


def test_an_unknown_size_comes_from_the_image(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "a.png", *SHAPE[::-1])
    item = Instances(labels=[0], boxes=[[4, 5, 10, 11]], masks=(MaskCrop(4, 5, np.ones((6, 6), dtype=bool)),))
    data = Dataset.from_instances(["x"], [(tmp_path / "data" / "a.png", SHAPE[::-1], item)])
    data = replace(data, sizes=np.zeros((1, 2), dtype=np.int64))
    save(tmp_path / "found" / "a.png", blocks((5, 4, 1)))
    (found,), (true,), _ = read_label_predictions(tmp_path / "found", data)
    np.testing.assert_array_equal(found, true)


def test_label_images_that_do_not_fit(labelled: Path, tmp_path: Path) -> None:
    data = open_dataset(labelled)
    found = tmp_path / "found"
    with pytest.raises(FormatError, match="does not exist"):
        read_label_predictions(found, data)
    found.mkdir()
    with pytest.raises(EvaluationError, match=r"no label image here; expected \.png"):
        read_label_predictions(found, data)
    save(found / "x.png", blocks())
    with pytest.raises(EvaluationError, match="none of the 1 images"):
        read_label_predictions(found, data)
    save(found / "a.png", np.zeros((20, 50), dtype=np.uint8))
    predicted, _, _ = read_label_predictions(found, data)
    with pytest.raises(EvaluationError, match=r"a\.png: the prediction has 50 x 20 pixels, its image a\.png 40 x 30"):
        predicted[0]
    save(found / "b.tif", blocks((0, 0, -1), dtype=np.int32))
    predicted, _, _ = read_label_predictions(found, data)
    with pytest.raises(ImageError, match=r"b\.tif: label values must be 0 or more, got -1"):
        predicted[1]
    (found / "b.tif").write_bytes(b"II*\0no TIFF")
    with pytest.raises(ImageError, match=r"b\.tif"):
        predicted[1]
    save(found / "a_mask.png", blocks())
    with pytest.raises(EvaluationError, match=r"a\.png and a_mask\.png could both be for a\.png"):
        read_label_predictions(found, data)
    boxes = Dataset.from_instances(["x"], [("a.png", SHAPE[::-1], Instances(labels=[0], boxes=[[1, 2, 3, 4]]))])
    with pytest.raises(EvaluationError, match="no outlines"):
        read_label_predictions(found, boxes)


def test_maps_are_made_when_asked_for() -> None:
    made = []

    def make(index: int) -> int:
        made.append(index)
        return index * 10

    maps = MapList(make, 4)
    assert made == []
    assert (maps[1], maps[-1], maps[1:3], list(maps)) == (10, 30, [10, 20], [0, 10, 20, 30])
    with pytest.raises(IndexError):
        maps[4]


# Semantic maps


def semantic(folder: Path, *values: int) -> Dataset:
    """One image whose columns have `values`, in blocks."""
    draw(folder / "images" / "a.png", *SHAPE[::-1])
    save(folder / "masks" / "a.png", np.tile(np.repeat(np.array(values, dtype=np.uint8), 10), (30, 1)))
    return open_dataset(folder, task="semantic")


def test_semantic_maps_have_the_values_of_the_truth(tmp_path: Path) -> None:
    data = semantic(tmp_path / "truth", 0, 2, 1, 255)
    pixels = np.tile(np.repeat(np.array([1, 2, 255, 0], dtype=np.uint8), 10), (30, 1))
    save(tmp_path / "found" / "a.png", pixels)
    (found,), unknown = read_semantic_predictions(tmp_path / "found", data)
    assert unknown == []
    np.testing.assert_array_equal(found.labels, pixels)
    result = evaluate_semantic([data.semantic(0)], [found], data.categories)
    assert result.pixel_accuracy == pytest.approx(1 / 3)


def test_semantic_values_are_translated_as_those_of_the_truth(tmp_path: Path) -> None:
    data = semantic(tmp_path / "truth", 0, 255, 0, 255)
    assert data.mask_values is not None
    save(tmp_path / "found" / "a.png", data.semantic(0).labels * np.uint8(255))
    (found,), _ = read_semantic_predictions(tmp_path / "found", data)
    np.testing.assert_array_equal(found.labels, data.semantic(0).labels)
    assert found.labels.dtype == np.uint8
    save(tmp_path / "found" / "a.png", data.semantic(0).labels)
    maps, _ = read_semantic_predictions(tmp_path / "found", data)
    with pytest.raises(EvaluationError, match=r"a\.png: the values 1 stand for no class; expected are 0, 255"):
        maps[0]


def test_semantic_maps_that_do_not_fit(tmp_path: Path) -> None:
    data = semantic(tmp_path / "truth", 0, 1, 2, 3)
    with pytest.raises(FormatError, match="does not exist"):
        read_semantic_predictions(tmp_path / "found", data)
    save(tmp_path / "found" / "a.png", np.full(SHAPE, 7, dtype=np.uint16))
    maps, _ = read_semantic_predictions(tmp_path / "found", data)
    with pytest.raises(EvaluationError, match="the values 7 stand for no class; expected are 0, 1, 2, 3, 255"):
        maps[0]
    save(tmp_path / "found" / "a.png", np.zeros((3, 4), dtype=np.uint8))
    with pytest.raises(EvaluationError, match=r"4 x 3 pixels, its image a\.png 40 x 30"):
        maps[0]
    with pytest.raises(EvaluationError, match="no semantic label images"):
        read_semantic_predictions(tmp_path / "found", survey(tmp_path / "boxes", "boxes"))


def test_an_image_without_semantic_map_has_no_class(tmp_path: Path) -> None:
    semantic(tmp_path / "truth", 0, 1, 2, 3)
    draw(tmp_path / "truth" / "images" / "b.png", *SHAPE[::-1])
    save(tmp_path / "truth" / "masks" / "b.png", np.zeros(SHAPE, dtype=np.uint8))
    save(tmp_path / "found" / "a.png", np.zeros(SHAPE, dtype=np.uint8))
    save(tmp_path / "found" / "c.png", np.zeros(SHAPE, dtype=np.uint8))
    (first, second), unknown = read_semantic_predictions(tmp_path / "found", open_dataset(tmp_path / "truth", task="semantic"))
    assert (int(first.labels.max()), int(second.labels.min()), unknown) == (0, 255, ["c"])


# Panoptic files

CATEGORIES = [{"id": 4, "name": "copepod", "isthing": 1}, {"id": 9, "name": "water", "isthing": 0, "supercategory": "stuff"}]


def entry(image: int | str, file: str, *segments: dict[str, Any]) -> dict[str, Any]:
    return {"image_id": image, "file_name": file, "segments_info": list(segments)}


def segment(number: int, category: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "category_id": category, "area": 0, "bbox": [0, 0, 1, 1], **more}


def paint(path: Path, ids: NDArray[Any]) -> Path:
    channels = [(ids // 256**place % 256).astype(np.uint8) for place in range(3)]
    return save(path, np.stack(channels, axis=2))


def panoptic(folder: Path, annotations: list[Any], **parts: Any) -> Path:
    """A panoptic file; `parts` replace or (None) remove others."""
    (folder / "pan").mkdir(parents=True, exist_ok=True)
    content = {"images": None, "annotations": annotations, "categories": CATEGORIES} | parts
    path = folder / "pan.json"
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return path


def test_a_panoptic_file_is_read(tmp_path: Path) -> None:
    ids = blocks((1, 2, 7), (20, 20, 256 * 3 + 1), (10, 30, 255 * 65536 + 2), dtype=np.int64)
    paint(tmp_path / "pan" / "x" / "a.png", ids)
    segments = segment(7, 4, iscrowd=1), segment(256 * 3 + 1, 9, score=0.5), segment(255 * 65536 + 2, 4, iscrowd=0)
    images = [{"id": 3, "file_name": "photos/a.jpg"}]
    path = panoptic(
        tmp_path, [entry(3, "x/a.png", *segments), entry(5, "b.png")], images=[*images, {"id": 5, "file_name": "b.jpg"}]
    )
    found = read_panoptic(path)
    assert found.categories == (Category(4, "copepod"), Category(9, "water", "stuff", is_thing=False))
    assert found.names == ("photos/a.jpg", "b.jpg")
    assert len(found) == 2
    item = found.map(-2)
    assert item.ids.dtype == np.int32
    np.testing.assert_array_equal(item.ids, ids)
    assert item.segments == (Segment(7, 0, None, True), Segment(769, 1, 0.5, False), Segment(255 * 65536 + 2, 0, None, False))
    with pytest.raises(ImageError, match=r"b\.png: .*does not exist"):
        found.map(1)


def test_a_panoptic_file_of_predictions_may_lack_images_and_categories(tmp_path: Path) -> None:
    path = panoptic(tmp_path, [entry("x", "a.png", segment(1, 9), segment(2, 4))], categories=None)
    found = read_panoptic(path, tmp_path)
    assert (found.folder, found.names, found.listed) == (tmp_path, ("a.png",), False)
    assert found.categories == (Category(4, "4"), Category(9, "9"))
    assert found.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("annotations", "parts", "message"),
    [
        (None, {}, "expected a COCO panoptic file"),
        ([7], {}, r"pan\.json#0: .*no 'image_id'"),
        ([entry(1, "a.png"), {"image_id": 2}], {}, r"pan\.json#1: .*no 'file_name'"),
        ([entry(1, "")], {}, "file_name must be a name"),
        ([{"image_id": 1, "file_name": "a.png"}], {}, "no 'segments_info'"),
        ([entry(1, "a.png") | {"segments_info": {}}], {}, "must be a list"),
        ([entry(1.5, "a.png")], {}, "image_id must be a whole number"),
        ([entry(1, "a.png"), entry(1, "b.png")], {}, r"#1: image 1 has a second entry"),
        ([entry(1, "a.png", segment(0, 4))], {}, "ids must be 1 to 16,777,215.*got 0"),
        ([entry(1, "a.png", segment(1 << 31, 4))], {}, "ids must be 1 to 16,777,215"),
        ([entry(1, "a.png", segment(1, 4), segment(1, 9))], {}, "segment 1 is listed twice"),
        ([entry(1, "a.png", segment(True, 4))], {}, "id must be a whole number"),
        ([entry(1, "a.png", {"id": 1})], {}, "no 'category_id'"),
        ([entry(1, "a.png"), entry(2, "b.png", segment(1, 4), segment(2, 5))], {}, r"#1: category_id 5"),
        ([entry(1, "a.png")], {"images": [{"id": 2, "file_name": "a.jpg"}]}, "image_id 1 is not among"),
        ([], {"images": [{"id": 2}]}, r"#images: .*no 'file_name'"),
        ([], {"categories": [{"id": 1}]}, r"#categories: .*no 'name'"),
        ([], {"categories": CATEGORIES[:1] * 2}, "same id"),
        ([], {"categories": {}}, "must be a list"),
    ],
)
def test_a_malformed_panoptic_file_is_refused(tmp_path: Path, annotations: Any, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_panoptic(panoptic(tmp_path, annotations, **parts))


def test_a_missing_folder_of_png_is_named(tmp_path: Path) -> None:
    path = panoptic(tmp_path, []).rename(tmp_path / "other.json")
    with pytest.raises(FormatError, match=r"other: the folder .* folder="):
        read_panoptic(path)
    assert len(read_panoptic(path, tmp_path / "pan")) == 0


@pytest.mark.parametrize("kind", ["palette", "grey", "alpha", "16 bits", "jpeg", "grey tiff"])
def test_a_panoptic_map_must_be_rgb_of_8_bits(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pan" / "a.png"
    found = read_panoptic(panoptic(tmp_path, [entry(1, "a.png")]))
    image = Image.fromarray(np.zeros((4, 5, 3), dtype=np.uint8))
    if kind == "16 bits":
        cv2.imwrite(str(path), np.zeros((4, 5, 3), dtype=np.uint16))
    elif kind == "jpeg":
        image.save(path, format="JPEG")
    elif kind == "grey tiff":
        image.convert("L").save(path, format="TIFF")
    else:
        image.convert({"palette": "P", "grey": "L", "alpha": "RGBA"}[kind]).save(path)
    with pytest.raises(FormatError, match=r"a\.png: .*RGB with 8 bits"):
        found.map(0)


def pair_of(tmp_path: Path, truth: list[Any], predicted: list[Any], **parts: Any) -> tuple[PanopticFile, PanopticFile]:
    """(predicted, truth)."""
    given = {name: parts.pop(name) for name in list(parts) if name == "truth_images"}
    return (
        read_panoptic(panoptic(tmp_path / "found", predicted, **parts)),
        read_panoptic(panoptic(tmp_path / "truth", truth, images=given.get("truth_images"))),
    )


def test_panoptic_files_are_paired_and_scored(tmp_path: Path) -> None:
    ids = blocks((1, 2, 7), (20, 20, 8), dtype=np.int64)
    for name in ("a", "b"):
        paint(tmp_path / "truth" / "pan" / f"{name}.png", ids)
    paint(tmp_path / "found" / "pan" / "n1.png", ids + (ids > 0))
    other = [{"id": 5, "name": "extra"}, {"id": 9, "name": "sea", "isthing": 0}, {"id": 4, "name": "COPEPOD"}]
    listed = [entry(3, "a.png", segment(7, 4), segment(8, 9)), entry(6, "b.png", segment(7, 9), segment(8, 9))]
    unlisted = [entry(11, "n2.png", segment(1, 4)), entry(3, "n1.png", segment(8, 4, score=0.25), segment(9, 9))]
    predicted, truth = pair_of(tmp_path, listed, unlisted, categories=other)
    pairs, unknown = pair_panoptic(predicted, truth)
    assert unknown == ["n2.png"]
    assert len(pairs) == 2
    true, found = pairs[0]
    assert [item.label for item in true.segments] == [0, 1]
    assert found.segments == (Segment(8, 0, 0.25), Segment(9, 1))
    true, found = pairs[1]
    assert found.segments == ()
    assert (found.ids.shape, int(found.ids.max())) == (true.ids.shape, 0)
    tally = PanopticTally(truth.categories)
    for true, found in pairs:
        tally.add(true, found)
    assert (tally.tp.tolist(), tally.fn.tolist(), tally.fp.tolist()) == ([1, 1], [0, 2], [0, 0])


def test_listed_names_come_before_ids_and_ids_before_names_of_png(tmp_path: Path) -> None:
    truth = [entry(1, "1.png"), entry(2, "2.png")]
    truth_images = [{"id": 1, "file_name": "d/one.jpg"}, {"id": 2, "file_name": "d/two.jpg"}]

    for number in (1, 2):
        paint(tmp_path / "truth" / "pan" / f"{number}.png", np.zeros((4, 5), dtype=np.int64))

    def matched(predicted: list[Any], images: Any = None) -> list[int]:
        """The place of the prediction for each true image, counted from 1; 0 if there is none."""
        for place, item in enumerate(predicted, start=1):
            paint(tmp_path / "found" / "pan" / item["file_name"], np.full((4, 5), place))
        pairs, _ = pair_panoptic(*pair_of(tmp_path, truth, predicted, images=images, truth_images=truth_images))
        return [int(found.ids.max()) for _, found in pairs]

    swapped = [{"id": 1, "file_name": "two.png"}, {"id": 2, "file_name": "one.png"}]
    assert matched([entry(1, "1.png"), entry(2, "2.png")], swapped) == [2, 1]
    assert matched([entry(1, "two.png"), entry(2, "one.png")]) == [1, 2]
    assert matched([entry(8, "two.png")]) == [0, 1]
    assert matched([entry(2, "x.png")], [{"id": 2, "file_name": "x.jpg"}]) == [0, 1]


def test_panoptic_files_that_do_not_fit(tmp_path: Path) -> None:
    truth = [entry(1, "a.png", segment(7, 4))]
    with pytest.raises(EvaluationError, match=r"none of the 1 images .* such as b\.png"):
        pair_panoptic(*pair_of(tmp_path, truth, [entry(2, "b.png")]))
    with pytest.raises(EvaluationError, match="category 5 is not in the truth, which has: 4 copepod, 9 water"):
        pair_panoptic(*pair_of(tmp_path, truth, [entry(1, "a.png", segment(1, 5))], categories=None))
    names = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "x/a.png"}]
    with pytest.raises(EvaluationError, match=r"p\.png and q\.png could both be for a\.jpg"):
        pair_panoptic(
            *pair_of(
                tmp_path,
                truth,
                [entry(1, "p.png"), entry(2, "q.png")],
                images=names,
                truth_images=[{"id": 1, "file_name": "a.jpg"}],
            )
        )
    paint(tmp_path / "truth" / "pan" / "a.png", blocks((1, 2, 7), dtype=np.int64))
    paint(tmp_path / "found" / "pan" / "a.png", np.zeros((20, 50), dtype=np.int64))
    pairs, _ = pair_panoptic(*pair_of(tmp_path, truth, [entry(1, "a.png")]))
    with pytest.raises(EvaluationError, match=r"found/pan/a\.png: the prediction has 50 x 20 pixels, its image a\.png 40 x 30"):
        pairs[0]
