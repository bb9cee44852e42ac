"""A run of training, predictions and maps are told apart by what lies in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pelagia.infer.sources import is_model, is_predictions, map_kind

FOLDERS = {
    "run": (("best.safetensors", "log.txt", "batch.png"), False, None),
    "stopped run": (("config.json", "log.txt"), False, None),
    "yolo": (("a.txt", "b.txt", "a.png"), True, None),
    "yolo labels": (("labels/a.txt",), True, None),
    "dota": (("Task1_ship.txt",), True, None),
    "label images": (("a.png", "b.tif"), False, "label-images"),
    "nothing": ((), False, None),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(tmp_path: Path, name: str) -> None:
    files, predictions, maps = FOLDERS[name]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert is_predictions(tmp_path) is predictions
    assert map_kind(tmp_path, "auto") == maps
    run = "run" in name  # a model, whatever it is to be compared as
    assert is_model(tmp_path) is run
    assert map_kind(tmp_path, "semantic") == (None if run else "semantic")


def test_files(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"annotations": [{"segments_info": []}]}')
    (tmp_path / "r.json").write_text("[]")
    assert is_predictions(tmp_path / "r.json")
    assert not is_predictions(tmp_path / "model.onnx")
    assert map_kind(tmp_path / "p.json", "auto") == "panoptic"
    assert map_kind(tmp_path / "r.json", "auto") is None
