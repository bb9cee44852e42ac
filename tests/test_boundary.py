"""Boundary measures against loops written from the definitions, and the erosion of the Boundary IoU paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from pelagia.core.types import Mask
from pelagia.errors import OptionError
from pelagia.metrics.boundary import (
    BOUNDARY_COUNTS,
    BoundaryOptions,
    Codes,
    Window,
    boundary_counts,
    boundary_pixels,
    contour_band,
    halo,
)

SEEDS, SIDES = st.integers(0, 2**32 - 1), st.integers(1, 16)


def maps(seed: int, height: int, width: int, classes: int, ignored: float = 0.1) -> tuple[Codes, Codes]:
    """Codes of blocks of classes, and of the same moved, with specks of other classes and of none."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, classes + 1, (height // 3 + 2, width // 3 + 2), dtype=np.uint8)
    blocks = np.kron(coarse, np.ones((3, 3), dtype=np.uint8))
    down, right = rng.integers(0, 3, 2)
    truth, predicted = blocks[:height, :width].copy(), blocks[down : down + height, right : right + width].copy()
    specks = rng.random((height, width)) < 0.1
    predicted[specks] = rng.integers(1, classes + 2, int(specks.sum()))
    unknown = rng.random((height, width)) < ignored
    truth[unknown] = predicted[unknown] = 0
    return truth, predicted


def whole(codes: Codes) -> Window:
    height, width = codes.shape
    return Window((0, 0), (height, width), (slice(0, height), slice(0, width)))


def naive_boundary(codes: Codes) -> Mask:
    height, width = codes.shape
    result = np.zeros(codes.shape, dtype=np.bool_)
    for y, x in np.ndindex(height, width):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < height and 0 <= u < width and codes[y, x] and codes[v, u] and codes[v, u] != codes[y, x]:
                result[y, x] = True
    return result


def naive_band(codes: Codes, band: int) -> Mask:
    height, width = codes.shape
    result = np.zeros(codes.shape, dtype=np.bool_)
    for y, x in np.ndindex(height, width):
        near = codes[max(y - band, 0) : y + band + 1, max(x - band, 0) : x + band + 1]
        border = min(y, x, height - 1 - y, width - 1 - x) < band
        result[y, x] = codes[y, x] != 0 and (border or bool(((near != codes[y, x]) & (near != 0)).any()))
    return result


def naive_found(codes: Codes, other: Codes, label: int, theta: float) -> tuple[int, int]:
    """Boundary pixels of a class, and how many have one of the other map within theta."""
    points = np.argwhere(naive_boundary(codes) & (codes == label)).tolist()
    targets = np.argwhere(naive_boundary(other) & (other == label)).tolist()
    return len(points), sum(any(math.dist(point, target) <= theta for target in targets) for point in points)


def naive_counts(truth: Codes, predicted: Codes, classes: int, theta: float, band: int) -> list[list[int]]:
    rows = []
    true_band, predicted_band = naive_band(truth, band), naive_band(predicted, band)
    for label in range(1, classes + 1):
        of_truth, of_prediction = true_band & (truth == label), predicted_band & (predicted == label)
        areas = [int(mask.sum()) for mask in (of_truth, of_prediction, of_truth & of_prediction)]
        rows.append([*naive_found(truth, predicted, label, theta), *naive_found(predicted, truth, label, theta), *areas])
    return rows


@settings(max_examples=50, deadline=None)
@given(SEEDS, SIDES, SIDES, st.integers(1, 4))
def test_boundary_pixels_are_those_of_the_definition(seed: int, height: int, width: int, classes: int) -> None:
    for codes in maps(seed, height, width, classes):
        assert np.array_equal(boundary_pixels(codes), naive_boundary(codes))


@settings(max_examples=50, deadline=None)
@given(SEEDS, SIDES, SIDES, st.integers(1, 4), st.integers(1, 20))
def test_bands_are_those_of_the_definition(seed: int, height: int, width: int, classes: int, band: int) -> None:
    for codes in maps(seed, height, width, classes):
        assert np.array_equal(contour_band(codes, whole(codes), band), naive_band(codes, band))


@settings(max_examples=50, deadline=None)
@given(SEEDS, SIDES, SIDES, st.integers(1, 4), st.integers(1, 6))
def test_without_ignored_pixels_a_band_is_what_erosion_takes(seed: int, height: int, width: int, classes: int, band: int) -> None:
    codes, _ = maps(seed, height, width, classes, ignored=0)
    found = contour_band(codes, whole(codes), band)
    for label in range(1, classes + 1):
        mask = np.pad(codes == label, 1)
        left = binary_erosion(mask, np.ones((3, 3)), iterations=band)
        assert np.array_equal(found & (codes == label), (mask & ~left)[1:-1, 1:-1])


@settings(max_examples=50, deadline=None)
@given(
    SEEDS,
    SIDES,
    SIDES,
    st.integers(1, 4),
    st.sampled_from([0, 0.9, 1, math.sqrt(2), 2, math.sqrt(5), 2.9, 3, math.sqrt(13), 50]),
    st.integers(1, 5),
)
def test_counts_are_those_of_the_definition(seed: int, height: int, width: int, classes: int, theta: float, band: int) -> None:
    truth, predicted = maps(seed, height, width, classes)
    counts = boundary_counts(truth, predicted, classes, whole(truth), BoundaryOptions(theta, band))
    assert counts.tolist() == naive_counts(truth, predicted, classes, theta, band)


def test_many_classes_need_two_bytes() -> None:
    truth, predicted = (codes.astype(np.uint16) + np.where(codes, 300, 0).astype(np.uint16) for codes in maps(5, 12, 14, 3))
    counts = boundary_counts(truth, predicted, 303, whole(truth), BoundaryOptions(2, 2))
    small = boundary_counts(*maps(5, 12, 14, 3), 3, whole(truth), BoundaryOptions(2, 2))
    assert small.sum() > 100
    assert counts[300:].tolist() == small.tolist()
    assert not counts[:300].any()


def test_a_square_moved_by_two_pixels() -> None:
    truth, predicted = np.ones((20, 20), dtype=np.uint8), np.ones((20, 20), dtype=np.uint8)
    truth[5:10, 5:10] = 2
    predicted[5:10, 7:12] = 2
    for theta, near in ((0, 6), (1, 10), (2, 16)):
        counts = boundary_counts(truth, predicted, 2, whole(truth), BoundaryOptions(theta, 1))
        assert counts[1, :4].tolist() == [16, near, 16, near]
    # The bands of width 1 are the same 16 pixels, and only coincident ones are common.
    assert counts[1, 4:].tolist() == [16, 16, 6]


def test_a_pixel_inside_the_image_border_is_in_the_band_but_no_boundary_pixel() -> None:
    codes = np.ones((7, 9), dtype=np.uint8)
    counts = boundary_counts(codes, codes, 1, whole(codes), BoundaryOptions(1, 2))
    assert counts.tolist() == [[0, 0, 0, 0, 63 - 15, 63 - 15, 63 - 15]]


def test_ignored_pixels_make_no_contour() -> None:
    codes = np.ones((21, 21), dtype=np.uint8)
    codes[8:13, 8:13] = 0
    assert not boundary_pixels(codes).any()
    assert not contour_band(codes, whole(codes), 2)[2:-2, 2:-2].any()
    codes[10, 10] = 2  # known again, three pixels from the nearest known pixel
    band = contour_band(codes, whole(codes), 3)
    expected = np.zeros((21, 21), dtype=np.bool_)
    expected[7:14, 7:14] = True
    expected[8:13, 8:13] = False
    expected[10, 10] = True
    assert np.array_equal(band[3:-3, 3:-3], expected[3:-3, 3:-3])


def test_a_boundary_pixel_at_the_distance_theta_needs_the_whole_halo() -> None:
    options, shape = BoundaryOptions(3, 1), (1, 30)
    truth, predicted = np.full(shape, 2, dtype=np.uint8), np.full(shape, 2, dtype=np.uint8)
    truth[:, :14] = 1  # its last pixel, column 13, is a boundary pixel
    predicted[:, :11] = 1  # as column 10 is here
    assert halo(options, shape) == 4
    for context, found in ((4, 1), (3, 0)):
        start, stop = 10 - context, 11 + context
        window = Window((0, start), shape, (slice(0, 1), slice(context, context + 1)))
        counts = boundary_counts(truth[:, start:stop], predicted[:, start:stop], 2, window, options)
        assert counts[0, :4].tolist() == [0, 0, 1, found]


def test_default_widths_follow_the_diagonal() -> None:
    options, shape = BoundaryOptions(), (3000, 4000)
    assert options.theta(shape) == pytest.approx(37.5)
    assert options.band(shape) == 100
    assert options.band((1, 1)) == 1
    assert halo(options, shape) == 100
    assert halo(BoundaryOptions(band_px=1), shape) == 38
    assert halo(None, shape) == 0
    assert BoundaryOptions(1e300).theta((3, 4)) == 5
    assert len(BOUNDARY_COUNTS) == boundary_counts(*maps(0, 5, 5, 2), 2, whole(np.zeros((5, 5), np.uint8)), options).shape[1]


@pytest.mark.parametrize(
    ("theta", "band"), [(-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, 0), (1.0, 1.5), (None, math.nan), (None, math.inf)]
)
def test_widths_that_cannot_be_used(theta: float | None, band: int) -> None:
    with pytest.raises(OptionError, match="_px must be"):
        BoundaryOptions(theta, band)


def test_a_rounded_root_reaches_its_distance() -> None:
    # 2 and 3 pixels apart: sqrt(13), whose square in floating point is below 13.
    truth, predicted = np.ones((9, 9), dtype=np.uint8), np.ones((9, 9), dtype=np.uint8)
    truth[2, 2] = predicted[4, 5] = 2
    assert math.sqrt(13) ** 2 < 13
    for theta, found in ((math.sqrt(13), 1), (3.6, 0)):
        counts = boundary_counts(truth, predicted, 2, whole(truth), BoundaryOptions(theta, 1))
        assert counts[1, :4].tolist() == [1, found, 1, found]
