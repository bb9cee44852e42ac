"""Results on disk: whole files, right numbers, and a way back into a score."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pelagia.core.image import image_size, write
from pelagia.core.types import Category, Instances
from pelagia.data.dataset import Dataset
from pelagia.errors import EvaluationError, FormatError, ImageError
from pelagia.infer.objects import instances_of
from pelagia.infer.predict import FileResult
from pelagia.infer.read_predictions import read_predictions
from pelagia.infer.result_pictures import draw_result
from pelagia.infer.results import ResultWriter
from tiny_onnx import tiny_card

CARD = tiny_card()
ORIENTED = tiny_card(task="oriented")


def some(seed: int, count: int, *, oriented: bool = False) -> Instances:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 50, (count, 2))
    sides = np.sort(rng.uniform(2, 30, (count, 2)), axis=1)[:, ::-1]
    shape: dict[str, Any] = {"boxes": np.concatenate([corners, corners + sides], axis=1)}
    if oriented:
        shape = {"oriented": np.column_stack([corners, sides, rng.uniform(-1.5, 1.5, count)])}
    return Instances(labels=rng.integers(0, 2, count), scores=np.sort(rng.uniform(0.1, 1, count))[::-1], **shape)


def write_results(folder: Path, card: Any, found: dict[str, Instances]) -> None:
    with ResultWriter(folder, card, model="m.onnx") as writer:
        for name, instances in found.items():
            writer.add(FileResult(Path(name), 100, 80, instances), name)
        writer.add(FileResult(Path("bad.png"), error="broken"), "bad.png")


def read_back(path: Path, truth: Dataset) -> tuple[list[Instances], list[str]]:
    """Predictions per image, and the images that are unknown."""
    found = read_predictions(path, truth)
    return [instances_of(found.objects, index, (100, 80)) for index in range(len(truth))], list(found.unknown)


def dataset(names: list[str], *, oriented: bool = False) -> Dataset:
    empty = Instances.empty(oriented=oriented)
    items = [(name, (100, 80), empty) for name in names]
    # Other order of classes than the model's: they are matched by name.
    task = "oriented" if oriented else "detect"
    return Dataset.from_instances([Category(7, "green"), Category(3, "red"), Category(9, "blue")], items, task=task)


def test_the_files_agree_with_the_objects(tmp_path: Path) -> None:
    found = {"a/1.png": some(0, 5), "a/2.png": some(1, 0), "b.png": some(2, 3)}
    write_results(tmp_path, CARD, found)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["complete"] is True
    assert content["model"]["file"] == "m.onnx"
    assert [image["file"] for image in content["images"]] == [*found, "bad.png"]
    assert content["images"][3] == {"file": "bad.png", "error": "broken"}
    assert [image["count"] for image in content["images"][:3]] == [5, 0, 3]
    with (tmp_path / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8
    first = found["a/1.png"]
    assert float(rows[0]["x1_px"]) == pytest.approx(first.box_array[0, 0], abs=1e-3)
    assert rows[0]["class"] == CARD.class_names[first.labels[0]]
    with (tmp_path / "counts.csv").open() as stream:
        counts = {row["file"]: row for row in csv.DictReader(stream)}
    assert counts["a/1.png"]["total"] == "5"
    assert int(counts["a/1.png"]["red"]) == int((first.labels == 0).sum())
    assert "bad.png" not in counts
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [item["id"] for item in coco["annotations"]] == list(range(1, 9))
    assert {item["category_id"] for item in coco["annotations"]} <= {3, 7}
    assert coco["images"][2] == {"id": 3, "file_name": "b.png", "width": 100, "height": 80}


@pytest.mark.parametrize("oriented", [False, True])
@pytest.mark.parametrize("file", ["results.json", "coco.json"])
def test_what_was_written_is_read_back(tmp_path: Path, file: str, oriented: bool) -> None:
    found = {"x/1.png": some(0, 6, oriented=oriented), "x/2.png": some(1, 4, oriented=oriented)}
    write_results(tmp_path, ORIENTED if oriented else CARD, found)
    truth = dataset(["x/2.png", "x/0.png", "x/1.png"], oriented=oriented)
    empty, first, second = (read_back(tmp_path / file, truth)[0][index] for index in (1, 2, 0))
    assert len(empty) == 0
    for got, wanted in ((first, found["x/1.png"]), (second, found["x/2.png"])):
        assert [truth.class_names[label] for label in got.labels] == [CARD.class_names[label] for label in wanted.labels]
        np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-6)
        if oriented:
            assert got.oriented is not None
            np.testing.assert_allclose(got.oriented, wanted.oriented, atol=2e-3)
        else:
            np.testing.assert_allclose(got.boxes, wanted.boxes, atol=2e-3)


def test_coco_results_are_read(tmp_path: Path) -> None:
    truth = dataset(["1.png", "2.png"])
    rows = [{"image_id": 2, "category_id": 3, "bbox": [10, 20, 5, 6], "score": 0.5}]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (first, second), others = read_back(tmp_path / "p.json", truth)
    assert others == []
    assert len(first) == 0
    np.testing.assert_array_equal(second.boxes, [[10, 20, 15, 26]])
    assert second.labels.tolist() == [1]
    (tmp_path / "p.json").write_text("[]")
    assert [len(item) for item in read_back(tmp_path / "p.json", truth)[0]] == [0, 0]


def test_images_that_the_truth_lacks_are_left_out_by_name(tmp_path: Path) -> None:
    write_results(tmp_path, CARD, {"1.png": some(0, 2), "other.png": some(1, 3)})
    (only,), others = read_back(tmp_path / "results.json", dataset(["1.png"]))
    assert len(only) == 2
    assert others == ["other.png"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"x": 1}, FormatError, "COCO results"),
        ([{"image_id": 1}], FormatError, "category_id"),
        ([{"image_id": 1, "category_id": 3, "score": 1}], FormatError, "bbox"),
        ([{"image_id": 1, "bbox": 5, "category_id": 3, "score": 1}], FormatError, "4 numbers"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 3, "score": 10**400}], FormatError, "score|field"),
        ([{"image_id": 1, "bbox": [9, 9, 9, 9, 30], "category_id": 3, "score": 1}], FormatError, "beyond 2 pi"),
        ({"images": [5]}, FormatError, "no 'file'"),
        ({"images": [{"file": "1.png", "objects": None}]}, FormatError, "must hold a list"),
        ({"images": [{"file": "1.png", "objects": [3]}]}, FormatError, "JSON object"),
        ({"images": [], "annotations": 5}, FormatError, "must hold a list"),
        ({"images": [], "categories": 5, "annotations": []}, FormatError, "must hold a list"),
        ({"images": [{"id": [1], "file_name": "1.png"}], "annotations": []}, FormatError, "number or text"),
        ([{"image_id": 1, "bbox": [1, 2, 3], "category_id": 3, "score": 1}], FormatError, "4 numbers"),
        ([{"image_id": 1, "bbox": [1, 2, 3, None], "category_id": 3, "score": 1}], FormatError, "4 numbers"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 3}], FormatError, "score"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 3, "score": float("inf")}], FormatError, "finite"),
        ([{"image_id": 9, "bbox": [1, 2, 3, 4], "category_id": 3, "score": 1}], EvaluationError, "such as 9, is in"),
        ([{"image_id": [1], "bbox": [1, 2, 3, 4], "category_id": 3, "score": 1}], FormatError, "named by its id"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 4, "score": 1}], EvaluationError, "class 4"),
        ([7], FormatError, "no 'image_id'"),
        ({"images": [{"file": "1.png"}]}, FormatError, "no 'objects'"),
        ({"images": [], "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}]}, FormatError, "image_id 1"),
        (
            {"images": [{"file": "y.png", "objects": [{"class": "red", "score": 1, "box": [1, 2, 3, 4]}]}]},
            EvaluationError,
            "y.png",
        ),
    ],
)
def test_wrong_predictions_are_named(tmp_path: Path, content: Any, error: type[Exception], message: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        read_predictions(tmp_path / "p.json", dataset(["1.png"]))


def test_a_name_that_two_images_have_is_refused(tmp_path: Path) -> None:
    content = {"images": [{"file": "1.png", "objects": [{"class": "red", "score": 1, "box": [1, 2, 3, 4]}]}]}
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match="several images"):
        read_predictions(tmp_path / "p.json", dataset(["a/1.png", "b/1.png"]))
    assert len(read_back(tmp_path / "p.json", dataset(["a/1.png", "b/2.png"]))[0][0]) == 1


def test_an_interrupted_run_keeps_what_it_has_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path, error: type[BaseException]) -> None:
        with ResultWriter(folder, CARD) as writer:
            writer.add(FileResult(Path("a.png"), 10, 10, some(0, 2)), "a.png")
            raise error

    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "stopped", KeyboardInterrupt)
    content = json.loads((tmp_path / "stopped" / "results.json").read_text())
    assert content["complete"] is False
    assert len(content["images"]) == 1
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "failed", ZeroDivisionError)
    assert [path.name for path in (tmp_path / "failed").iterdir()] == ["results"]  # what is finished stays


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png", np.full((80, 100), 40000, dtype=np.uint16))
    result = FileResult(tmp_path / "a.png", 100, 80, some(0, 3))
    draw_result(result, tmp_path / "a.jpg", CARD)
    assert image_size(tmp_path / "a.jpg") == (100, 80)
    monkeypatch.setattr("pelagia.infer.preview.PICTURE_PIXELS", 2000)
    draw_result(FileResult(tmp_path / "a.png", 100, 80, some(0, 3, oriented=True)), tmp_path / "b.jpg", CARD)
    assert image_size(tmp_path / "b.jpg") == (50, 40)
    with pytest.raises(ImageError, match="broken"):
        draw_result(FileResult(tmp_path / "a.png", error="broken"), tmp_path / "c.jpg", CARD)
