"""`pelagia evaluate` on maps: label images, class maps and panoptic maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluating import document, panoptic, run


def test_label_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "masks", "found"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        labels = np.zeros((40, 40), dtype=np.uint16)
        for value in range(1, 5):
            x, y = rng.integers(0, 32, 2)
            labels[y : y + 8, x : x + 8] = value
        Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(labels).save(tmp_path / "masks" / f"{index}.png")
        Image.fromarray(np.roll(labels, 1, axis=1) if index else labels).save(tmp_path / "found" / f"{index}.png")
    truth = tmp_path / "data"
    truth.mkdir()
    for folder in ("images", "masks"):
        (tmp_path / folder).rename(truth / folder)
    assert run("evaluate", tmp_path / "found", truth, "--json", "--resamples", "20", "--out", tmp_path / "out") == 0
    content = document(capsys)
    assert content["images"] == 4
    assert 0.5 < content["pooled"]["f1"][0] <= 1
    assert {row["number"] for row in content["intervals"]} >= {"mean accuracy"}
    assert (tmp_path / "out" / "report.html").is_file()
    assert run("evaluate", tmp_path / "found", truth) == 0
    assert "label images" in capsys.readouterr().out
    words = ("evaluate", tmp_path / "found", truth, "--against", truth / "masks", "--out", tmp_path / "two")
    assert run(*words) == 0
    assert "comparison" in capsys.readouterr().out
    content = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    rows = {(row["class"], row["number"]): row for row in content["differences"]}
    assert rows["", "F1@0.5"]["second"] == rows["IoU 0.95", "F1"]["second"] == 1
    assert rows["IoU 0.95", "F1"]["first"] == pytest.approx(content["pooled"]["f1"][-1])
    assert rows["IoU 0.95", "F1"]["value"] > 0.5
    assert "F1 by threshold" in (tmp_path / "two" / "report.html").read_text()
    assert run("evaluate", tmp_path / "found", truth, "--task", "semantic") == 1
    assert "--task instance" in capsys.readouterr().err


def test_semantic_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for folder in ("data/images", "data/semantic", "found"):
        (tmp_path / folder).mkdir(parents=True)
    for index in range(3):
        labels = (rng.random((6, 6)) < 0.5).astype(np.uint8).repeat(6, axis=0).repeat(6, axis=1)
        wrong = labels.copy()
        wrong[:3] = 1 - wrong[:3]
        Image.fromarray(np.zeros((36, 36), dtype=np.uint8)).save(tmp_path / "data" / "images" / f"{index}.png")
        Image.fromarray(labels).save(tmp_path / "data" / "semantic" / f"{index}.png")
        Image.fromarray(wrong).save(tmp_path / "found" / f"{index}.png")
    words = ("evaluate", tmp_path / "found", tmp_path / "data", "--task", "semantic", "--compare", "semantic")
    assert run(*words, "--json", "--resamples", "20", "--out", tmp_path / "out") == 0
    content = document(capsys)
    assert content["pixel_accuracy"] == pytest.approx(33 / 36)
    assert any(row["number"] == "mIoU" for row in content["intervals"])
    assert run(*words, "--json", "--against", tmp_path / "data" / "semantic", "--resamples", "200") == 0
    rows = {(row["class"], row["number"]): row for row in document(capsys)["differences"]}
    row = rows["", "pixel accuracy"]
    assert (row["first"], row["second"]) == pytest.approx((33 / 36, 1))
    assert row["low"] > 0
    names = [item["name"] for item in content["classes"]]
    assert {(name, number) for name in names for number in ("IoU", "Dice", "boundary F")} <= rows.keys()
    assert {"report.html", "confusion.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_panoptic_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = panoptic(tmp_path, "truth", 0), panoptic(tmp_path, "found", 2)
    assert run("evaluate", found, truth, "--resamples", "20", "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "PQ" in text
    assert "interval" in text
    assert (tmp_path / "out" / "report.html").is_file()
    assert run("evaluate", found, truth, "--against", truth, "--json", "--resamples", "50") == 0
    rows = {(row["class"], row["number"]): row for row in document(capsys)["differences"]}
    assert rows["", "PQ"]["second"] == rows["fish", "PQ"]["second"] == 1
    assert rows["fish", "SQ"]["value"] > 0.1
    assert rows["water", "PQ"]["value"] == 0
    assert run("evaluate", truth, truth, "--json") == 0
    assert "1.0" in capsys.readouterr().out
