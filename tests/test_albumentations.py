"""The Albumentations adapter against our own geometry, for the same moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pelagia.core import masks as mask_crops
from pelagia.core.image import warp
from pelagia.core.types import Category, Float, Instances, MaskCrop, SemanticMap
from pelagia.data.albumentations import from_albumentations
from pelagia.data.geometry import Keep, follow
from pelagia.data.sample import Sample
from pelagia.errors import OptionError

library = pytest.importorskip("albumentations")

WIDTH, HEIGHT = 80, 60
FISH = (Category(1, "fish", keypoints=("left", "right"), flip=(1, 0)), Category(2, "crab"))
MOVES = [
    (library.HorizontalFlip(p=1.0), np.array([[-1.0, 0.0, WIDTH], [0.0, 1.0, 0.0]]), (WIDTH, HEIGHT)),
    (library.VerticalFlip(p=1.0), np.array([[1.0, 0.0, 0.0], [0.0, -1.0, HEIGHT]]), (WIDTH, HEIGHT)),
    (library.Transpose(p=1.0), np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), (HEIGHT, WIDTH)),
    (library.Crop(10, 5, 50, 45, p=1.0), np.array([[1.0, 0.0, -10.0], [0.0, 1.0, -5.0]]), (40, 40)),
]


def _sample(*, oriented: bool = False, masks: bool = True) -> Sample:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    boxes = np.array([[12.0, 8.0, 30.0, 20.0], [34.0, 20.0, 44.0, 40.0], [60.0, 50.0, 78.0, 58.0]])
    crops = tuple(MaskCrop(int(x1), int(y1), np.ones((int(y2 - y1), int(x2 - x1)), bool)) for x1, y1, x2, y2 in boxes)
    points = np.stack(
        [np.column_stack([boxes[:, :2] + 1, np.full(3, 2.0)]), np.column_stack([boxes[:, 2:] - 2, np.ones(3)])], axis=1
    )
    turned = np.array([[21.0, 14.0, 18.0, 6.0, 0.4], [39.0, 30.0, 20.0, 10.0, 1.2], [69.0, 54.0, 12.0, 4.0, -0.3]])
    truth = Instances(
        np.array([0, 1, 0]),
        boxes,
        oriented=turned if oriented else None,
        masks=crops if masks else None,
        keypoints=points,
        difficult=np.array([False, True, False]),
    )
    return Sample(image, truth, "a.png", 0)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("oriented", [False, True])
@pytest.mark.parametrize("move", MOVES, ids=["left-right", "up-down", "transpose", "crop"])
def test_truth_follows_as_in_our_own_geometry(move: tuple[object, Float, tuple[int, int]], oriented: bool, masks: bool) -> None:
    transform, matrix, size = move
    sample = _sample(oriented=oriented, masks=masks and not oriented)
    found = from_albumentations(transform, FISH)(sample, np.random.default_rng(0))
    expected = follow(sample.truth, matrix, (WIDTH, HEIGHT), (0, 0, *size), Keep(), FISH)
    assert found.image.shape == (size[1], size[0], 3)
    assert found.truth.labels.tolist() == expected.labels.tolist()
    assert found.truth.difficult.tolist() == expected.difficult.tolist()
    assert found.truth.keypoints is not None
    np.testing.assert_allclose(found.truth.keypoints, expected.keypoints, atol=1e-4)
    if oriented:
        np.testing.assert_allclose(found.truth.oriented, expected.oriented, atol=1e-4)
    else:
        np.testing.assert_allclose(found.truth.box_array, expected.box_array, atol=1e-4)
    for a, b in zip(found.truth.masks or (), expected.masks or (), strict=True):
        np.testing.assert_array_equal(mask_crops.paste(a, size[1], size[0]), mask_crops.paste(b, size[1], size[0]))


def test_a_class_map_follows_and_uncovered_pixels_are_ignored() -> None:
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[:, 40:], labels[20:30, 20:60], labels[0:3] = 1, 254, 255
    sample = replace(_sample(masks=False), semantic=SemanticMap(labels))
    for transform, matrix, size in MOVES:
        found = from_albumentations(transform, FISH)(sample, np.random.default_rng(0))
        assert found.semantic is not None
        expected = warp(labels, matrix, size, fill=255, interpolation="nearest")
        np.testing.assert_array_equal(found.semantic.labels, expected)
    turned = from_albumentations(library.Affine(rotate=(30, 30), p=1.0), FISH)(sample, np.random.default_rng(0))
    assert turned.semantic is not None
    assert (turned.semantic.labels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()


def test_pipelines_are_repeatable_and_boxes_are_tight_on_masks() -> None:
    pipeline = library.Compose([library.Affine(rotate=(-40, 40), p=1.0), library.RandomBrightnessContrast(p=0.5)])
    apply = from_albumentations(pipeline, FISH)
    first, second = (apply(_sample(), np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    other = apply(_sample(), np.random.default_rng(6))
    assert not np.array_equal(first.image, other.image)
    assert len(first.truth) > 0
    assert first.truth.masks is not None
    for crop, bounds in zip(first.truth.masks, first.truth.box_array, strict=True):
        np.testing.assert_allclose(mask_crops.bounds(crop), bounds)


def test_an_image_without_objects_stays_without() -> None:
    sample = Sample(np.zeros((HEIGHT, WIDTH, 1), np.uint8), Instances.empty(), "b.png", 3)
    found = from_albumentations([library.HorizontalFlip(p=1.0)])(sample, np.random.default_rng(0))
    assert len(found.truth) == 0
    assert found.image.shape == (HEIGHT, WIDTH, 1)
    assert (found.name, found.index) == ("b.png", 3)


def test_transforms_that_remove_points_are_refused() -> None:
    class Forgetful(library.HorizontalFlip):  # type: ignore[misc]
        def apply_to_keypoints(self, keypoints: Float, *args: object, **params: object) -> Float:
            return keypoints[:1]

    with pytest.raises(OptionError, match="removes points"):
        from_albumentations(Forgetful(p=1.0))(_sample(), np.random.default_rng(0))
