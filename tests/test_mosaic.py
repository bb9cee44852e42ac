"""The composed mosaic against the customary one in steps: scale, paste on a canvas of twice the size, cut."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely.geometry import Polygon, box

from pelagia.core.image import warp
from pelagia.core.types import Float
from pelagia.data.geometry import chain, invert, move_points
from pelagia.data.mosaic import blank, mosaic_placements, paint, single_placement

sides = st.integers(8, 90)


def _images(sizes: list[tuple[int, int]], seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (height, width, 3), dtype=np.uint8) for width, height in sizes]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(sides, sides), min_size=4, max_size=4), st.integers(0, 1000))
def test_four_images_meet_at_the_joint_and_do_not_overlap(sizes: list[tuple[int, int]], seed: int) -> None:
    canvas = (64, 48)
    maps = mosaic_placements(sizes, canvas, np.random.default_rng(seed))
    ends = [np.array([(0, 0), size], dtype=np.float64) for size in sizes]
    bounds = [move_points(points, matrix).ravel() for points, matrix in zip(ends, maps, strict=True)]
    joint_x, joint_y = bounds[0][2:]
    assert joint_x == pytest.approx(round(joint_x))
    assert -1e-9 <= joint_x <= 64 + 1e-9
    assert -1e-9 <= joint_y <= 48 + 1e-9
    corners = [(2, 3), (0, 3), (2, 1), (0, 1)]
    for value, (x, y) in zip(bounds, corners, strict=True):
        assert (value[x], value[y]) == pytest.approx((joint_x, joint_y))
    for first in range(4):
        width, height = bounds[first][2:] - bounds[first][:2]
        assert max(width / 64, height / 48) == pytest.approx(1)
        assert width / height == pytest.approx(sizes[first][0] / sizes[first][1])
        for second in range(first):
            assert box(*bounds[first]).intersection(box(*bounds[second])).area < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_the_unmoved_mosaic_equals_the_one_made_in_steps(seed: int) -> None:
    side = 40
    images = _images([(side, side)] * 4, seed)
    maps = mosaic_placements([(side, side)] * 4, (side, side), np.random.default_rng(seed))
    x, y = (round(value) for value in move_points(np.array([[side, side]], dtype=np.float64), maps[0])[0])
    wide = np.full((4 * side, 4 * side, 3), 114, dtype=np.uint8)
    for position, image in enumerate(images):
        left = side + x - (side if position % 2 == 0 else 0)
        top = side + y - (side if position < 2 else 0)
        wide[top : top + side, left : left + side] = image
    canvas = blank((side, side), images, 114)
    for image, matrix in zip(images, maps, strict=True):
        paint(canvas, image, matrix, 114)
    np.testing.assert_array_equal(canvas, wide[side : 2 * side, side : 2 * side])


@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.floats(0.6, 1.8), st.floats(-0.4, 0.4), st.floats(-20, 40), st.floats(-20, 40))
def test_painting_is_one_warp_inside_the_image_and_nothing_outside(
    angle: float, zoom: float, shear: float, x: float, y: float
) -> None:
    image = _images([(30, 24)])[0]
    linear = (
        zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.array([[1.0, shear], [0.0, 1.0]])
    )
    matrix: Float = np.column_stack([linear, (x, y)])
    canvas = np.full((50, 60, 3), 7, dtype=np.uint8)
    paint(canvas, image, matrix, 114, window=(5, 4, 55, 47))
    whole = warp(image, matrix, (60, 50), fill=114)
    rows, columns = np.mgrid[0:50, 0:60] + 0.5
    source = move_points(np.stack([columns, rows], axis=-1), invert(matrix))
    inside = ((source > 0) & (source < (30, 24))).all(axis=2)
    inside[:4] = inside[47:] = inside[:, :5] = inside[:, 55:] = False
    edge = (np.abs(source) < 1e-6).any(axis=2) | (np.abs(source - (30, 24)) < 1e-6).any(axis=2)
    assert (canvas[~inside & ~edge] == 7).all()
    difference = np.abs(canvas[inside & ~edge].astype(int) - whole[inside & ~edge])
    assert difference.max(initial=0) <= 12  # sampling points are rounded to 1/32 px from another origin
    assert difference.mean() <= 1.5 if difference.size else True


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.floats(0.3, 2.5), st.floats(0.3, 2.5)),
    st.tuples(st.booleans(), st.booleans()),
    st.tuples(st.floats(-20, 60), st.floats(-20, 60)),
)
def test_what_is_not_turned_is_drawn_as_by_the_general_step(
    scales: tuple[float, float], mirrored: tuple[bool, bool], shift: tuple[float, float]
) -> None:
    """Bytes have a loop of their own; the same intensities in 16 bits go through `warp`."""
    image = cv2.GaussianBlur(_images([(30, 24)])[0], (0, 0), 2)
    a, d = (-value if back else value for value, back in zip(scales, mirrored, strict=True))
    matrix = np.array([[a, 0.0, shift[0]], [0.0, d, shift[1]]])
    canvas, deep = np.full((50, 60, 3), 7, np.uint8), np.full((50, 60, 3), 7, np.uint16)
    paint(canvas, image, matrix, 114, window=(5, 4, 55, 47))
    paint(deep, image.astype(np.uint16), matrix, 114, window=(5, 4, 55, 47))
    difference = np.abs(canvas.astype(int) - deep)
    assert difference.max() <= 6  # OpenCV before version 5 rounds sampling points to 1/32 px
    assert difference.mean() <= 0.6


def test_a_canvas_takes_the_richest_type_of_its_sources() -> None:
    grey, deep, colour = (np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 1), np.uint16), np.zeros((4, 4, 3), np.uint8))
    assert blank((6, 5), [grey, grey], 114).shape == (5, 6, 1)
    assert blank((6, 5), [grey, deep], 114).dtype == np.uint16
    assert blank((6, 5), [grey, colour], 114).shape == (5, 6, 3)
    assert (blank((6, 5), [grey], 114) == 114).all()


def test_an_image_that_misses_the_canvas_changes_nothing() -> None:
    canvas = np.zeros((20, 20, 3), dtype=np.uint8)
    paint(canvas, _images([(10, 10)])[0], np.array([[1.0, 0.0, 50.0], [0.0, 1.0, 0.0]]), 114)
    assert not canvas.any()


def test_a_single_image_is_letterboxed() -> None:
    matrix = single_placement((200, 100), (64, 64))
    np.testing.assert_allclose(move_points(np.array([[0.0, 0.0], [200.0, 100.0]]), matrix), [[0, 16], [64, 48]])


@settings(max_examples=30, deadline=None)
@given(st.floats(-3, 3), st.floats(0.5, 2.0), st.floats(-9, 9))
def test_chain_and_invert_are_composition_and_inverse(angle: float, zoom: float, shift: float) -> None:
    first = np.array([[np.cos(angle), -np.sin(angle), shift], [np.sin(angle), np.cos(angle), 1.0]])
    second = np.array([[zoom, 0.3, -2.0], [0.0, 1.0, shift]])
    points = np.array([[0.0, 0.0], [3.0, -4.0], [10.0, 2.5]])
    np.testing.assert_allclose(
        move_points(points, chain(first, second)), move_points(move_points(points, second), first), atol=1e-9
    )
    np.testing.assert_allclose(move_points(move_points(points, second), invert(second)), points, atol=1e-9)
    assert Polygon(move_points(np.array([[0, 0], [1, 0], [0, 1]]), second)).area == pytest.approx(zoom / 2)
