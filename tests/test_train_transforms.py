"""torchvision v2 transforms in the place of the augmentation: there and back, and through a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from pelagia.core import masks as core_masks
from pelagia.core.types import Category, Instances, SemanticMap
from pelagia.data.sample import Sample
from pelagia.errors import DataError
from pelagia.train.data import Loader, Maker, Plan
from pelagia.train.loop import train
from pelagia.train.transforms import TorchvisionTransform, from_tv, to_tv
from training import draw, options

HEIGHT, WIDTH = 40, 60
CATEGORIES = (Category(1, "a", keypoints=("left", "right"), flip=(1, 0)),)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sample(dtype: type[np.generic] = np.uint8, *, oriented: bool = False, channels: int = 3) -> Sample:
    """Two filled rectangles with boxes, masks and two keypoints each."""
    image: NDArray[Any] = np.full((HEIGHT, WIDTH, channels), 40, dtype=dtype)
    boxes = np.array([[5.0, 6.0, 20.0, 16.0], [30.0, 20.0, 50.0, 34.0]])
    crops = []
    for x1, y1, x2, y2 in boxes.astype(int):
        image[y1:y2, x1:x2] = 200
        bitmap = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
        bitmap[y1:y2, x1:x2] = True
        crops.append(core_masks.crop_from_bitmap(bitmap))
    points = np.array([[[5.0, 10.0, 2.0], [20.0, 10.0, 2.0]], [[30.0, 30.0, 2.0], [50.0, 30.0, 1.0]]])
    turned = np.array([[12.5, 11.0, 15.0, 10.0, 0.0], [40.0, 27.0, 20.0, 14.0, 0.3]]) if oriented else None
    truth = Instances(
        np.array([0, 0]),
        boxes=boxes,
        oriented=turned,
        masks=None if oriented else tuple(crops),
        keypoints=points,
        crowd=np.array([False, True]),
    )
    return Sample(image, truth, "x.png", 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("oriented", [False, True])
def test_there_and_back_changes_nothing(dtype: type[np.generic], oriented: bool) -> None:
    before = sample(dtype, oriented=oriented)
    after = from_tv(to_tv(before), before)
    assert after.image.dtype == dtype
    assert np.array_equal(after.image, before.image)
    for name in ("labels", "boxes", "oriented", "keypoints", "crowd", "difficult", "ignore"):
        old, new = getattr(before.truth, name), getattr(after.truth, name)
        if name == "boxes" and oriented:
            continue  # the bounds of the oriented boxes, which the sample states otherwise
        assert (old is None) == (new is None), name
        if old is not None:
            np.testing.assert_allclose(new, old, atol=1e-5, err_msg=name)
    if not oriented:
        assert before.truth.masks is not None
        assert after.truth.masks is not None
        for a, b in zip(before.truth.masks, after.truth.masks, strict=True):
            assert np.array_equal(core_masks.paste(a, HEIGHT, WIDTH), core_masks.paste(b, HEIGHT, WIDTH))


def test_grey_becomes_three_channels() -> None:
    before = sample(channels=1)
    after = from_tv(to_tv(before), before)
    assert after.image.shape == (HEIGHT, WIDTH, 3)


def test_mirrored_boxes_masks_and_keypoints_agree_and_partners_change_places() -> None:
    found = TorchvisionTransform(v2.RandomHorizontalFlip(1.0), CATEGORIES)(sample(), rng())
    truth = found.truth
    assert truth.boxes is not None
    assert truth.masks is not None
    assert truth.keypoints is not None
    np.testing.assert_allclose(truth.boxes, [[40, 6, 55, 16], [10, 20, 30, 34]])
    np.testing.assert_allclose([core_masks.bounds(crop) for crop in truth.masks], truth.boxes)
    assert (found.image[8, 42] == 200).all()
    # `left` was at x = 5, the mirror puts it to 55, where the name of the point is `right`.
    np.testing.assert_allclose(truth.keypoints[0], [[40, 10, 2], [55, 10, 2]])
    np.testing.assert_allclose(truth.keypoints[1], [[10, 30, 1], [30, 30, 2]])
    without = TorchvisionTransform(v2.RandomHorizontalFlip(1.0))(sample(), rng()).truth.keypoints
    assert without is not None
    np.testing.assert_allclose(without[0], [[55, 10, 2], [40, 10, 2]])


def test_oriented_boxes_turn_with_the_image() -> None:
    found = TorchvisionTransform(v2.RandomHorizontalFlip(1.0))(sample(oriented=True), rng()).truth.oriented
    assert found is not None
    np.testing.assert_allclose(found, [[47.5, 11, 15, 10, 0], [20, 27, 20, 14, -0.3]], atol=1e-5)
    angle = TorchvisionTransform(v2.RandomRotation((10, 10)))(sample(oriented=True), rng()).truth.oriented
    assert angle is not None
    # Ten degrees counter-clockwise on the screen are ten degrees less in our clockwise angle.
    assert angle[-1, 4] == pytest.approx(0.3 - np.deg2rad(10), abs=1e-4)


def test_turned_masks_keep_their_pixels_and_give_tight_boxes() -> None:
    found = TorchvisionTransform(v2.RandomRotation((30, 30), fill=0))(sample(), rng())
    assert found.truth.masks is not None
    assert found.truth.boxes is not None
    bright = found.image[..., 0] > 150
    union = np.zeros_like(bright)
    for crop, box in zip(found.truth.masks, found.truth.boxes, strict=True):
        union |= core_masks.paste(crop, HEIGHT, WIDTH)
        np.testing.assert_allclose(core_masks.bounds(crop), box)
    assert np.count_nonzero(union & bright) / np.count_nonzero(union | bright) > 0.95


def test_objects_that_leave_are_removed_with_everything_they_have() -> None:
    found = TorchvisionTransform(v2.CenterCrop((40, 16)), CATEGORIES)(sample(), rng())  # columns 22 to 38
    truth = found.truth
    assert found.image.shape == (40, 16, 3)
    assert truth.crowd.tolist() == [True]
    assert truth.boxes is not None
    assert truth.keypoints is not None
    np.testing.assert_allclose(truth.boxes, [[8, 20, 16, 34]])
    np.testing.assert_allclose(truth.keypoints, [[[8, 30, 2], [0, 0, 0]]])


def test_sanitising_removes_rows_of_every_field() -> None:
    transform = v2.Compose([v2.SanitizeBoundingBoxes(min_size=12)])
    truth = TorchvisionTransform(transform, CATEGORIES)(sample(), rng()).truth
    assert truth.crowd.tolist() == [True]
    assert truth.masks is not None
    assert truth.keypoints is not None
    assert len(truth.masks) == len(truth.keypoints) == 1
    np.testing.assert_allclose(truth.keypoints[0], sample().truth.keypoints[1])  # type: ignore[index]


def test_float_images_are_scaled_back_and_normalised_ones_refused() -> None:
    before = sample()
    scaled = TorchvisionTransform(v2.ToDtype(torch.float32, scale=True))(before, rng())
    assert np.array_equal(scaled.image, before.image)
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.1] * 3)])
    with pytest.raises(DataError, match="leave normalisation to the model"):
        TorchvisionTransform(normalise)(before, rng())


def test_the_samples_generator_decides_and_the_global_one_is_left_alone() -> None:
    transform = TorchvisionTransform(v2.RandomAffine(30, (0.1, 0.1)))
    before = torch.get_rng_state()
    first, again = (transform(sample(), np.random.default_rng(1)).image for _ in range(2))
    other = transform(sample(), np.random.default_rng(2)).image
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_with_a_transform(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", 6)
    transform = TorchvisionTransform(v2.Compose([v2.RandomHorizontalFlip(), v2.RandomResizedCrop((64, 64), scale=(0.6, 1))]))
    run = train(options(tmp_path / "run", epochs=1), data, quiet=True, transform=transform)
    assert run.epochs == 1
    make, plan = Maker(data, options(tmp_path).augment, (64, 64), 0, 9, transform), Plan(6, 3, 0)
    first, again = (next(Loader(make, plan).batches(0, 1)) for _ in range(2))
    assert torch.equal(first.images, again.images)


def test_class_maps_follow_the_pixels_and_what_is_uncovered_is_ignored() -> None:
    labels = np.random.default_rng(1).integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
    labels[:5] = 255
    image = np.repeat(np.where(labels == 255, 250, 20 + 60 * labels)[..., None], 3, axis=2).astype(np.uint8)
    before = Sample(image, Instances.empty(), "x.png", 0, SemanticMap(labels))
    there = from_tv(to_tv(before), before).semantic
    assert there is not None
    assert there.labels.dtype == np.uint8
    np.testing.assert_array_equal(there.labels, labels)
    chain = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.RandomAffine(0.0, translate=(0.3, 0.3)), v2.RandomCrop(32)])
    after = TorchvisionTransform(chain)(before, rng())
    assert after.semantic is not None
    moved = after.semantic.labels
    seen = {0: 255, 20: 0, 80: 1, 140: 2, 250: 255}
    np.testing.assert_array_equal(moved, np.vectorize(seen.get)(after.image[..., 0]))
    assert (after.image[..., 0] == 0).any()
