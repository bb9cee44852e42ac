"""Predictions from COCO results: the scanner gives what Python's parser gives, and the scores are pycocotools'."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pelagia.data.dataset import Dataset
from pelagia.data.open import open_dataset
from pelagia.errors import EvaluationError, FormatError
from pelagia.infer import coco_results, kernels, read_predictions
from pelagia.infer.evaluate import gather_evidence
from pelagia.metrics.objects import Kind

WIDTH, HEIGHT = 90, 70


def truth_file(folder: Path, rng: np.random.Generator, images: int = 6) -> Path:
    """Boxes, masks and poses of 3 classes; ids that are neither ordered nor dense; crowds; degenerate boxes."""
    ids = rng.permutation(np.arange(1, images + 1) * 7).tolist()
    annotations: list[dict[str, Any]] = []
    for image in ids:
        for _ in range(int(rng.integers(0, 6))):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": int(rng.choice([2, 5, 9]))}
            annotations.append({**shape(rng), **entry, "iscrowd": int(rng.random() < 0.1)})
            annotations[-1]["area"] = float(rng.uniform(100, 3000))
            points = annotations[-1]["keypoints"]
            annotations[-1]["num_keypoints"] = sum(value > 0 for value in points[2::3])
            if rng.random() < 0.1:
                annotations[-1]["bbox"][2] = 0
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in ids],
        "categories": [{"id": i, "name": f"c{i}", "keypoints": [f"p{k}" for k in range(17)]} for i in (2, 5, 9)],
        "annotations": annotations,
    }
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json"


def shape(rng: np.random.Generator) -> dict[str, Any]:
    x, y, w, h = int(rng.integers(0, 50)), int(rng.integers(0, 40)), int(rng.integers(4, 40)), int(rng.integers(4, 30))
    bitmap = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    bitmap[y : y + h, x : x + w] = rng.random((h, w)) < 0.9
    encoded = coco_mask.encode(np.asfortranarray(bitmap))
    points = np.column_stack([rng.uniform(x, x + w, 17), rng.uniform(y, y + h, 17), rng.integers(0, 3, 17)])
    return {
        "bbox": [x, y, w, h],
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()},
        "keypoints": points.ravel().tolist(),
    }


def results(truth: Path, rng: np.random.Generator, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Moved copies of the truth, and inventions."""
    content = json.loads(truth.read_text())
    found = []
    for _ in range(60):
        entry = content["annotations"][int(rng.integers(len(content["annotations"])))] if content["annotations"] else shape(rng)
        new = shape(rng) if rng.random() < 0.3 else entry
        item = {"image_id": int(rng.choice([i["id"] for i in content["images"]])), "category_id": int(rng.choice([2, 5, 9]))}
        if rng.random() < 0.7 and "image_id" in entry:
            item = {"image_id": entry["image_id"], "category_id": entry["category_id"]}
        item |= {name: new[name] for name in fields}
        if "bbox" in item:
            item["bbox"] = (np.array(new["bbox"]) + rng.choice([0, 0.25, 1 / 3, 1e-5], 4)).tolist()
        item["score"] = float(rng.choice([0.5, rng.random(), round(rng.random(), 3), 1e-7 * rng.random()]))
        found.append(item)
    return found


def scored(truth: Path, path: Path, kind: Kind) -> np.ndarray:
    dataset = open_dataset(truth)
    dataset = dataset.subset(np.argsort(dataset.image_ids, kind="stable"))
    found = read_predictions.read_predictions(path, dataset, kind)
    stats = gather_evidence(dataset, found.objects).result().stats
    return np.where(np.isnan(stats), -1, stats)


def reference(truth: Path, path: Path, kind: str) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(path)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


@pytest.mark.parametrize(
    ("kind", "coco_kind", "fields"),
    [
        ("boxes", "bbox", ("bbox",)),
        ("boxes", "bbox", ("bbox", "segmentation")),
        ("masks", "segm", ("segmentation",)),
        ("masks", "segm", ("bbox", "segmentation")),
        ("keypoints", "keypoints", ("keypoints",)),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_files_score_as_pycocotools_scores_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, coco_kind: str, fields: tuple[str, ...], seed: int
) -> None:
    monkeypatch.setattr(coco_results, "_LEAST_BYTES", 500)  # several threads even for small files
    rng = np.random.default_rng(seed)
    truth = truth_file(tmp_path, rng)
    content = json.loads(truth.read_text())
    content["annotations"] = [item for item in content["annotations"] if item["bbox"][2] > 0]  # `keep_empty` is tested below
    truth.write_text(json.dumps(content))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results(truth, rng, fields), indent=seed or None))
    np.testing.assert_allclose(scored(truth, path, kind), reference(truth, path, coco_kind), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fields", [("bbox",), ("segmentation",), ("bbox", "segmentation"), ("keypoints",)])
def test_the_scanner_gives_what_the_slow_reader_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(7)
    truth = truth_file(tmp_path, rng)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results(truth, rng, fields)))
    kind: Kind = "masks" if "segmentation" in fields else "keypoints" if "keypoints" in fields else "boxes"
    dataset = open_dataset(truth)
    fast = read_predictions.read_predictions(path, dataset, kind).objects
    assert coco_results.ResultsFile(path).columns(kind) is not None
    monkeypatch.setattr(coco_results.ResultsFile, "columns", lambda *_: None)
    slow = read_predictions.read_predictions(path, dataset, kind).objects
    for name in ("image", "label", "score", "bounds", "area", "size"):
        np.testing.assert_allclose(getattr(fast, name), getattr(slow, name), rtol=1e-12, atol=1e-9, err_msg=name)
    if fast.keypoints is not None:
        np.testing.assert_array_equal(fast.keypoints, slow.keypoints)


def number_at(text: str) -> tuple[float, int, int]:
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    result: tuple[float, int, int] = kernels._number(data, 0, len(data))
    return result


@settings(max_examples=400, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 1) | st.floats(0, 5000).map(lambda v: round(v, 3)))
@example(0.1)
@example(9007199254740993.0)
@example(5e-324)
@example(-0.0)
@example(123456789012345678.0)
@example(0.30000000000000004)
def test_numbers_are_those_of_python(value: float) -> None:
    text = repr(value)
    got, end, state = number_at(text)
    assert state in (0, 1)
    assert end == len(text)
    if state == 0:
        assert math.copysign(1, got) == math.copysign(1, float(text))
        assert got == float(text)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**18 - 1), st.integers(0, 22))
def test_decimals_of_eighteen_digits_are_those_of_python(digits: int, places: int) -> None:
    text = f"{digits}e-{places}"
    got, _, state = number_at(text)
    assert state == 1 or got == float(text)


def test_few_numbers_are_left_to_python() -> None:
    texts = [repr(value) for value in np.random.default_rng(0).random(2000)]
    assert sum(number_at(text)[2] == 1 for text in texts) == 0


@pytest.mark.parametrize("text", ["", "-", ".5", "1.", "01", "1e", "+1", "nan", "1e+"])
def test_what_is_no_number_in_json_is_refused(text: str) -> None:
    assert number_at(text)[2] == -1


ROW = {"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([ROW, ROW]),
        json.dumps([ROW, ROW], indent=3),
        "\ufeff" + json.dumps([ROW]),
        json.dumps([{**ROW, "note": 'a "quoted" {text}, [with] \\ signs', "more": {"a": [1, {"b": None}]}, "id": 3}]),
        json.dumps([{"score": 1, "bbox": [1e2, 2.5e-3, 3, 4], "category_id": 2, "image_id": 7}]),
        "[]",
    ],
)
def test_usual_files_take_the_fast_way(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text, encoding="utf-8")
    columns = coco_results.ResultsFile(tmp_path / "p.json").columns("boxes")
    expected = json.loads(text.lstrip("\ufeff"))
    if not expected:
        assert columns is None  # nothing to scan: the other reader says that there is nothing
        return
    assert columns is not None
    assert columns.boxes is not None
    np.testing.assert_array_equal(columns.boxes, [item["bbox"] for item in expected])
    np.testing.assert_array_equal(columns.score, [item["score"] for item in expected])


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"images": []}),
        json.dumps([ROW])[:-1],
        json.dumps([ROW])[:-10],
        json.dumps([ROW, 3]),
        json.dumps([{**ROW, "image_id": "a"}]),
        json.dumps([{**ROW, "image_id": 7.5}]),
        json.dumps([{**ROW, "score": None}]),
        json.dumps([{**ROW, "bbox": [1, 2, 3]}]),
        json.dumps([ROW, {**ROW, "bbox": [1, 2, 3, 4, 5]}]),
        json.dumps([{key: value for key, value in ROW.items() if key != "score"}]),
        '[{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "score": NaN}]',
        '[{"image_id": 7, "image_id": 8, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]',
        '[{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4,], "score": 1}]',
        '[{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1},]',
        '[{"image_id": 7 "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}]',
    ],
)
def test_the_unusual_is_left_to_the_slow_reader(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    assert coco_results.ResultsFile(tmp_path / "p.json").columns("boxes") is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_broken_bytes_never_crash_the_scanner(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = bytearray(json.dumps([ROW] * 4, indent=data.draw(st.sampled_from([None, 1]))).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("broken") / "p.json"
    path.write_bytes(bytes(text[: data.draw(st.integers(1, len(text)))]))
    columns = coco_results.ResultsFile(path).columns("boxes")
    if columns is not None:  # a digit became another digit, a blank another blank, a letter of an unknown key another
        assert len(columns) == len(json.loads(path.read_bytes()))


def small(folder: Path) -> Dataset:
    content = {
        "images": [{"id": 7, "file_name": "7.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 2, "name": "c2"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 2, **shape(np.random.default_rng(0)), "area": 9.0, "iscrowd": 0}],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    return open_dataset(folder / "truth.json")


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({**ROW, "image_id": 8}, EvaluationError, "none of the 1 images"),
        ({**ROW, "category_id": 3}, EvaluationError, "class 3 is not in the truth"),
        ({**ROW, "segmentation": {"size": [HEIGHT, 91], "counts": "0"}}, EvaluationError, "91 x 70 pixels"),
        ({**ROW, "segmentation": {"size": [HEIGHT, WIDTH], "counts": "zzz"}}, FormatError, "neither run lengths nor polygons"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, row: dict[str, Any], error: type[Exception], message: str) -> None:
    dataset = small(tmp_path)
    (tmp_path / "p.json").write_text(json.dumps([row]))
    with pytest.raises(error, match=message):
        read_predictions.read_predictions(tmp_path / "p.json", dataset, "masks" if "segmentation" in row else "boxes")


def write_boxes(folder: Path, truth: list[float], found: list[float], **more: Any) -> tuple[Path, Path]:
    content = {
        "images": [{"id": 7, "file_name": "7.png", "width": 400, "height": 300}],
        "categories": [{"id": 2, "name": "c2"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 2, "bbox": truth, "area": 500.0, "iscrowd": 0}],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "found.json").write_text(json.dumps([{"image_id": 7, "category_id": 2, "bbox": found, "score": 0.5, **more}]))
    return folder / "truth.json", folder / "found.json"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 900), st.sampled_from([0.5, 0.6, 0.75, 0.8]), st.booleans())
@example(101, 202, 0.5, True)
def test_the_very_edge_of_a_threshold_is_that_of_pycocotools(
    tmp_path_factory: pytest.TempPathFactory, corner: int, side: int, share: float, fast: bool
) -> None:
    x, w = corner / 10, side / 10
    truth, found = write_boxes(tmp_path_factory.mktemp("edge"), [x, x / 3, w, w], [x, x / 3, w * share, w])
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(coco_results.ResultsFile, "columns", lambda *_: None)
            patch.setattr("pelagia.data.formats.coco.plain_columns", lambda *_, **__: None)
        stats = scored(truth, found, "boxes")
    np.testing.assert_allclose(stats, reference(truth, found, "bbox"), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("angle", "value"), [("rad-cw", math.radians(30)), ("deg-ccw", -30.0), (None, math.radians(30))])
def test_angles_are_read_as_stated(tmp_path: Path, angle: Any, value: float) -> None:
    truth, found = write_boxes(tmp_path, [100, 100, 40, 10, value], [100, 100, 40, 10, value])
    dataset = open_dataset(truth, angle=angle or "rad-cw")
    objects = read_predictions.read_predictions(found, dataset, angle=angle).objects
    assert gather_evidence(dataset, objects).result().ap == pytest.approx(1.0)
    upright = read_predictions.read_predictions(found, dataset, "boxes", angle=angle).objects
    assert gather_evidence(dataset, upright).result().ap == pytest.approx(1.0)


def test_an_image_of_another_folder_is_another_image(tmp_path: Path) -> None:
    truth, _ = write_boxes(tmp_path, [1, 2, 30, 40], [1, 2, 30, 40])
    content = json.loads(truth.read_text())
    content["images"][0]["file_name"] = "camA/0001.png"
    truth.write_text(json.dumps(content))
    entry = {"class": "c2", "score": 0.9, "box": [1, 2, 31, 42]}
    images = [{"file": f"{folder}/0001.png", "objects": [entry]} for folder in ("camA", "camB")]
    (tmp_path / "results.json").write_text(json.dumps({"images": images}))
    found = read_predictions.read_predictions(tmp_path / "results.json", open_dataset(truth))
    assert len(found.objects) == 1
    assert found.unknown == ("camB/0001.png",)


@pytest.mark.parametrize("fast", [True, False])
def test_predictions_of_an_ignored_category_are_counted_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    truth, found = write_boxes(tmp_path, [1, 2, 30, 40], [1, 2, 30, 40])
    content = json.loads(truth.read_text())
    content["categories"].append({"id": 9, "name": "DontCare"})
    truth.write_text(json.dumps(content))
    rows = json.loads(found.read_text())
    found.write_text(json.dumps([*rows, {**rows[0], "category_id": 9}]))
    if not fast:
        monkeypatch.setattr(coco_results.ResultsFile, "columns", lambda *_: None)
    predictions = read_predictions.read_predictions(found, open_dataset(truth))
    assert (len(predictions.objects), predictions.left_out) == (1, 1)


def test_poses_of_two_lengths_are_refused(tmp_path: Path) -> None:
    dataset = small(tmp_path)
    rows = [{"image_id": 7, "category_id": 2, "score": 0.5, "keypoints": [1, 2, 2] * count} for count in (3, 4)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with pytest.raises(FormatError, match="3 and of 4 points"):
        read_predictions.read_predictions(tmp_path / "p.json", dataset, "keypoints")


def test_what_is_compared_follows_what_both_hold(tmp_path: Path) -> None:
    dataset = small(tmp_path)
    for fields, kind in ((("bbox",), "boxes"), (("bbox", "segmentation"), "masks"), (("keypoints",), "keypoints")):
        drawn = shape(np.random.default_rng(1))
        row = {"image_id": 7, "category_id": 2, "score": 0.5, **{name: drawn[name] for name in fields}}
        (tmp_path / "p.json").write_text(json.dumps([row]))
        assert read_predictions.read_predictions(tmp_path / "p.json", dataset).objects.kind == kind
