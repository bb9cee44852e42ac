"""Angle errors against the angle between direction vectors of matched boxes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn import categories, different_scores, draw, evidence, one_box, repeated, rotated
from oracles import judge, oriented_overlap
from pelagia.core.oriented import canonical
from pelagia.core.types import Instances
from pelagia.errors import EvaluationError
from pelagia.metrics.angles import AngleErrors, angle_errors
from pelagia.metrics.bootstrap import image_weights
from pelagia.metrics.statistics import angle_statistic


def between(a: float, b: float) -> float:
    """Degrees between two lines, from the vectors along them."""
    one, two = (np.array([math.cos(angle), math.sin(angle)]) for angle in (a, b))
    return math.degrees(math.atan2(abs(one[0] * two[1] - one[1] * two[0]), abs(one @ two)))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_drawn_errors_equal_the_angle_between_lines(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = (rotated(rng, items) for items in draw(rng, images=images, classes=2, objects=6, found=10))
    got = angle_errors(evidence(truths, predictions, 2, "oriented"))
    expected: list[tuple[int, float]] = []
    skipped = 0
    for v in judge(truths, predictions, 0.5, oriented_overlap):
        if not v.right:
            continue
        _, _, w, h, angle = truths[v.image].oriented[v.truth]
        if max(w, h) < 1.1 * min(w, h):
            skipped += 1
        else:
            expected.append((v.label, between(predictions[v.image].oriented[v.index, 4], angle)))
    assert got.skipped == skipped
    np.testing.assert_allclose(np.sort(got.degrees), sorted(value for _, value in expected), atol=1e-9)
    for label in range(2):
        mine = sorted(value for number, value in expected if number == label)
        np.testing.assert_allclose(np.sort(got.by_class[f"taxon {label}"]), mine, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_weights_equal_the_summary_of_repeated_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=4, classes=2, objects=6, found=10)
    predictions = different_scores(rng, predictions)
    truths, predictions = rotated(rng, truths), rotated(rng, predictions)
    statistic = angle_statistic(angle_errors(evidence(truths, predictions, 2, "oriented")))
    for resample in range(4):
        weights = image_weights(4, seed, resample)
        drawn = repeated(truths, weights), repeated(predictions, weights)
        values: dict[str, list[float]] = {"": [], "taxon 0": [], "taxon 1": []}
        for v in judge(*drawn, 0.5, oriented_overlap):
            _, _, w, h, angle = drawn[0][v.image].oriented[v.truth] if v.right else (0, 0, 1, 1, 0)
            if v.right and max(w, h) >= 1.1 * min(w, h):
                for name in ("", f"taxon {v.label}"):
                    values[name].append(between(drawn[1][v.image].oriented[v.index, 4], angle))
        got = statistic(weights)
        for name, degrees in values.items():
            numbers = (np.mean(degrees), np.median(degrees), np.quantile(degrees, 0.9)) if degrees else (math.nan,) * 3
            for title, expected in zip(("mean", "median", "90 %"), numbers, strict=True):
                assert got[name, f"angle error, {title}"] == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_weighted_quantiles_are_those_of_the_repeated_values() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 7, 50):
        degrees = np.sort(np.round(rng.uniform(0, 90, count), 1))
        errors = AngleErrors(degrees, np.zeros(count, dtype=int), np.arange(count), ("a",), 0)
        for _ in range(20):
            weights = rng.integers(0, 4, count).astype(float)
            many = np.repeat(degrees, weights.astype(int))
            got = errors.summary(weights)["a"]
            expected = [np.mean(many), np.median(many), np.quantile(many, 0.9)] if len(many) else [math.nan] * 3
            assert list(got.values()) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def turned(degrees: list[float], w: float = 40, h: float = 30, **more: np.ndarray) -> Instances:
    """Boxes far apart, turned by so many degrees."""
    boxes = [[200 * n, 0, w, h, math.radians(value)] for n, value in enumerate(degrees)]
    return Instances(labels=np.zeros(len(degrees)), oriented=canonical(np.array(boxes).reshape(-1, 5)), **more)


@pytest.mark.parametrize(
    ("real", "found", "error"),
    [(10, 10, 0), (10, 25, 15), (-80, 85, 15), (89, -89, 2), (0, 90, 90), (-90, 89.5, 0.5), (170, -10, 0)],
)
def test_half_a_turn_is_no_error(real: float, found: float, error: float) -> None:
    got = angle_errors(evidence([turned([real])], [turned([found], scores=np.ones(1))], 1, "oriented", iou_thresholds=(0.1,)))
    assert got.degrees == pytest.approx([error], abs=1e-9)


def test_nearly_square_objects_have_no_angle() -> None:
    for w, counted in ((30, 0), (32.9, 0), (33.1, 1)):
        got = angle_errors(evidence([turned([5], w)], [turned([15], 40, scores=np.ones(1))], 1, "oriented"))
        assert (len(got.degrees), got.skipped) == (counted, 1 - counted)


def test_only_true_positives_count_whatever_their_score() -> None:
    truth = turned([0, 0, 0]).replace(difficult=np.array([False, True, False]))
    found = turned([5, 7, 60], scores=np.array([0.01, 0.9, 0.8]))
    got = angle_errors(evidence([truth], [found], 1, "oriented", iou_thresholds=(0.5, 0.75)))
    assert got.degrees == pytest.approx([5, 60])
    strict = angle_errors(evidence([truth], [found], 1, "oriented", iou_thresholds=(0.8,)))
    assert strict.degrees == pytest.approx([5])


def test_table_and_json() -> None:
    errors = np.array([1.0, 2.0, 3.0, 4.0, 40.0])
    got = AngleErrors(errors, np.array([0, 0, 0, 0, 2]), np.zeros(5, dtype=int), ("a", "b", "c"), 3)
    values = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert values["degrees"]["all"] == {"objects": 5, "mean": 10, "median": 3, "p90": pytest.approx(25.6)}
    assert values["degrees"]["a"]["median"] == 2.5
    assert values["degrees"]["b"] == {"objects": 0, "mean": None, "median": None, "p90": None}
    header, rows = got.rows()
    assert [row[0] for row in rows] == ["all", "a", "b", "c"]
    assert all(len(row) == len(header) for row in rows)
    assert "3 nearly square objects" in got.lines()[-1]


def test_other_shapes_have_no_angle() -> None:
    with pytest.raises(EvaluationError, match="oriented"):
        angle_errors(evidence([one_box(1)], [one_box(1, scores=np.ones(1))], 1))


def test_nothing_found() -> None:
    none = Instances.empty(oriented=True, scores=True)
    got = angle_errors(evidence([turned([0])], [none], 2, "oriented"))
    assert len(got.degrees) == got.skipped == 0
    assert list(got.by_class) == [item.name for item in categories(2)]
