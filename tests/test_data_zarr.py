"""Labelled images in OME-Zarr: the readers find the folders, and do not search them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from colours import noise_picture
from pelagia.core.image import write
from pelagia.data.convert import convert
from pelagia.data.formats.common import image_files
from pelagia.data.open import open_dataset
from pelagia.errors import FormatError
from test_ome_zarr import write_ome

PIXELS = noise_picture(80, 60).transpose(2, 0, 1)


def scan(path: Path) -> Path:
    return write_ome(path, PIXELS, "cyx", (1, 32, 32), "0.5")


def test_a_zarr_is_one_image_and_not_searched(tmp_path: Path) -> None:
    inside = scan(tmp_path / "deep" / "a.ome.zarr")
    write(inside / "thumbnail.png", noise_picture(4, 4))
    scan(tmp_path / "b")  # told by what is in it
    write(tmp_path / "c.png", noise_picture(4, 4))
    scan(tmp_path / ".hidden.zarr")
    assert image_files(tmp_path) == [tmp_path / "b", tmp_path / "c.png", inside]


@pytest.mark.parametrize("folder", ["", "images"])
@pytest.mark.parametrize("name", ["a.ome.zarr", "survey/a.ome.zarr"])
def test_coco_names_a_zarr(tmp_path: Path, folder: str, name: str) -> None:
    scan(tmp_path / folder / "a.ome.zarr")  # found by its last part, where the name has folders
    image = {"id": 1, "file_name": name, "width": 80, "height": 60}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    dataset = open_dataset(tmp_path / "labels.json")
    assert len(dataset) == 1
    np.testing.assert_array_equal(dataset.image(0), PIXELS.transpose(1, 2, 0))
    assert not [finding for finding in dataset.findings if finding.severity == "error"]
    convert(dataset, tmp_path / "out", "coco")
    (copied,) = image_files(tmp_path / "out")
    again = open_dataset(next((tmp_path / "out").rglob("*.json")))
    assert again.image_paths == [copied] or list(again.image_paths) == [copied]
    np.testing.assert_array_equal(again.image(0), dataset.image(0))


def test_yolo_and_label_images_stand_beside_a_zarr(tmp_path: Path) -> None:
    scan(tmp_path / "yolo" / "images" / "a.zarr")
    (tmp_path / "yolo" / "labels").mkdir()
    (tmp_path / "yolo" / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (tmp_path / "yolo" / "data.yaml").write_text("train: images\nnames: [cell]\n")
    dataset = open_dataset(tmp_path / "yolo" / "data.yaml")
    np.testing.assert_allclose(dataset.truth(0).box_array, [[30, 22.5, 50, 37.5]])
    scan(tmp_path / "maps" / "images" / "a.zarr")
    labels = np.zeros((60, 80), np.uint8)
    labels[10:20, 30:50] = 1
    stored = zarr.create_array(tmp_path / "maps" / "masks" / "a.zarr", shape=labels.shape, dtype=labels.dtype, chunks=(32, 32))
    stored[...] = labels
    (tmp_path / "maps" / "x.yaml").write_text("train: {images: images, masks: masks}\nclasses: {0: water, 1: cell}\n")
    dataset = open_dataset(tmp_path / "maps" / "x.yaml")
    np.testing.assert_array_equal(dataset.semantic(0).labels, labels)
    before = dataset.content_hash
    stored[0, 0] = 1
    assert open_dataset(tmp_path / "maps" / "x.yaml").content_hash != before


def test_a_folder_that_is_no_zarr_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    image = {"id": 1, "file_name": "a.zarr"}
    (tmp_path / "labels.json").write_text(
        json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cell"}]})
    )
    with pytest.raises(FormatError, match="image"):
        open_dataset(tmp_path / "labels.json")
