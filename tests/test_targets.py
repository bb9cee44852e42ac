"""The masks of a batch against bitmaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pelagia.core import masks as core_masks
from pelagia.core.types import Instances, MaskCrop
from pelagia.data.sample import Sample
from pelagia.models import targets
from pelagia.models.targets import MaskCrops, Targets
from pelagia.train.batch import collate


def samples() -> list[Sample]:
    """Two images of 24 x 16 with masks across the border, outside, empty and inside."""
    rng = np.random.default_rng(0)
    places = [[(-3, 2), (20, -2), (5, 5)], [(40, 40), (0, 0)]]
    found = []
    for index, corners in enumerate(places):
        crops = tuple(MaskCrop(x, y, rng.random((7, 9)) < 0.6) for x, y in corners)
        crops = (*crops, MaskCrop(3, 3, np.zeros((0, 0), dtype=np.bool_)))
        boxes = np.array([[c.x, c.y, c.x + 9, c.y + 7] for c in crops], dtype=np.float64)
        truth = Instances(np.zeros(len(crops), dtype=np.int64), boxes=boxes, masks=crops)
        found.append(Sample(np.zeros((16, 24, 3), dtype=np.uint8), truth, str(index), index))
    return found


def bitmaps(items: list[Sample]) -> np.ndarray:
    return np.stack([core_masks.paste(crop, 16, 24) for item in items for crop in item.truth.masks or ()])


def test_masks_of_a_batch_are_those_of_the_samples() -> None:
    items = samples()
    masks = collate(items).targets.masks
    assert masks is not None
    expected = bitmaps(items)
    np.testing.assert_array_equal(masks.dense().numpy(), expected)
    rows = torch.tensor([4, 0, 0, 6])
    np.testing.assert_array_equal(masks.dense(rows).numpy(), expected[rows.numpy()])
    np.testing.assert_array_equal(masks.areas.numpy(), expected.sum((1, 2)))
    np.testing.assert_array_equal(masks.to("cpu").dense().numpy(), expected)


def test_shares_are_means_over_cells() -> None:
    items = samples()
    masks = collate(items).targets.masks
    assert masks is not None
    expected = bitmaps(items).reshape(-1, 4, 4, 6, 4).mean((2, 4))
    np.testing.assert_allclose(masks.shares(4).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(masks.shares(4, torch.tensor([2])).numpy(), expected[2:3], atol=1e-6)


def test_shares_of_cells_within_the_windows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    items = samples()
    masks = collate(items).targets.masks
    assert masks is not None
    rows = torch.tensor([4, 0, 2, 2, 1, 3])
    for at_once in (1, 70, 1_000_000):
        monkeypatch.setattr(targets, "_PIXELS_AT_ONCE", at_once)
        shares, windows = masks.cells(4, rows)
        rebuilt, start = np.zeros((6, 4, 6), dtype=np.float32), 0
        for index, (x1, y1, x2, y2) in enumerate(windows.tolist()):
            size = (x2 - x1) * (y2 - y1)
            rebuilt[index, y1:y2, x1:x2] = shares[start : start + size].numpy().reshape(y2 - y1, x2 - x1)
            start += size
        assert start == len(shares)
        np.testing.assert_array_equal(rebuilt, masks.shares(4, rows).numpy())


def test_no_mask_at_all() -> None:
    none = MaskCrops(torch.zeros(0, dtype=torch.bool), torch.zeros(0, 4, dtype=torch.int64), 16, 24)
    assert none.dense().shape == (0, 16, 24)
    assert none.shares(8).shape == (0, 2, 3)
    assert len(none.areas) == 0
    shares, windows = none.cells(4, torch.zeros(0, dtype=torch.int64))
    assert (len(shares), windows.shape) == (0, (0, 4))


def test_truth_on_a_device_remembers_where_it_came_from() -> None:
    here = Targets(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]), torch.rand(2, 4), 1)
    there = here.to("meta")
    assert here.on_host() is here
    assert there.on_host() is here
    assert there.to("meta").on_host() is here
    assert replace(there, size=2).host is None  # it may be other truth
