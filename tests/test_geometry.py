"""Truth under a map against the definition: shapely, and sampling at pixel centres."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity
from shapely.geometry import Polygon, box

from pelagia.core import masks as mask_crops
from pelagia.core import oriented as oriented_boxes
from pelagia.core.types import Category, Float, Instances, MaskCrop
from pelagia.data.geometry import Keep, chain, follow, hide, invert, join, keeps_axes, move_points

ALL = Keep(0.0, 0.0)
FISH = Category(1, "fish", keypoints=("left", "right", "nose"), flip=(1, 0, 2))

affines = st.builds(
    lambda angle, zoom, shear, mirror, dx, dy: chain(
        np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]]),
        np.array([[zoom * np.cos(angle), -zoom * np.sin(angle), 0.0], [zoom * np.sin(angle), zoom * np.cos(angle), 0.0]]),
        np.array([[-1.0 if mirror else 1.0, shear, 0.0], [0.0, 1.0, 0.0]]),
    ),
    st.floats(-3.1, 3.1),
    st.floats(0.5, 2.0),
    st.sampled_from([0.0, 0.2, -0.5]),
    st.booleans(),
    st.floats(-60, 60),
    st.floats(-60, 60),
)


@settings(max_examples=60, deadline=None)
@given(affines)
def test_boxes_and_fractions_agree_with_shapely(matrix: Float) -> None:
    boxes = np.array([[10.0, 12.0, 40.0, 30.0], [50.0, 5.0, 58.0, 60.0]])
    truth = Instances(np.array([0, 1]), boxes)
    window = (0, 0, 100, 80)
    moved = follow(truth, matrix, (200, 200), window, Keep(0.3, 2.0))
    expected = []
    for label, (x1, y1, x2, y2) in enumerate(boxes):
        shape = affinity.affine_transform(box(x1, y1, x2, y2), [*matrix[:, :2].ravel(), *matrix[:, 2]])
        bounds = box(*shape.bounds)
        cut = bounds.intersection(box(*window))
        low_x, low_y, high_x, high_y = cut.bounds if not cut.is_empty else (0.0, 0.0, 0.0, 0.0)
        share = cut.area / bounds.area
        assert abs(share - 0.3) > 1e-9
        if share > 0.3 and min(high_x - low_x, high_y - low_y) >= 2:
            expected.append((label, (low_x, low_y, high_x, high_y)))
    assert moved.labels.tolist() == [label for label, _ in expected]
    assert moved.boxes is not None
    np.testing.assert_allclose(moved.boxes, np.array([value for _, value in expected]).reshape(-1, 4), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(affines, st.floats(-1.5, 1.5))
def test_oriented_boxes_agree_with_shapely(matrix: Float, angle: float) -> None:
    truth = Instances(np.array([0]), oriented=oriented_boxes.canonical(np.array([[60.0, 50.0, 30.0, 12.0, angle]])))
    assert truth.oriented is not None
    corners = oriented_boxes.to_corners(truth.oriented)[0]
    parallelogram = Polygon(move_points(corners, matrix))
    moved = follow(truth, matrix, (200, 200), (-1000, -1000, 1000, 1000), ALL)
    assert moved.oriented is not None
    rectangle = Polygon(oriented_boxes.to_corners(moved.oriented)[0])
    assert rectangle.buffer(1e-6).covers(parallelogram)
    assert rectangle.area == pytest.approx(parallelogram.minimum_rotated_rectangle.area, rel=1e-6)
    window = (0, 0, 90, 70)
    share = rectangle.intersection(box(*window)).area / rectangle.area
    centre_inside = 0 <= moved.oriented[0, 0] <= 90 and 0 <= moved.oriented[0, 1] <= 70
    kept = follow(truth, matrix, (200, 200), window, Keep(0.25, 0.0))
    if abs(share - 0.25) > 1e-6:
        assert len(kept) == int(share > 0 and (centre_inside or share > 0.25))
    if len(kept):
        assert kept.oriented is not None
        np.testing.assert_allclose(kept.oriented, moved.oriented)  # whole, not cut


@settings(max_examples=40, deadline=None)
@given(affines)
def test_masks_follow_by_sampling_pixel_centres(matrix: Float) -> None:
    rng = np.random.default_rng(0)
    crop = mask_crops.crop_from_bitmap(cv2.GaussianBlur(rng.random((40, 50)), (0, 0), 2.0) > 0.5)
    truth = Instances(np.array([0]), mask_crops.bounds(crop)[None], masks=(crop,))
    moved = follow(truth, matrix, (50, 40), (0, 0, 70, 60), ALL)
    y, x = np.mgrid[0:60, 0:70] + 0.5
    source = move_points(np.stack([x, y], axis=-1), invert(matrix))
    column, row = np.floor(source[..., 0]).astype(int), np.floor(source[..., 1]).astype(int)
    full = mask_crops.paste(crop, 40, 50)
    inside = (column >= 0) & (column < 50) & (row >= 0) & (row < 40)
    expected = np.zeros((60, 70), dtype=np.bool_)
    expected[inside] = full[row[inside], column[inside]]
    if expected.sum() > 4:
        assert moved.masks is not None
        found = mask_crops.paste(moved.masks[0], 60, 70)
        clear = (np.abs(source - np.rint(source)) > 0.05).all(axis=2)  # OpenCV rounds where it samples to 1/32 px
        np.testing.assert_array_equal(found[clear], expected[clear])
        if not keeps_axes(matrix):
            np.testing.assert_array_equal(moved.boxes, mask_crops.bounds(moved.masks[0])[None])


def test_mirroring_exchanges_partner_points_and_only_then() -> None:
    points = np.array([[[10.0, 10.0, 2.0], [20.0, 10.0, 1.0], [15.0, 30.0, 2.0]]])
    truth = Instances(np.array([0]), np.array([[5.0, 5.0, 25.0, 35.0]]), keypoints=points)
    mirror = np.array([[-1.0, 0.0, 100.0], [0.0, 1.0, 0.0]])
    flipped = follow(truth, mirror, (100, 100), (0, 0, 100, 100), ALL, (FISH,))
    assert flipped.keypoints is not None
    np.testing.assert_allclose(flipped.keypoints[0], [[80, 10, 1], [90, 10, 2], [85, 30, 2]])
    half_turn = np.array([[-1.0, 0.0, 100.0], [0.0, -1.0, 100.0]])
    turned = follow(truth, half_turn, (100, 100), (0, 0, 88, 100), ALL, (FISH,))
    assert turned.keypoints is not None
    np.testing.assert_allclose(turned.keypoints[0], [[0, 0, 0], [80, 90, 1], [85, 70, 2]])  # the first left the window


def test_regions_stay_with_their_flags_however_little_is_left() -> None:
    boxes = np.array([[0.0, 0.0, 100.0, 100.0]] * 4)
    crowd, ignore, difficult = np.eye(4, dtype=np.bool_)[1:]
    truth = Instances(np.arange(4), boxes, areas=np.ones(4), crowd=crowd, ignore=ignore, difficult=difficult)
    moved = follow(truth, np.array([[1.0, 0.0, -95.0], [0.0, 1.0, 0.0]]), (100, 100), (0, 0, 100, 100), Keep(0.2, 2.0))
    assert moved.labels.tolist() == [1, 2]
    assert moved.crowd.tolist() == [True, False]
    assert moved.ignore.tolist() == [False, True]
    assert moved.areas is None
    np.testing.assert_allclose(moved.box_array, [[0, 0, 5, 100]] * 2)


def test_boxes_are_first_cut_at_the_border_of_their_own_image() -> None:
    truth = Instances(np.array([0]), np.array([[-20.0, -20.0, 10.0, 10.0]]))
    moved = follow(truth, np.array([[1.0, 0.0, 50.0], [0.0, 1.0, 50.0]]), (40, 40), (0, 0, 200, 200), ALL)
    np.testing.assert_allclose(moved.box_array, [[50, 50, 60, 60]])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=8, max_size=8))
def test_hide_leaves_the_bounds_of_what_is_not_covered(numbers: list[int]) -> None:
    x1, x2 = sorted((numbers[0], numbers[1] + 31))
    y1, y2 = sorted((numbers[2], numbers[3] + 31))
    window = (min(numbers[4:6]), min(numbers[6:8]), max(numbers[4:6]) + 30, max(numbers[6:8]) + 30)
    bitmap = np.zeros((62, 62), dtype=np.bool_)
    bitmap[y1:y2, x1:x2] = True
    before = bitmap.sum()
    plain = Instances(np.array([0]), np.array([[x1, y1, x2, y2]], dtype=np.float64))
    masked = plain.replace(masks=(mask_crops.crop_from_bitmap(bitmap),))
    bitmap[window[1] : window[3], window[0] : window[2]] = False
    expected = bitmap.sum() / before >= 0.4
    for truth in (plain, masked):
        left = hide(truth, window, Keep(0.4, 0.0))
        assert len(left) == int(expected)
        if expected:
            np.testing.assert_allclose(left.box_array[0], mask_crops.bounds(mask_crops.crop_from_bitmap(bitmap)))


def test_join_lets_parts_without_objects_lack_fields() -> None:
    full = Instances(np.array([0]), np.array([[0.0, 0.0, 4.0, 4.0]]), masks=(MaskCrop(0, 0, np.ones((4, 4), bool)),))
    assert len(join([Instances.empty(), full, Instances.empty()])) == 1
    assert len(join([Instances.empty(), Instances.empty()])) == 0
