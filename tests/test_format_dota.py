"""DOTA text labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets import codes, draw
from pelagia.core import oriented as core_oriented
from pelagia.data.formats.dota import sniff
from pelagia.data.open import open_dataset
from pelagia.errors import FormatError

BOX = np.array([[40.0, 30.0, 24.0, 10.0, 0.35]])
CORNERS = " ".join(f"{value:.10g}" for value in core_oriented.to_corners(BOX).reshape(-1))


def data(folder: Path, *rows: str, stem: str = "P0001") -> Path:
    draw(folder / "images" / f"{stem}.png", 80, 60)
    path = folder / "labelTxt" / f"{stem}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows))
    return folder


def test_rows_with_header_and_difficulty(tmp_path: Path) -> None:
    path = data(tmp_path, "imagesource:GoogleEarth", "gsd:0.146", f"{CORNERS} ship 0", f"{CORNERS} plane 2", f"{CORNERS} ship")
    dataset = open_dataset(path)
    assert dataset.format == "dota"
    assert dataset.task == "oriented"
    assert dataset.class_names == ("plane", "ship")
    truth = dataset.truth(0)
    assert truth.labels.tolist() == [1, 0, 1]
    assert truth.difficult.tolist() == [False, True, False]
    np.testing.assert_allclose(truth.oriented, np.repeat(BOX, 3, axis=0), atol=1e-8)


def test_text_as_difficulty_and_spaces_in_a_name(tmp_path: Path) -> None:
    dataset = open_dataset(data(tmp_path, f"{CORNERS} plane tr", f"{CORNERS} small vehicle 1"))
    assert dataset.class_names == ("plane", "small vehicle")
    assert [f.where for f in dataset.findings if f.code == "dota.difficulty"] == [f"{tmp_path / 'labelTxt' / 'P0001.txt'}:1"]


def test_split_folders_and_background(tmp_path: Path) -> None:
    data(tmp_path / "train", f"{CORNERS} ship 0")
    data(tmp_path / "val", "imagesource:x")
    draw(tmp_path / "val" / "images" / "P0009.png", 80, 60)
    dataset = open_dataset(tmp_path)
    assert dataset.names == ("train/P0001.png", "val/P0001.png", "val/P0009.png")
    assert {name: rows.tolist() for name, rows in dataset.splits.items()} == {"train": [0], "val": [1, 2]}
    assert codes(dataset) == ["image.unlabelled"]


@pytest.mark.parametrize(
    ("row", "message"),
    [("1 2 3 4 5 6 7 ship 0", "must be numbers"), ("1 2 3 ship", "got 4 words"), (f"{CORNERS}", "got 8 words")],
)
def test_malformed_row_is_refused_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        open_dataset(data(tmp_path, f"{CORNERS} ship 0", row))
    assert "P0001.txt:2" in str(caught.value)


def test_box_without_extent_is_a_finding(tmp_path: Path) -> None:
    dataset = open_dataset(data(tmp_path, f"{CORNERS} ship 0", "5 5 5 5 5 5 5 5 ship 0"))
    assert len(dataset.annotations) == 1
    assert codes(dataset) == ["box.degenerate"]


def test_sniff(tmp_path: Path) -> None:
    assert sniff(data(tmp_path / "a", f"{CORNERS} ship 0")) > 0.9
    yolo = tmp_path / "b" / "labels" / "x.txt"
    yolo.parent.mkdir(parents=True)
    yolo.write_text("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n")
    assert sniff(tmp_path / "b") == 0
    with pytest.raises(FormatError, match="labelTxt"):
        open_dataset(tmp_path / "b" / "labels", format="dota")
