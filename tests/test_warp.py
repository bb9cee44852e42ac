"""The warp is the one of its definition, and intensities are normalised by their formula."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from noise import noise
from pelagia.core.card import Normalisation
from pelagia.core.frame import Frame
from pelagia.core.image import letterbox, normalise, planes, to_rgb, warp
from pelagia.core.types import Float
from pelagia.core.warp import stretch
from pelagia.errors import OptionError

# Geometry


def naive_warp(image: NDArray[Any], matrix: Float, size: tuple[int, int], fill: float) -> Float:
    """The definition for scales above 1/2: bilinear interpolation of the image continued by `fill`."""
    height, width = image.shape[:2]
    result = np.empty((size[1], size[0], image.shape[2]))
    back = np.linalg.inv(matrix[:, :2])

    def sample(row: int, column: int) -> Any:
        return image[row, column].astype(float) if 0 <= row < height and 0 <= column < width else np.full(image.shape[2], fill)

    for row in range(size[1]):
        for column in range(size[0]):
            x, y = back @ (np.array([column + 0.5, row + 0.5]) - matrix[:, 2]) - 0.5
            i, j = math.floor(y), math.floor(x)
            a, b = y - i, x - j
            result[row, column] = (1 - a) * ((1 - b) * sample(i, j) + b * sample(i, j + 1)) + a * (
                (1 - b) * sample(i + 1, j) + b * sample(i + 1, j + 1)
            )
    return result


def similarity(angle: float, scale: float, x: float, y: float) -> Float:
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y]])


@settings(deadline=None, max_examples=25)
@given(
    angle=st.floats(-4, 4),
    scale=st.floats(0.55, 3),
    x=st.floats(-20, 30),
    y=st.floats(-20, 30),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
def test_warp_equals_the_definition(angle: float, scale: float, x: float, y: float, dtype: Any) -> None:
    # Smooth content: OpenCV before version 5 rounds sampling positions to 1/32 pixel.
    image = cv2.GaussianBlur(noise(19, 23, 3, dtype=dtype), (0, 0), 2).astype(dtype)
    matrix = similarity(angle, scale, x, y)
    found = warp(image, matrix, (21, 17), fill=114)
    expected = naive_warp(image, matrix, (21, 17), 114)
    inside = np.abs(naive_warp(np.ones((19, 23, 1)), matrix, (21, 17), 0)[..., 0] - 1) < 1e-9
    unit = np.iinfo(dtype).max / 255
    assert np.abs(found - expected)[inside].max(initial=0) <= 2 * unit
    assert np.abs(found - expected).max() <= 10 * unit


@settings(deadline=None, max_examples=40)
@given(
    scales=st.tuples(st.floats(0.55, 3), st.floats(0.55, 3)),
    mirrored=st.tuples(st.booleans(), st.booleans()),
    shift=st.tuples(st.floats(-20, 40), st.floats(-20, 40)),
    seed=st.integers(0, 100),
)
def test_stretch_equals_the_definition(
    scales: tuple[float, float], mirrored: tuple[bool, bool], shift: tuple[float, float], seed: int
) -> None:
    image = noise(13, 17, 3, seed=seed)
    x, y = (-value if back else value for value, back in zip(scales, mirrored, strict=True))
    matrix = np.array([[x, 0.0, shift[0]], [0.0, y, shift[1]]])
    canvas = np.full((22, 26, 3), 7, np.uint8)
    stretch(image, matrix, canvas, (3, 2, 24, 19), fill=114)
    expected = naive_warp(image, matrix, (26, 22), 114)
    # Both weights are off by at most 1/512, and the result is rounded.
    assert np.abs(canvas - expected)[2:19, 3:24].max() <= 1.5 + 1e-9
    canvas[2:19, 3:24] = 7
    assert (canvas == 7).all()


@pytest.mark.parametrize("scale", [0.5, 0.4, 0.3, 0.12])
def test_stretch_averages_the_same_blocks(scale: float) -> None:
    image = cv2.GaussianBlur(noise(61, 83, 3), (0, 0), 2)
    matrix = np.array([[-scale, 0.0, 50.3], [0.0, scale, -3.6]])
    canvas = np.zeros((40, 60, 3), np.uint8)
    stretch(image, matrix, canvas, (4, 5, 58, 37), fill=114)
    whole = warp(image, matrix, (60, 40), fill=114)
    # Beyond the border as well; OpenCV before version 5 rounds sampling positions to 1/32 pixel.
    assert np.abs(canvas.astype(int) - whole)[5:37, 4:58].max() <= 6
    assert np.abs(canvas.astype(int) - whole)[5:37, 4:58].mean() <= 0.6


def test_stretch_copies_and_mirrors_exactly() -> None:
    image = noise(20, 25, 3)
    canvas = np.zeros((20, 25, 3), np.uint8)
    stretch(image, np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), canvas, (0, 0, 25, 20))
    np.testing.assert_array_equal(canvas, image)
    stretch(image, np.array([[-1.0, 0.0, 25.0], [0.0, -1.0, 20.0]]), canvas, (0, 0, 25, 20))
    np.testing.assert_array_equal(canvas, image[::-1, ::-1])
    stretch(image, np.array([[0.2, 0.0, 500.0], [0.0, 0.2, 0.0]]), canvas, (0, 0, 25, 20), fill=9)
    assert (canvas == 9).all()


@settings(deadline=None, max_examples=40)
@given(angle=st.floats(-4, 4), scale=st.floats(0.2, 3), x=st.floats(-9, 9), y=st.floats(-9, 9))
def test_nearest_takes_the_pixel_under_the_centre(angle: float, scale: float, x: float, y: float) -> None:
    labels = noise(15, 18, dtype=np.uint16)
    matrix = similarity(angle, scale, x, y)
    found = warp(labels, matrix, (16, 14), fill=0, interpolation="nearest")
    assert found.shape == (14, 16)
    back = np.linalg.inv(matrix[:, :2])
    for row in range(14):
        for column in range(16):
            u, v = back @ (np.array([column + 0.5, row + 0.5]) - matrix[:, 2])
            if min(abs(u - round(u)), abs(v - round(v))) < 0.02:
                continue
            inside = 0 <= u < 18 and 0 <= v < 15
            assert found[row, column] == (labels[math.floor(v), math.floor(u)] if inside else 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.bool_])
@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-7, 2), (-30, 0), (40, 40)])
def test_identity_and_whole_shifts_copy_exactly(dtype: Any, shift: tuple[int, int]) -> None:
    image = (noise(20, 25, 3) > 100) if dtype == np.bool_ else noise(20, 25, 3).astype(dtype)
    x, y = shift
    found = warp(image, np.array([[1, 0, x], [0, 1, y]], float), (25, 20), fill=1)
    expected = np.full_like(image, 1)
    for row in range(20):
        for column in range(25):
            if 0 <= row - y < 20 and 0 <= column - x < 25:
                expected[row, column] = image[row - y, column - x]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)
    assert not np.shares_memory(found, image)


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_flips_and_quarter_turns_are_exact(interpolation: Any) -> None:
    image = noise(20, 25, 1)
    flipped = warp(image, np.array([[-1, 0, 25], [0, 1, 0]], float), (25, 20), interpolation=interpolation)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    turned = warp(image, np.array([[0, -1, 20], [1, 0, 0]], float), (20, 25), interpolation=interpolation)
    np.testing.assert_array_equal(turned, np.rot90(image, -1))


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("shape", [(30, 60, 3), (31, 64, 1), (29, 61, 3)])
def test_shrinking_averages_blocks_continued_by_fill(factor: int, shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    rows, columns = -(-shape[0] // factor), -(-shape[1] // factor)
    padded = np.full((rows * factor, columns * factor, shape[2]), 114.0)
    padded[: shape[0], : shape[1]] = image
    expected = padded.reshape(rows, factor, columns, factor, shape[2]).mean(axis=(1, 3))
    found = warp(image, np.array([[1 / factor, 0, 0], [0, 1 / factor, 0]]), (columns, rows))
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


def test_shrinking_keeps_thin_lines_and_positions() -> None:
    image = np.zeros((1000, 1000, 1), np.uint8)
    image[:, 401] = 255
    image[:, 700:800] = 255
    found = warp(image, np.array([[0.1, 0, 0.3], [0, 0.1, 0.4]]), (101, 101), fill=0).astype(float)[50, :, 0]
    assert found[:60].sum() == pytest.approx(25.5, abs=1)
    centre = (found[60:] * (np.arange(60, 101) + 0.5)).sum() / found[60:].sum()
    assert centre == pytest.approx(75 + 0.3, abs=0.02)


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(0.08, 1.5), angle=st.floats(-3, 3), left=st.integers(0, 300), top=st.integers(0, 200))
def test_a_canvas_moved_over_an_image_sees_the_same_pixels(scale: float, angle: float, left: int, top: int) -> None:
    """The part that is cut out before warping is on one grid of blocks, so that tiles agree with the whole."""
    image = cv2.GaussianBlur(noise(400, 500), (0, 0), 1)
    matrix = similarity(angle, scale, 100.25, 80.5)
    whole = warp(image, matrix, (400, 300))
    moved = matrix.copy()
    moved[:, 2] -= (left, top)
    tile = warp(image, moved, (60, 50))
    overlap = whole[top : top + 50, left : left + 60].astype(int)
    assert np.abs(tile[: overlap.shape[0], : overlap.shape[1]] - overlap).max(initial=0) <= 2


def test_images_wider_than_opencv_allows() -> None:
    image = np.zeros((40, 70_000), np.uint8)
    image[:, 69_000:69_010] = 200
    found = warp(image, np.array([[1.5, 0, -69_000 * 1.5], [0, 1.5, 0.25]]), (30, 40))
    assert (found[5:-5, 2:12] == 200).all()
    assert (found[5:-5, 20:] == 0).all()


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    to=st.tuples(st.integers(16, 200), st.integers(16, 200)),
    enlarge=st.booleans(),
)
def test_letterbox_is_the_warp_of_its_frame(width: int, height: int, to: tuple[int, int], enlarge: bool) -> None:
    image = noise(height, width, 3)
    found, frame = letterbox(image, to, enlarge=enlarge)
    assert found.shape == (*to, 3)
    assert (frame.width, frame.height) == (width, height)
    np.testing.assert_array_equal(found, warp(image, frame.inverse, (to[1], to[0])))
    corners = np.array([[0.0, 0.0], [width, height]])
    inside = (corners - frame.matrix[:, 2]) / np.diag(frame.matrix[:, :2])
    assert (inside >= -1e-6).all()
    assert (inside <= [to[1] + 1e-6, to[0] + 1e-6]).all()
    expected = Frame.letterbox(width, height, to[1], to[0], enlarge=enlarge)
    np.testing.assert_array_equal(frame.matrix, expected.matrix)


def test_letterbox_copies_what_fits() -> None:
    image = noise(427, 640, 3)
    found, _ = letterbox(image, (640, 640))
    np.testing.assert_array_equal(found[106:533], image)
    assert (found[:106] == 114).all()
    assert (found[533:] == 114).all()


@pytest.mark.parametrize(
    ("matrix", "size"),
    [
        ([[1, 0, 0], [1, 0, 0]], (4, 4)),
        ([[1, 0, math.nan], [0, 1, 0]], (4, 4)),
        ([[1, 0], [0, 1]], (4, 4)),
        (np.eye(2, 3), (0, 4)),
    ],
)
def test_warp_refuses_impossible_maps(matrix: Any, size: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match="a warp needs"):
        warp(noise(4, 4), np.array(matrix, float), size)


# Intensities


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alike", [False, True])
def test_normalise_equals_its_formula(dtype: Any, channels: int, alike: bool) -> None:
    image = noise(7, 9, channels, dtype=dtype)
    top = float(np.iinfo(dtype).max)
    window = Normalisation(low=0.1 * top, high=0.8 * top, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    if alike:
        window = replace(window, mean=(0.2, 0.2, 0.2), std=(0.5, 0.5, 0.5))
    found = normalise(image, window)
    np.testing.assert_array_equal(normalise(image[:, ::2], window), found[..., ::2])
    assert found.transpose(1, 2, 0).flags.c_contiguous
    assert found.dtype == np.float32
    for channel in range(3):
        plane = image[..., channel % channels].astype(float)
        expected = (np.clip((plane - window.low) / (window.high - window.low), 0, 1) - window.mean[channel]) / window.std[channel]
        np.testing.assert_allclose(found[channel], expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_planes_are_the_normalised_images_to_the_bit(dtype: Any, channels: int) -> None:
    images = [noise(7, 9, channels, dtype=dtype), noise(9, 7, channels, dtype=dtype).swapaxes(0, 1)]
    top = float(np.iinfo(dtype).max)
    window = Normalisation(low=0.1 * top, high=0.8 * top, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    found = planes(images, window)
    assert found.flags.c_contiguous
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack([normalise(image, window) for image in images]))


def test_normalise_refuses_an_empty_window() -> None:
    with pytest.raises(OptionError, match="high > low"):
        normalise(noise(2, 2, 1), Normalisation(low=5, high=5))
    with pytest.raises(OptionError, match="uint8"):
        normalise(np.zeros((2, 2, 1), np.float32), Normalisation())  # type: ignore[arg-type]


def test_to_rgb() -> None:
    grey = noise(5, 6, dtype=np.uint16)
    for image in (grey, grey[..., None]):
        np.testing.assert_array_equal(to_rgb(image), np.stack([grey] * 3, axis=2))
    colour = noise(5, 6, 3)
    assert to_rgb(colour) is colour
    with pytest.raises(OptionError, match="must be"):
        to_rgb(noise(5, 6, 2))
