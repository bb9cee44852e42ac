"""Label images, instance and semantic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from datasets import codes, draw, real
from pelagia.core import masks as core_masks
from pelagia.data.augment import AugmentOptions, augment
from pelagia.data.doctor import examine
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


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("most", [255, 65535])
def test_binary_masks_take_the_names_given(tmp_path: Path, suffix: str, most: int) -> None:
    pixels = np.zeros((30, 40), dtype=np.uint8 if most == 255 else np.uint16)
    pixels[5:10] = most
    dataset = open_dataset(data(tmp_path, pixels, "label", suffix=suffix), classes=["membrane", "cell"])
    assert dataset.class_names == ("membrane", "cell")
    np.testing.assert_array_equal(dataset.semantic(0).labels, pixels == most)
    assert dataset.class_frequencies.tolist() == [25 / 30, 5 / 30]


@pytest.mark.parametrize(
    ("kind", "most", "objects"), [("masks", 255, 2), ("instances", 255, 1), ("masks", 254, 1), ("semantic", 1, 2)]
)
def test_masks_that_number_no_objects_give_their_components(tmp_path: Path, kind: str, most: int, objects: int) -> None:
    """Two cells that carry one value: numbers say that they are one object, classes that they are two."""
    pixels = np.zeros((8, 10), dtype=np.uint8)
    pixels[1:3, 1:4] = pixels[5:7, 6:9] = most
    counted = open_dataset(data(tmp_path, pixels, kind), task="instance")
    assert counted.task == "instance"
    assert len(counted.annotations) == objects
    assert len(open_dataset(tmp_path, task="detect").annotations) == objects


def test_255_is_ignored_beside_any_other_value(tmp_path: Path) -> None:
    pixels = np.zeros((30, 40), dtype=np.uint8)
    pixels[5:10], pixels[20] = 255, 1
    dataset = open_dataset(data(tmp_path, pixels, "label"))
    assert len(dataset.categories) == 2
    np.testing.assert_array_equal(dataset.semantic(0).labels, pixels)
    assert codes(dataset) == []


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_grey_and_deep_images_with_class_maps(tmp_path: Path, kind: str) -> None:
    pixels = np.zeros((30, 40), dtype=np.uint8)
    pixels[5:10] = 255
    path = data(tmp_path, pixels, "label")
    grey = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (30, 40)).astype(kind)
    Image.fromarray(grey).save(path / "images" / "a.png")
    dataset = open_dataset(path)
    np.testing.assert_array_equal(dataset.image(0)[..., 0], grey)
    options = AugmentOptions(mosaic=0.5, rotate_deg=20, elastic_px=3.0, crop=0.5, rare=0.5, noise=1.0, blur=1.0)
    for seed in range(4):
        sample = augment(dataset, 0, np.random.default_rng(seed), options, (32, 48))
        assert (sample.image.shape, sample.image.dtype) == ((32, 48, 3), np.dtype(kind))
        assert sample.semantic is not None
        assert set(np.unique(sample.semantic.labels).tolist()) <= {0, 1, 255}


@pytest.mark.slow
def test_real_membranes_open_without_help() -> None:
    dataset = open_dataset(real("em-membranes"), classes=["membrane", "cell"])
    assert (dataset.task, len(dataset), dataset.class_names) == ("semantic", 24, ("membrane", "cell"))
    np.testing.assert_allclose(dataset.class_frequencies, [0.225, 0.775], atol=0.001)
    assert not examine(dataset).has_errors


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
