"""NMS against torchvision and against the rule as a plain loop."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from pelagia.core import boxes as axis_aligned
from pelagia.core import nms as N
from pelagia.core import oriented as oriented_boxes
from pelagia.errors import LabelError, OptionError


@pytest.fixture(autouse=True, params=[N.MANY_PAIRS, 1], ids=["few by numpy", "all compiled"], scope="module")
def _pairs(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(N, "MANY_PAIRS", request.param)
        yield


def _boxes(rng: np.random.Generator, count: int, extent: float, low: float, high: float) -> np.ndarray:
    centre, side = rng.uniform(0, extent, (count, 2)), np.exp(rng.uniform(np.log(low), np.log(high), (count, 2)))
    return np.hstack([centre - side / 2, centre + side / 2])


def _torchvision(boxes: np.ndarray, scores: np.ndarray, threshold: float, labels: np.ndarray | None = None) -> np.ndarray:
    if labels is None:
        return ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy()
    kept = np.zeros(len(boxes), dtype=bool)
    for label in np.unique(labels):
        index = np.flatnonzero(labels == label)
        kept[index[_torchvision(boxes[index], scores[index], threshold)]] = True
    order = np.argsort(-scores, kind="stable")
    return order[kept[order]]


def _loop(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    labels: np.ndarray,
    iou: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> list[int]:
    """The rule, word for word."""
    kept: list[int] = []
    overlap = iou(boxes, boxes)
    for i in np.argsort(-scores, kind="stable").tolist():
        if not any(labels[i] == labels[j] and overlap[i, j] > threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0])
@pytest.mark.parametrize(("count", "low", "high"), [(0, 1, 2), (1, 1, 2), (300, 5, 60), (3000, 0.01, 300), (3000, 20, 24)])
def test_equals_torchvision(threshold: float, count: int, low: float, high: float) -> None:
    rng = np.random.default_rng(count)
    boxes = _boxes(rng, count, 300, low, high)
    scores = np.round(rng.uniform(0, 1, count), 2)  # many ties
    labels = rng.integers(0, 5, count)
    np.testing.assert_array_equal(N.nms(boxes, scores, threshold), _torchvision(boxes, scores, threshold))
    np.testing.assert_array_equal(N.nms(boxes, scores, threshold, labels), _torchvision(boxes, scores, threshold, labels))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 2 / 3, 0.7, 1.0]), st.integers(1, 6))
def test_equals_the_rule_where_overlaps_meet_the_threshold(seed: int, count: int, threshold: float, extent: int) -> None:
    """Whole coordinates on a small field: equal boxes, empty boxes, and IoUs exactly at the threshold are common."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, extent, (count, 2))
    boxes = np.hstack([corner, corner + rng.integers(0, 5, (count, 2))]).astype(float)
    scores, labels = rng.integers(0, 4, count) / 4, rng.integers(0, 3, count)
    expected = _loop(boxes, scores, threshold, labels, axis_aligned.iou)
    assert N.nms(boxes, scores, threshold, labels).tolist() == expected
    np.testing.assert_array_equal(N.nms(boxes, scores, threshold), _torchvision(boxes, scores, threshold))


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("extent", [5.0, 100.0, 2000.0])
def test_oriented_equals_the_rule(threshold: float, extent: float) -> None:
    rng = np.random.default_rng(int(extent))
    count = 300
    boxes = np.column_stack(
        [rng.uniform(0, extent, (count, 2)) + 20_000, np.exp(rng.uniform(0, 5, (count, 2))), rng.uniform(-2, 2, count)]
    )
    boxes[::17, 3] = 0
    boxes[100:120] = boxes[:20]
    scores, labels = np.round(rng.uniform(0, 1, count), 1), rng.integers(0, 2, count)
    expected = _loop(boxes, scores, threshold, labels, oriented_boxes.iou)
    assert N.nms_oriented(boxes, scores, threshold, labels).tolist() == expected
    everything = np.zeros(count, dtype=np.int64)
    assert N.nms_oriented(boxes, scores, threshold).tolist() == _loop(boxes, scores, threshold, everything, oriented_boxes.iou)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_rounds_equal_torchvision(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small budget of pairs the strongest are settled first, in many rounds."""
    monkeypatch.setattr(N, "_PAIRS_A_ROUND", 2000)
    monkeypatch.setattr(N, "_PAIRS_AN_OBJECT", 0)
    monkeypatch.setattr(N, "_PAIRS_AT_ONCE", 500)
    monkeypatch.setattr(N, "_FIRST_ROUND", 16)
    rng = np.random.default_rng(3)
    boxes, scores = _boxes(rng, 3000, 150, 3, 120), rng.uniform(0, 1, 3000)
    labels = rng.integers(0, 3, 3000)
    np.testing.assert_array_equal(N.nms(boxes, scores, threshold), _torchvision(boxes, scores, threshold))
    np.testing.assert_array_equal(N.nms(boxes, scores, threshold, labels), _torchvision(boxes, scores, threshold, labels))


@pytest.mark.parametrize("extent", [0.0, 60.0])
def test_memory_stays_bounded_where_everything_overlaps(extent: float) -> None:
    """20,000 boxes on one spot: a matrix of all pairs as bytes would take 400 MB."""
    rng = np.random.default_rng(4)
    boxes, scores = _boxes(rng, 20_000, extent, 80, 120), rng.uniform(0, 1, 20_000)
    tracemalloc.start()
    kept = N.nms(boxes, scores, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(kept, _torchvision(boxes, scores, 0.5))
    assert peak < 100e6


def test_extreme_extents_keep_the_answer() -> None:
    """Boxes of a thousandth of a pixel beside ones of a million: the grid must neither overflow nor lose partners."""
    rng = np.random.default_rng(5)
    boxes = np.concatenate([_boxes(rng, 300, 1.0, 1e-3, 1e-1), _boxes(rng, 300, 1e6, 1e3, 1e6), _boxes(rng, 300, 1e9, 1.0, 10.0)])
    boxes = np.concatenate([boxes, boxes + 1e-4])
    scores, labels = rng.uniform(0, 1, len(boxes)), rng.integers(0, 1000, len(boxes)) * 10**12
    for threshold in (0.0, 0.5, 0.9):
        np.testing.assert_array_equal(N.nms(boxes, scores, threshold), _torchvision(boxes, scores, threshold))
        np.testing.assert_array_equal(N.nms(boxes, scores, threshold, labels), _torchvision(boxes, scores, threshold, labels))


@pytest.mark.parametrize("function", [N.nms, N.nms_oriented])
def test_refuses_what_cannot_be_sorted_out(function: Callable[..., np.ndarray]) -> None:
    width = 4 if function is N.nms else 5
    boxes = np.ones((3, width))
    with pytest.raises(OptionError, match="0 to 1"):
        function(boxes, np.ones(3), 1.5)
    with pytest.raises(LabelError, match="must agree"):
        function(boxes, np.ones(2), 0.5)
    with pytest.raises(LabelError, match="must agree"):
        function(boxes, np.ones(3), 0.5, np.ones(4))
    boxes[1, 0] = np.nan
    with pytest.raises(LabelError, match="first at 1"):
        function(boxes, np.ones(3), 0.5)
    with pytest.raises(LabelError, match="numbers"):
        function(np.ones((3, width + 1)), np.ones(3), 0.5)


def test_soft_nms_by_hand() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60], [0, 0, 10, 10]])
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    index, lowered = N.soft_nms(boxes, scores, sigma=0.5)
    assert index.tolist() == [0, 2, 1, 3]
    second = 0.8 * np.exp(-0.25 / 0.5)
    np.testing.assert_allclose(lowered, [0.9, 0.7, second, 0.6 * np.exp(-2) * np.exp(-0.25 / 0.5)])
    index, lowered = N.soft_nms(boxes, scores, iou_threshold=0.6)
    assert index.tolist() == [0, 1, 2]  # the equal box falls to zero, the half one stays untouched
    np.testing.assert_allclose(lowered, [0.9, 0.8, 0.7])
    index, lowered = N.soft_nms(boxes, scores, labels=np.arange(4))
    assert index.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(lowered, scores)
    with pytest.raises(OptionError, match="sigma"):
        N.soft_nms(boxes, scores, sigma=0)
