"""Oriented boxes: exact IoU against shapely, conventions against OpenCV, ProbIoU against its definition."""

from __future__ import annotations

import math
from typing import get_args

import cv2
import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagia.core import oriented as O
from pelagia.errors import LabelError, OptionError


def _random(rng: np.random.Generator, count: int, spread: float = 100.0, offset: float = 0.0) -> np.ndarray:
    centre, side = rng.uniform(0, spread, (count, 2)) + offset, rng.uniform(0.1, 80, (count, 2))
    return np.column_stack([centre, side, rng.uniform(-4, 4, count)])


def _shapely_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Aligned pairs, in coordinates relative to a so that rounding of corners far away does not count."""
    shift = np.zeros_like(a)
    shift[:, :2] = a[:, :2]
    first, second = shapely.polygons(O.to_corners(a - shift)), shapely.polygons(O.to_corners(b - shift))
    common = shapely.area(shapely.intersection(first, second))
    union = shapely.area(first) + shapely.area(second) - common
    return np.where(union > 0, common / np.where(union > 0, union, 1), 0)


@pytest.mark.parametrize("offset", [0.0, 20_000.0])
@pytest.mark.parametrize("thinness", [1.0, 1e-3])
def test_iou_equals_shapely(offset: float, thinness: float) -> None:
    rng = np.random.default_rng(0)
    a, b = _random(rng, 3000, offset=offset), _random(rng, 3000, offset=offset)
    a[:, 3] *= thinness
    value = O.iou_aligned(a, b)
    assert (value > 0).mean() > 0.2
    np.testing.assert_allclose(value, _shapely_iou(a, b), rtol=0, atol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 20_000.0])
def test_iou_of_nearly_equal_boxes_equals_shapely(offset: float) -> None:
    rng = np.random.default_rng(1)
    a = _random(rng, 2000, offset=offset)
    b = a.copy()
    b[:, :2] += rng.choice([0, 1e-12, 1e-9, 1e-3], (2000, 2))
    b[:, 4] += rng.choice([0, 1e-14, 1e-12, 1e-9, math.pi, -math.pi], 2000)
    np.testing.assert_allclose(O.iou_aligned(a, b), _shapely_iou(a, b), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 4, 2, 0.3], [0, 0, 4, 2, 0.3], 1.0),  # equal
        ([0, 0, 4, 2, 0.3], [0, 0, 2, 4, 0.3 + math.pi / 2], 1.0),  # equal, sides named the other way
        ([0, 0, 4, 2, 0.0], [4, 0, 4, 2, 0.0], 0.0),  # touching
        ([0, 0, 4, 2, 0.0], [2, 0, 4, 2, 0.0], 1 / 3),  # edges in line
        ([0, 0, 10, 10, 0.2], [1, 1, 2, 2, 1.0], 0.04),  # contained
        ([0, 0, 2, 2, 0.0], [0, 0, 2, 2, math.pi / 4], None),  # a regular octagon
        ([0, 0, 10, 1, 0.0], [0, 0, 10, 1, math.pi / 2], 1 / 19),  # a cross
        ([0, 0, 0, 0, 0.0], [0, 0, 0, 0, 0.0], 0.0),  # points
        ([0, 0, 5, 0, 0.4], [0, 0, 5, 0, 0.4], 0.0),  # lines
        ([0, 0, 5, 0, 0.4], [0, 0, 5, 5, 0.0], 0.0),  # a line in a square
        ([0, 0, 4, 2, 0.0], [100, 0, 4, 2, 0.0], 0.0),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 24_000.0])
def test_iou_of_special_pairs(a: list[float], b: list[float], expected: float | None, offset: float) -> None:
    first, second = np.array([a], dtype=float), np.array([b], dtype=float)
    if expected is None:
        octagon = 8 * (math.sqrt(2) - 1)
        expected = octagon / (8 - octagon)
    first[:, :2] += offset
    second[:, :2] += offset
    for x, y in ((first, second), (second, first)):
        assert O.iou_aligned(x, y)[0] == pytest.approx(expected, abs=1e-12)
        assert O.iou(x, y)[0, 0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("offset", [0.0, 20_000.0])
def test_many_pairs_equal_few(offset: float) -> None:
    rng = np.random.default_rng(4)
    count = O.MANY_PAIRS
    a, b = _random(rng, count, offset=offset), _random(rng, count, offset=offset)
    same = rng.random(count) < 0.3
    b[same] = a[same]
    b[:, :2] += rng.choice([0, 1e-12, 1e-3], (count, 2))
    b[:, 4] += rng.choice([0, 1e-12, math.pi / 2], count)
    a[rng.random(count) < 0.05, 3] = 0.0  # lines
    a[rng.random(count) < 0.05, 4] = 0.0
    b[rng.random(count) < 0.05, 4] = 0.0
    many = O.iou_aligned(a, b)
    few = np.concatenate([O.iou_aligned(a[k : k + 999], b[k : k + 999]) for k in range(0, count, 999)])
    assert (many > 0).mean() > 0.2
    np.testing.assert_allclose(many, few, rtol=0, atol=1e-12)
    solid = a[:, 3] > 0
    np.testing.assert_allclose(many[solid], _shapely_iou(a[solid], b[solid]), rtol=0, atol=1e-9)
    assert (many[~solid] == 0).all()


def test_iou_matrix_holds_every_pair() -> None:
    rng = np.random.default_rng(2)
    a, b = _random(rng, 40, 300), _random(rng, 30, 300)
    matrix = O.iou(a, b)
    i, j = np.divmod(np.arange(1200), 30)
    np.testing.assert_allclose(matrix.ravel(), O.iou_aligned(a[i], b[j]), rtol=0, atol=0)
    apart = shapely.disjoint(shapely.polygons(O.to_corners(a))[i], shapely.polygons(O.to_corners(b))[j])
    np.testing.assert_array_equal(matrix.ravel()[apart], 0)
    assert O.iou(a[:0], b).shape == (0, 30)
    assert O.iou(a, b[:0]).shape == (40, 0)


def test_corners_turn_clockwise_on_the_screen() -> None:
    corners = O.to_corners(np.array([[10.0, 20.0, 4.0, 2.0, math.pi / 2]]))[0]
    np.testing.assert_allclose(corners, [[11, 18], [11, 22], [9, 22], [9, 18]], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.floats(-1e3, 3e4), st.floats(-1e3, 3e4), st.floats(0.5, 500), st.floats(0.5, 500), st.floats(-20, 20)),
    st.permutations([0, 1, 2, 3]),
)
def test_canonical_and_corners_return(values: tuple[float, ...], order: list[int]) -> None:
    box = np.array([values])
    canonical = O.canonical(box)
    _, _, w, h, angle = canonical[0]
    assert w >= h
    low, high = (-math.pi / 4, math.pi / 4) if w == h else (-math.pi / 2, math.pi / 2)
    assert low <= angle < high
    np.testing.assert_array_equal(O.canonical(canonical), canonical)
    assert O.iou_aligned(box, canonical)[0] == pytest.approx(1, abs=1e-9)
    again = O.from_corners(O.to_corners(canonical)[:, order])
    assert O.iou_aligned(again, canonical)[0] == pytest.approx(1, abs=1e-8)
    around = O.from_points(O.to_corners(canonical)[0, order])
    assert around[2] * around[3] == pytest.approx(w * h, rel=1e-6)


@pytest.mark.parametrize(
    "angle", [-math.pi / 2, math.pi / 2, -math.pi / 4, math.pi / 4, np.nextafter(math.pi / 2, 0), 3 * math.pi / 2]
)
@pytest.mark.parametrize("sides", [(4.0, 2.0), (2.0, 4.0), (3.0, 3.0)])
def test_canonical_range_is_half_open(angle: float, sides: tuple[float, float]) -> None:
    result = O.canonical(np.array([[0.0, 0.0, *sides, angle]]))[0]
    limit = math.pi / 4 if sides[0] == sides[1] else math.pi / 2
    assert -limit <= result[4] < limit


def test_smallest_rectangle_equals_shapely() -> None:
    rng = np.random.default_rng(3)
    quads = rng.uniform(0, 50, (200, 4, 2)) + 20_000
    area = O.from_corners(quads)[:, 2:4].prod(axis=1)
    expected = shapely.area(shapely.minimum_rotated_rectangle(shapely.multipoints(quads - 20_000)))
    np.testing.assert_allclose(area, expected, rtol=1e-9)
    points = rng.normal(0, [30, 8], (60, 2)) @ np.array([[0.8, 0.6], [-0.6, 0.8]])
    box = O.from_points(points)
    assert box[2] * box[3] == pytest.approx(shapely.minimum_rotated_rectangle(shapely.MultiPoint(points)).area, rel=1e-6)
    hull = shapely.Polygon(O.to_corners(box)).buffer(1e-9)
    assert shapely.contains_xy(hull, points[:, 0], points[:, 1]).all()


def test_degenerate_corners() -> None:
    line = np.array([[[0.0, 0], [3, 4], [6, 8], [3, 4]], [[7, 7], [7, 7], [7, 7], [7, 7]]])
    result = O.from_corners(line)
    np.testing.assert_allclose(result[0, :4], [3, 4, 10, 0], atol=1e-12)
    np.testing.assert_allclose(result[1, :4], [7, 7, 0, 0], atol=1e-12)
    np.testing.assert_allclose(O.from_points(line[0])[:4], [3, 4, 10, 0], atol=1e-6)
    np.testing.assert_allclose(O.from_points(line[1, :1])[:4], [7, 7, 0, 0], atol=1e-12)
    assert O.from_corners(np.zeros((0, 4, 2))).shape == (0, 5)
    with pytest.raises(LabelError, match="finite"):
        O.from_points(np.zeros((0, 2)))


@pytest.mark.parametrize("convention", get_args(O.OrientedConvention))
def test_conventions_return(convention: O.OrientedConvention) -> None:
    boxes = O.canonical(_random(np.random.default_rng(4), 300))
    there = O.convert(boxes, "canonical", convention)
    np.testing.assert_allclose(O.convert(there, convention, "canonical"), boxes, rtol=0, atol=1e-12)


def test_opencv_convention_is_that_of_min_area_rect() -> None:
    boxes = O.canonical(_random(np.random.default_rng(5), 200))
    boxes[0] = [50, 50, 20, 10, 0]
    boxes[1] = [50, 50, 20, 10, -math.pi / 2]
    theirs = O.convert(boxes, "canonical", "opencv")
    assert (theirs[:, 4] > 0).all()
    assert (theirs[:, 4] <= 90).all()
    for box, row in zip(boxes, theirs, strict=True):
        # OpenCV draws its five numbers to the same corners, and its own answer to them reads back as the box.
        corners = cv2.boxPoints((tuple(row[:2]), tuple(row[2:4]), row[4]))
        assert shapely.Polygon(corners).symmetric_difference(shapely.Polygon(O.to_corners(box))).area < 0.01
        (cx, cy), (w, h), angle = cv2.minAreaRect(O.to_corners(box).astype(np.float32))
        back = O.convert(np.array([[cx, cy, w, h, angle]]), "opencv", "canonical")
        assert O.iou_aligned(back, box[None])[0] > 1 - 1e-3


def test_directions_and_units() -> None:
    box = np.array([[0.0, 0.0, 4.0, 2.0, math.pi / 6]])
    assert O.convert(box, "canonical", "deg-ccw")[0, 4] == pytest.approx(-30)
    assert O.convert(box, "canonical", "deg-cw")[0, 4] == pytest.approx(30)
    assert O.convert(box, "rad-ccw", "rad-cw")[0, 4] == pytest.approx(-math.pi / 6)
    assert O.convert(np.array([[0.0, 0, 2, 2, 1.2]]), "canonical", "le90")[0, 4] == 1.2
    with pytest.raises(OptionError, match="deg-ccw"):
        O.convert(box, "degrees", "canonical")  # type: ignore[arg-type]


def test_bounds_hold_the_corners() -> None:
    boxes = _random(np.random.default_rng(6), 100)
    corners = O.to_corners(boxes)
    np.testing.assert_allclose(O.bounds(boxes), np.hstack([corners.min(axis=1), corners.max(axis=1)]), atol=1e-10)


def _probiou_by_definition(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - Hellinger distance of the Gaussians with covariance R diag(w², h²) R^T / 12."""

    def covariance(boxes: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
        rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
        return rotation @ (np.eye(2) * boxes[:, None, 2:4] ** 2 / 12) @ rotation.transpose(0, 2, 1)

    first, second = covariance(a), covariance(b)
    mean = (first + second) / 2
    offset = (a - b)[:, :2]
    distance = np.einsum("ni,nij,nj->n", offset, np.linalg.inv(mean), offset) / 8
    distance += np.log(np.linalg.det(mean) / np.sqrt(np.linalg.det(first) * np.linalg.det(second))) / 2
    return 1 - np.sqrt(1 - np.exp(-distance))


def test_probiou_equals_its_definition() -> None:
    rng = np.random.default_rng(7)
    a = _random(rng, 500)
    a[:, 2:4] += 2
    b = a + rng.normal(0, [3, 3, 0.5, 0.5, 0.2], (500, 5))
    expected = _probiou_by_definition(a, b)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(O.probiou(a, b), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(O.probiou_matrix(a[:20], b[:30])[np.arange(20), np.arange(20)], expected[:20], atol=1e-9)
    single = O.probiou(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=1e-3)  # the input itself is rounded


def test_probiou_gradient_is_right_and_finite() -> None:
    a = torch.from_numpy(_random(np.random.default_rng(8), 20) + 1).requires_grad_()
    b = torch.from_numpy(_random(np.random.default_rng(8), 20) + 2)
    assert torch.autograd.gradcheck(O.probiou, (a, b))
    edge = torch.tensor([[0.0, 0, 0, 0, 0], [5, 5, 1000, 0.01, 0.3], [5, 5, 10, 10, 0], [9e3, 9e3, 2e3, 1, 1.5]])
    for other in (edge.clone(), edge.flip(0), edge + 1e-6):
        x = edge.clone().requires_grad_()
        value = O.probiou(x, other)
        value.sum().backward()
        assert bool(torch.isfinite(value).all())
        assert bool(((value >= 0) & (value <= 1)).all())
        assert x.grad is not None
        assert bool(torch.isfinite(x.grad).all())
    torch.testing.assert_close(O.probiou(edge, edge), torch.ones(4), rtol=0, atol=0)


def test_probiou_float32_holds_for_slender_boxes() -> None:
    """A 1000 : 1 box against itself moved: differences of covariances would lose all digits here."""
    a = np.array([[100.0, 100.0, 1000.0, 1.0, 0.7]])
    b = a + np.array([[0.3, -0.2, 8.0, 0.05, 0.001]])
    value = O.probiou(torch.from_numpy(a).float(), torch.from_numpy(b).float()).item()
    assert value == pytest.approx(_probiou_by_definition(a, b)[0], abs=1e-4)
