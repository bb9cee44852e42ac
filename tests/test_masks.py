"""Masks against pycocotools, bit for bit, and against the pixels themselves."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco
from scipy import ndimage

from pelagia.core import masks as M
from pelagia.core import oriented as oriented_boxes
from pelagia.core.types import MaskCrop
from pelagia.errors import LabelError

# pycocotools 2.0.11 still meets an old protocol of numpy when it decodes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

bitmaps = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(lambda shape: arrays(np.bool_, shape))


def _blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(rng.random((height, width)), 1.2) > 0.5)


def _ring(rng: np.random.Generator, kind: str, points: int) -> np.ndarray:
    match kind:
        case "free":
            return rng.uniform(-20, 80, (points, 2))  # crosses itself, reaches outside
        case "whole":
            return rng.integers(-5, 65, (points, 2)).astype(float)
        case "tenths":
            return np.round(rng.uniform(-5, 65, (points, 2)), 1)
        case "repeated":
            return np.repeat(rng.integers(0, 12, (points, 2)) * 5.0, 2, axis=0)
    angle = np.sort(rng.uniform(0, 2 * np.pi, points))
    return 30 + np.stack([25 * np.cos(angle), 18 * np.sin(angle)], axis=1)


@settings(max_examples=150, deadline=None)
@given(bitmaps)
def test_run_lengths_equal_pycocotools(bitmap: np.ndarray) -> None:
    height, width = bitmap.shape
    theirs = coco.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    rle = M.encode(bitmap)
    assert rle.counts.dtype == np.uint32
    assert M.rle_to_string(rle) == theirs["counts"].decode()
    np.testing.assert_array_equal(M.decode(rle), bitmap)
    assert M.rle_area(rle) == coco.area(theirs) == bitmap.sum()
    again = M.rle_from_string(theirs["counts"], height, width)
    np.testing.assert_array_equal(again.counts, rle.counts)


@settings(max_examples=100, deadline=None)
@given(bitmaps, st.integers(-9, 9), st.integers(-9, 9))
def test_crops_follow_the_pixels(bitmap: np.ndarray, x: int, y: int) -> None:
    height, width = 12, 11
    full = np.zeros((60, 60), dtype=bool)
    full[20 + y : 20 + y + bitmap.shape[0], 20 + x : 20 + x + bitmap.shape[1]] = bitmap
    full = full[20 : 20 + height, 20 : 20 + width]
    crop = MaskCrop(x, y, bitmap)
    np.testing.assert_array_equal(M.paste(crop, height, width), full)
    np.testing.assert_array_equal(M.paste(M.clip(crop, width, height), height, width), full)
    rle = M.crop_to_rle(crop, height, width)
    np.testing.assert_array_equal(rle.counts, M.encode(full).counts)
    for tight in (M.crop_from_rle(rle), M.crop_from_bitmap(full)):
        np.testing.assert_array_equal(M.paste(tight, height, width), full)
        assert tight.area == full.sum()
        if full.any():
            assert tight.bitmap.any(axis=0)[[0, -1]].all()
            assert tight.bitmap.any(axis=1)[[0, -1]].all()
            x1, y1, w, h = coco.toBbox(coco.encode(np.asfortranarray(full.astype(np.uint8))))
            np.testing.assert_array_equal(M.bounds(tight), [x1, y1, x1 + w, y1 + h])
            np.testing.assert_array_equal(M.bounds(M.clip(crop, width, height)), M.bounds(tight))


@pytest.mark.parametrize("kind", ["free", "whole", "tenths", "repeated", "round"])
def test_polygons_equal_pycocotools(kind: str) -> None:
    rng = np.random.default_rng(0)
    filled = 0
    for _ in range(200):
        height, width = (int(value) for value in rng.integers(1, 64, 2))
        rings = [_ring(rng, kind, int(rng.integers(3, 12))) for _ in range(rng.integers(1, 4))]
        theirs = coco.merge(coco.frPyObjects([ring.ravel().tolist() for ring in rings], height, width))
        expected = coco.decode(theirs).astype(bool)
        np.testing.assert_array_equal(M.rasterise(rings, height, width), expected)
        crop = M.crop_from_polygon(rings, height, width)
        np.testing.assert_array_equal(M.paste(crop, height, width), expected)
        assert M.rle_to_string(M.crop_to_rle(crop, height, width)) == theirs["counts"].decode()
        filled += bool(expected.any())
    assert filled > 100


def test_iou_equals_pycocotools() -> None:
    rng = np.random.default_rng(1)
    full = [_blobs(rng, 40, 50) & (np.mgrid[:40, :50][1] > cut) for cut in (0, 20, 48, 10, 60, 5)]
    theirs = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in full]
    crops = [M.crop_from_bitmap(mask) for mask in full]
    for crowd in ([False] * 6, [True] * 6, [False, True, False, True, False, True]):
        expected = coco.iou(theirs, theirs, [int(value) for value in crowd])
        np.testing.assert_array_equal(M.iou(crops, crops, np.array(crowd)), expected)
    np.testing.assert_array_equal(M.iou(crops, crops), coco.iou(theirs, theirs, [0] * 6))
    assert M.iou([], crops).shape == (0, 6)
    assert M.iou(crops, []).shape == (6, 0)


@pytest.mark.parametrize("text", ["", "~~", "abc\n", "0" * 5, "ooooooooo0", "P", "00o"])
def test_broken_texts_are_refused(text: str) -> None:
    with pytest.raises(LabelError, match=r"mask|run"):
        M.rle_from_string(text, 3, 4)


def test_runs_that_do_not_fill_the_image_are_refused() -> None:
    short = M.RLE(3, 4, np.array([3, 4], dtype=np.uint32))
    for function in (M.decode, M.crop_from_rle):
        with pytest.raises(LabelError, match="7 pixels"):
            function(short)


def test_runs_that_cross_columns_make_one_crop() -> None:
    rle = M.RLE(4, 5, np.array([6, 5, 9], dtype=np.uint32))
    crop = M.crop_from_rle(rle)
    assert (crop.x, crop.y, crop.bitmap.shape) == (1, 0, (4, 2))
    np.testing.assert_array_equal(M.paste(crop, 4, 5), M.decode(rle))


def test_zero_length_runs_are_read() -> None:
    np.testing.assert_array_equal(
        M.decode(M.RLE(2, 2, np.array([0, 2, 0, 1, 1], dtype=np.uint32))), [[True, True], [True, False]]
    )
    assert M.crop_from_rle(M.RLE(2, 2, np.array([0, 2, 0, 1, 1], dtype=np.uint32))).area == 3


def test_polygons_on_a_scan_cost_their_own_size() -> None:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    ring = np.stack([13_900 + 40 * np.cos(angle), 23_000 + 25 * np.sin(angle)], axis=1)
    crop = M.crop_from_polygon([ring], 24_000, 14_000)
    assert crop.bitmap.shape == (50, 80)
    assert crop.area == pytest.approx(M.polygon_area(ring), rel=0.01)
    assert M.rle_area(M.crop_to_rle(crop, 24_000, 14_000)) == crop.area


def test_impossible_polygons() -> None:
    for ring in (np.zeros((0, 2)), np.array([[3.0, 3.0]]), np.array([[1.0, 1.0], [8.0, 8.0]])):
        assert not M.rasterise([ring], 10, 10).any()
    assert not M.rasterise([], 10, 10).any()
    assert M.crop_from_polygon([], 10, 10).area == 0
    with pytest.raises(LabelError, match="finite"):
        M.rasterise([np.array([[1.0, 1.0], [np.nan, 2.0], [3.0, 3.0]])], 10, 10)
    with pytest.raises(LabelError, match="far beyond"):
        M.rasterise([np.array([[1.0, 1.0], [1e12, 2.0], [3.0, 3.0]])], 10, 10)


@settings(max_examples=200, deadline=None)
@given(bitmaps, st.integers(0, 5), st.integers(0, 5))
def test_outlines_give_the_mask_back(bitmap: np.ndarray, x: int, y: int) -> None:
    rings = M.to_polygons(MaskCrop(x, y, bitmap))
    assert len(rings) == ndimage.label(bitmap)[1]
    expected = M.paste(MaskCrop(x, y, bitmap), 20, 20)
    np.testing.assert_array_equal(M.rasterise(rings, 20, 20), expected)
    assert sum(M.polygon_area(ring) for ring in rings) == pytest.approx(bitmap.sum(), abs=1e-9)


def test_outlines_of_nested_holes() -> None:
    y, x = np.mgrid[:41, :41]
    distance = np.hypot(y - 20, x - 20)
    rings_in_rings = (distance.astype(int) // 4) % 2 == 1
    speckled = rings_in_rings | (distance > 16)
    speckled[::7, ::5] = False
    for bitmap in (rings_in_rings, speckled):
        rings = M.to_polygons(MaskCrop(0, 0, bitmap))
        np.testing.assert_array_equal(M.rasterise(rings, 41, 41), bitmap)
        signed = [(np.dot(r[:, 0], np.roll(r[:, 1], -1)) - np.dot(r[:, 1], np.roll(r[:, 0], -1))) / 2 for r in rings]
        assert min(signed) > 0  # clockwise on the screen
        assert sum(signed) == bitmap.sum()
    assert M.to_polygons(MaskCrop(0, 0, np.zeros((0, 0), dtype=bool))) == []


def test_min_area_box_holds_the_pixels() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        box = np.array([60, 55, rng.uniform(20, 70), rng.uniform(5, 20), rng.uniform(-1.5, 1.5)])
        bitmap = np.zeros((120, 120), dtype=np.uint8)
        cv2.fillPoly(bitmap, [np.round(oriented_boxes.to_corners(box)).astype(np.int32)], 1)
        found = M.min_area_box(M.crop_from_bitmap(bitmap > 0))
        rows, columns = np.nonzero(bitmap)
        corners = np.concatenate([np.stack([columns + dx, rows + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
        least = shapely.minimum_rotated_rectangle(shapely.MultiPoint(corners)).area
        assert found[2] * found[3] == pytest.approx(least, rel=1e-6)
        hull = shapely.Polygon(oriented_boxes.to_corners(found)).buffer(1e-6)
        assert shapely.contains_xy(hull, corners[:, 0], corners[:, 1]).all()
    np.testing.assert_allclose(M.min_area_box(MaskCrop(7, 9, np.ones((2, 5), dtype=bool))), [9.5, 10, 5, 2, 0], atol=1e-12)
    np.testing.assert_array_equal(M.min_area_box(MaskCrop(7, 9, np.zeros((2, 5), dtype=bool))), np.zeros(5))


def test_polygon_area_far_from_the_origin() -> None:
    ring = np.array([[0.0, 0], [0.3, 0], [0.3, 0.1], [0, 0.1]])
    assert M.polygon_area(ring + 20_000) == pytest.approx(0.03, abs=1e-11)
    assert M.polygon_area(ring[:2]) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(bitmaps, st.integers(-9, 9), st.integers(-9, 9)), max_size=4))
def test_united_masks_are_the_union_of_pixels(parts: list[tuple[np.ndarray, int, int]]) -> None:
    crops = [MaskCrop(x, y, bitmap) for bitmap, x, y in parts]
    full = np.zeros((60, 60), dtype=bool)
    shifted = [MaskCrop(crop.x + 20, crop.y + 20, crop.bitmap) for crop in crops]
    for crop in shifted:
        full |= M.paste(crop, 60, 60)
    united = M.unite(shifted)
    np.testing.assert_array_equal(M.paste(united, 60, 60), full)
    assert united.bitmap.shape == M.crop_from_bitmap(full).bitmap.shape  # tight
    common = M.intersections(shifted, [united])
    np.testing.assert_array_equal(common.reshape(-1), [crop.area for crop in shifted])
