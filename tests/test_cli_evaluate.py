"""`pelagia evaluate` on boxes and masks: what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluating import CLASSES, HEIGHT, WIDTH, document, drawn, panoptic, run, truth_file
from pelagia.core.image import write
from pelagia.core.oriented import to_corners
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from tiny_onnx import tiny_card, write_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO labels with outlines of 8 images, and results that are nearly right, in four forms."""
    folder = tmp_path_factory.mktemp("evaluate")
    items = []
    for index in range(8):
        write(folder / "images" / f"{index}.png", np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8))
        items.append((folder / "images" / f"{index}.png", (WIDTH, HEIGHT), drawn(index)))
    data = Dataset.from_instances(CLASSES, items, task="instance")
    convert(data, folder / "coco", "coco")
    truth = json.loads(truth_file(folder).read_text())
    rng = np.random.default_rng(5)
    good, poor = [], []
    for entry in truth["annotations"]:
        x, y, w, h = entry["bbox"]
        item = {"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": [x + 0.5, y, w, h]}
        item["score"] = float(rng.uniform(0.6, 1))
        good.append(item)
        poor.append({**item, "bbox": [x + 3, y + 2, w, h], "score": float(rng.uniform(0.2, 1))})
        poor.append({**item, "category_id": int(rng.choice([3, 7, 9])), "score": float(rng.uniform(0, 0.9))})
    (folder / "good.json").write_text(json.dumps(good))
    (folder / "poor.json").write_text(json.dumps(poor))
    return folder


def test_a_report_tells_everything(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(
        *("evaluate", place / "poor.json", truth_file(place), "--compare", "boxes", "--resamples", "30", "--out", tmp_path),
        *("--against", place / "good.json"),
    )
    assert code == 0
    output = capsys.readouterr()
    for text in ("AP50", "What the lost AP50 goes to", "ECE", "interval", "difference", "anything"):
        assert text in output.out
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert {
        "errors",
        "calibration",
        "intervals",
        "differences",
        "hierarchy",
        "worst_images",
        "chosen_thresholds",
    } <= content.keys()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "reliability.png", "errors.png", "errors_by_size.png", "intervals.png", "counts.png", "worst"} <= names
    page = (tmp_path / "report.html").read_text()
    for title in ("Where AP is lost", "Images with most errors", "How sure the numbers are", "By taxonomy"):
        assert title in page
    assert len(list((tmp_path / "worst").iterdir())) == 8


def test_the_better_of_two_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", place / "poor.json", truth_file(place), "--compare", "boxes", "--json", "--resamples", "200")
    assert run(*words, "--against", place / "good.json") == 0
    rows = {(row["class"], row["number"]): row for row in document(capsys)["differences"]}
    row = rows["", "AP"]
    assert row["second"] - row["first"] == pytest.approx(row["value"])
    assert 0 < row["low"] < row["value"] < row["high"]
    assert row["p"] < 0.02
    assert run(*words, "--against", place / "poor.json") == 0
    row = {(row["class"], row["number"]): row for row in document(capsys)["differences"]}["", "AP"]
    assert (row["value"], row["p"]) == (0.0, 1.0)


def test_rules_cuts_and_thresholds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", place / "poor.json", truth_file(place), "--compare", "boxes")
    assert run(*words, "--rules", "voc2007", "--max-dets", "1", "--max-dets", "7", "--iou", "0.5") == 0
    text = capsys.readouterr().out
    assert "VOC 2007" in text
    assert "AR@7" in text
    assert "AR@100" not in text
    assert run(*words, "--json", "--threshold", "count") == 0
    content = document(capsys)
    by_count = content["chosen_thresholds"]
    assert set(by_count) == {"red", "orange", "blue"}
    assert run(*words, "--json", "--threshold", "precision=0.9") == 0
    assert document(capsys)["chosen_thresholds"] != by_count
    assert run(*words, "--threshold", "often") == 2
    assert "f1, f0.5" in capsys.readouterr().err


def test_every_number_has_an_interval_and_a_comparison(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", place / "poor.json", truth_file(place), "--compare", "boxes", "--rules", "voc2010", "--agnostic")
    assert run(*words, "--json", "--resamples", "60", "--against", place / "good.json", "--out", tmp_path) == 0
    content = document(capsys)
    for part in ("intervals", "differences"):
        rows = {(row["class"], row["number"]): row for row in content[part]}
        assert {("", "VOC mAP"), ("red", "VOC AP"), ("", "anything AP"), ("", "level 1 AP50"), ("", "hierarchical F1")} <= set(
            rows
        )
    sure = {(row["class"], row["number"]): row for row in content["intervals"]}
    assert sure["", "VOC mAP"]["value"] == pytest.approx(content["voc"]["map"])
    assert sure["", "VOC mAP"]["low"] < content["voc"]["map"] < sure["", "VOC mAP"]["high"]
    anything = content["hierarchy"]["levels"][-1]
    assert sure["", "anything AP50"]["value"] == pytest.approx(anything["ap50"])
    rows = {(row["class"], row["number"]): row for row in content["differences"]}
    for key, value in (
        (("", "ECE"), content["calibration"]["confidence"]["ece"]),
        (("", "overconfidence"), content["calibration"]["confidence"]["overconfidence"]),
        (("", "D-ECE"), content["calibration"]["d_ece"]),
        (("", "D-ECE, place and size"), content["calibration"]["d_ece_position"]),
        (("", "AP50 lost, false negative"), content["errors"]["gain"]["false negative"]),
        (("red", "AP50 lost, false negative"), content["errors"]["class_gain"]["false negative"][0]),
    ):
        assert sure[key]["value"] == pytest.approx(value, abs=1e-12), key
        assert sure[key]["low"] < sure[key]["high"], key
        assert rows[key]["first"] == pytest.approx(value, abs=1e-12), key
    assert run("evaluate", place / "good.json", *words[2:], "--json") == 0
    other = document(capsys)
    assert rows["", "VOC mAP"]["second"] == pytest.approx(other["voc"]["map"])
    assert rows["", "hierarchical recall"]["second"] == pytest.approx(other["hierarchy"]["recall"])
    page = (tmp_path / "report.html").read_text()
    assert "By the rules of Pascal VOC 2010" in page


def test_angles_have_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.png", "width": 400, "height": 400} for i in range(6)]
    truth, found = [], []
    for i in range(6):
        for x in (60, 200, 340):
            box = [x, 200, 80, 20, 0.3]
            ring = [float(value) for value in to_corners(np.array([box]))[0].ravel()]
            common = {"image_id": i, "category_id": 1}
            truth.append({**common, "id": len(truth) + 1, "bbox": [x - 40, 150, 80, 100], "segmentation": [ring], "area": 1600})
            found.append({**common, "bbox": [*box[:4], 0.3 + rng.normal(0, 0.05)], "score": float(rng.uniform(0.5, 1))})
    content = {"images": images, "categories": [{"id": 1, "name": "diatom"}], "annotations": truth}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(found))
    words = ("evaluate", tmp_path / "found.json", tmp_path / "truth.json", "--task", "oriented", "--rules", "dota", "--json")
    assert run(*words, "--resamples", "50") == 0
    content = document(capsys)
    rows = {(row["class"], row["number"]): row for row in content["intervals"]}
    row = rows["", "angle error, median"]
    assert row["value"] == pytest.approx(content["angles"]["degrees"]["all"]["median"])
    assert 0 < row["low"] < row["high"] < 10
    assert rows["diatom", "angle error, 90 %"]["high"] > row["value"]
    assert rows["", "DOTA mAP"]["value"] == pytest.approx(content["voc"]["map"])


def test_a_tree_of_classes(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tree.json").write_text(json.dumps({"red": "warm", "orange": "warm", "warm": "colour", "blue": "colour"}))
    words = ("evaluate", place / "poor.json", truth_file(place), "--compare", "boxes", "--json")
    assert run(*words, "--taxonomy", tmp_path / "tree.json") == 0
    levels = document(capsys)["hierarchy"]["levels"]
    assert [len(level["names"]) for level in levels] == [3, 2, 1, 1]
    (tmp_path / "tree.json").write_text(json.dumps({"red": 3}))
    assert run(*words, "--taxonomy", tmp_path / "tree.json") == 1
    assert "name: parent" in capsys.readouterr().err


def test_masks_are_compared_where_both_hold_them(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = json.loads(truth_file(place).read_text())
    rows = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "segmentation": a["segmentation"],
            "score": 0.5 + a["id"] / 1000,
        }
        for a in truth["annotations"]
    ]
    (tmp_path / "masks.json").write_text(json.dumps(rows))
    assert run("evaluate", tmp_path / "masks.json", truth_file(place), "--json") == 0
    content = document(capsys)
    assert content["kind"] == "masks"
    assert content["ap"] == pytest.approx(1.0)


def test_a_report_draws_masks(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = json.loads(truth_file(place).read_text())
    rows = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "segmentation": [[2, 3, 20, 3, 20, 9, 2, 9]],  # a polygon: no run lengths over the whole image
            "score": 0.9,
        }
        for a in truth["annotations"]
    ]
    (tmp_path / "masks.json").write_text(json.dumps(rows))
    code = run("evaluate", tmp_path / "masks.json", truth_file(place), "--compare", "masks", "--out", tmp_path / "out")
    assert code == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").is_file()
    assert list((tmp_path / "out" / "worst").iterdir())


def test_the_rules_of_voc_honour_regions_to_ignore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 90, "height": 90}],
        "categories": [{"id": 1, "name": "fish"}, {"id": 2, "name": "DontCare"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [40, 40, 40, 40], "area": 1600, "iscrowd": 0},
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    rows = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": score}
        for box, score in (([5, 5, 20, 20], 0.5), ([45, 45, 20, 20], 0.9))
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    assert run("evaluate", tmp_path / "found.json", tmp_path / "truth.json", "--rules", "voc2010", "--json") == 0
    content = document(capsys)
    assert content["voc"]["map"] == pytest.approx(1.0)
    assert content["ap"] == pytest.approx(1.0)


def test_what_cannot_be_compared_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = panoptic(tmp_path, "found", 2)
    assert run("evaluate", found, found, "--against", place / "good.json") == 1
    assert "a JSON object with `annotations`" in capsys.readouterr().err
    assert run("evaluate", found, found, "--rules", "dota") == 1
    assert "--rules" in capsys.readouterr().err
    assert run("evaluate", found, found, "--split", "val") == 1
    assert "no splits" in capsys.readouterr().err
    model = write_tiny(tmp_path / "m.onnx", tiny_card(categories=tuple(CLASSES[:2])))
    assert run("evaluate", model, truth_file(place), "--compare", "masks") == 1
    assert "cannot be compared as masks" in capsys.readouterr().err
    assert run("evaluate", place / "good.json", truth_file(place), "--compare", "boxes", "--against", tmp_path / "none.json") == 1
    assert "does not exist" in capsys.readouterr().err


def test_degenerate_truth_counts_as_missed(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(truth_file(place).read_text())
    for entry in content["annotations"]:
        entry.pop("segmentation")
    first = content["annotations"][0]
    content["annotations"].append({**first, "id": 999, "bbox": [5, 5, 0, 9], "area": 0})
    (tmp_path / "truth.json").write_text(json.dumps(content))
    assert run("evaluate", place / "good.json", tmp_path / "truth.json", "--json") == 0
    assert document(capsys)["truths"] == len(content["annotations"])


def test_a_prediction_far_outside_its_image_is_one_that_is_wrong(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((place / "good.json").read_text())
    rows.append({**rows[0], "bbox": [-9000.0, 20, 30, 30000], "score": 0.9})
    (tmp_path / "far.json").write_text(json.dumps(rows))
    assert run("evaluate", tmp_path / "far.json", truth_file(place), "--compare", "boxes", "--json") == 0
    content = document(capsys)
    assert content["predictions"] == len(rows)
    assert content["calibration"]["kept_position"] is not None
