"""Label images, instance and semantic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from datasets import codes, draw
from pelagia.core import masks as core_masks
from pelagia.data.formats.label_images import sniff
from pelagia.data.open import open_dataset
from pelagia.errors import FormatError, ImageError, OptionError


def data(folder: Path, pixels: NDArray[Any], kind: str = "instances", *, stem: str = "a", suffix: str = ".png") -> Path:
    draw(folder / "images" / f"{stem}.png", pixels.shape[1], pixels.shape[0])
    path = folder / kind / f"{stem}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels)
    return folder


def instances() -> NDArray[np.uint16]:
    pixels = np.zeros((30, 40), dtype=np.uint16)
    pixels[2:8, 3:9] = 1
    pixels[20:25, 30:40] = 700  # numbers may have gaps
    pixels[4, 5] = 0  # a hole
    return pixels


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_instances(tmp_path: Path, suffix: str) -> None:
    dataset = open_dataset(data(tmp_path, instances(), suffix=suffix))
    assert dataset.task == "instance"
    assert dataset.class_names == ("object",)
    truth = dataset.truth(0, masks=True)
    np.testing.assert_array_equal(truth.box_array, [[3, 2, 9, 8], [30, 20, 40, 25]])
    assert truth.areas is not None
    np.testing.assert_array_equal(truth.areas, [35, 50])
    assert dataset.annotations.ids.tolist() == [1, 700]
    assert truth.masks is not None
    np.testing.assert_array_equal(core_masks.paste(truth.masks[0], 30, 40), instances() == 1)


def test_lists_name_the_splits(tmp_path: Path) -> None:
    for stem in "ab":
        data(tmp_path, instances(), stem=stem)
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "val.txt").write_text("b.png\n")
    dataset = open_dataset(tmp_path, classes=["nucleus"])
    assert {name: rows.tolist() for name, rows in dataset.splits.items()} == {"train": [0], "val": [1]}
    assert dataset.class_names == ("nucleus",)


def test_semantic_with_ignored_pixels(tmp_path: Path) -> None:
    pixels = np.zeros((30, 40), dtype=np.uint8)
    pixels[5:10] = 2
    pixels[0] = 255
    dataset = open_dataset(data(tmp_path, pixels, "masks"), classes=["water", "living", "detritus"])
    assert dataset.task == "semantic"
    assert dataset.class_names == ("water", "living", "detritus")
    np.testing.assert_array_equal(dataset.semantic(0).labels, pixels)
    sample = dataset[0]
    assert sample.semantic is not None
    assert len(sample.truth) == 0


def test_binary_masks(tmp_path: Path) -> None:
    pixels = np.zeros((30, 40), dtype=np.uint8)
    pixels[5:10] = 255
    dataset = open_dataset(data(tmp_path, pixels, "label"))
    assert "mask.binary" in codes(dataset)
    np.testing.assert_array_equal(dataset.semantic(0).labels, pixels // 255)


def test_yaml_with_value_gaps(tmp_path: Path) -> None:
    pixels = np.full((30, 40), 90, dtype=np.uint8)
    pixels[:3] = 4
    data(tmp_path, pixels, "masks")
    (tmp_path / "x.yaml").write_text("train: {images: images, masks: masks}\nclasses: {4: sky, 7: sea, 90: sand}\n")
    dataset = open_dataset(tmp_path / "x.yaml")
    assert [(c.id, c.name) for c in dataset.categories] == [(4, "sky"), (7, "sea"), (90, "sand")]
    assert np.unique(dataset.semantic(0).labels).tolist() == [0, 2]


def test_value_without_class(tmp_path: Path) -> None:
    path = data(tmp_path, np.full((30, 40), 9, dtype=np.uint8), "masks")
    with pytest.raises(FormatError, match=r"\[9\]"):
        open_dataset(path, classes=["a", "b"])


def test_size_must_agree(tmp_path: Path) -> None:
    path = data(tmp_path, instances())
    draw(path / "images" / "a.png", 50, 30)
    with pytest.raises(FormatError, match=r"a\.png: .*40 x 30 pixels, its image 50 x 30"):
        open_dataset(path)


def test_unlabelled_images_are_told(tmp_path: Path) -> None:
    path = data(tmp_path, instances())
    draw(path / "images" / "b.png", 9, 9)
    dataset = open_dataset(path)
    assert len(dataset) == 1
    assert codes(dataset) == ["image.unlabelled"]


def test_nothing_matches(tmp_path: Path) -> None:
    path = data(tmp_path, instances())
    (path / "images" / "a.png").rename(path / "images" / "z.png")
    with pytest.raises(FormatError, match="same name"):
        open_dataset(path)
    with pytest.raises(OptionError, match="semantic"):
        open_dataset(path, task="keypoints")


def test_broken_label_image(tmp_path: Path) -> None:
    path = data(tmp_path, instances())
    (path / "instances" / "a.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ImageError, match=r"a\.png"):
        open_dataset(path)


def test_negative_and_float_labels(tmp_path: Path) -> None:
    path = data(tmp_path, np.full((30, 40), 0.5, dtype=np.float32), suffix=".tif")
    with pytest.raises(ImageError, match="float32"):
        open_dataset(path)
    data(tmp_path, instances().astype(np.int32), suffix=".tif")
    assert len(open_dataset(path).annotations) == 2


def test_sniff(tmp_path: Path) -> None:
    assert sniff(data(tmp_path, instances())) > 0.5
    assert sniff(tmp_path / "images") == 0
