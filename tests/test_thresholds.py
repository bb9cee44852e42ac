"""Choosing the score: every aim against a search over all thresholds, and cases small enough to see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score

from drawn import categories, draw, evidence
from oracles import box_overlap, count_truth, judge
from pelagia.errors import OptionError
from pelagia.metrics.thresholds import BEST_F1, OperatingPoint, ThresholdRule, choose_point, score_curve


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("f1", ThresholdRule("f", 1)),
        ("F0.5", ThresholdRule("f", 0.5)),
        (" f2 ", ThresholdRule("f", 2)),
        ("precision=0.9", ThresholdRule("precision", 0.9)),
        ("precision=1", ThresholdRule("precision", 1)),
        ("Recall=.95", ThresholdRule("recall", 0.95)),
        ("count", ThresholdRule("count", 0)),
    ],
)
def test_rules_are_read(text: str, rule: ThresholdRule) -> None:
    assert ThresholdRule.parse(text) == rule


def test_best_f1_is_the_default() -> None:
    assert ThresholdRule.parse("f1") == BEST_F1 == ThresholdRule()


WRONG = ("", "f", "f0", "f-1", "fnan", "finf", "fast", "precision", "precision=", "precision=0", "precision=1.1", "recall=nan")


@pytest.mark.parametrize("text", [*WRONG, "recall=-0.5", "recall=high", "count=3", "accuracy=0.9", "0.5"])
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="a threshold is chosen by"):
        ThresholdRule.parse(text)


# ---------------------------------------------------------------------------------------------- against a search


def counts(score: np.ndarray, correct: np.ndarray, threshold: float) -> tuple[int, int]:
    """True positives and predictions with at least that score."""
    return int((correct & (score >= threshold)).sum()), int((score >= threshold).sum())


def search(score: np.ndarray, correct: np.ndarray, total: int, rule: ThresholdRule) -> float:
    """The score to cut at, from the definition of the aim; of equals the highest. NaN where there is none."""
    if total == 0 or not correct.any():
        return math.nan
    best, choice = math.nan, (-math.inf,)
    for level in sorted(set(score.tolist()), reverse=True):
        right, predicted = counts(score, correct, level)
        precision, recall = right / predicted, right / total
        beta = rule.value**2
        if rule.aim == "f":
            value = (1 + beta) * precision * recall / (beta * precision + recall) if right else 0.0
        elif rule.aim == "count":
            value = -abs(predicted - total)
        elif rule.aim == "precision":
            value = right if precision >= rule.value else -math.inf
        else:
            value = right - predicted if recall >= rule.value else -math.inf
        if value > choice[0] + 1e-12:
            best, choice = level, (value,)
    return best


RULES = [
    *(ThresholdRule("f", beta) for beta in (0.5, 1.0, 2.0)),
    *(ThresholdRule("precision", value) for value in (0.3, 0.5, 0.8, 1.0)),
    *(ThresholdRule("recall", value) for value in (0.3, 0.5, 0.8, 1.0)),
    ThresholdRule("count", 0),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=25), st.integers(0, 4))
def test_every_aim_equals_the_search(rule: ThresholdRule, drawn: list[tuple[int, bool]], missed: int) -> None:
    drawn.sort(key=lambda item: -item[0])
    score, correct = np.array([s / 12 for s, _ in drawn]), np.array([c for _, c in drawn], dtype=bool)
    total = int(correct.sum()) + missed
    point = choose_point(score_curve(score, correct, np.ones(len(score), dtype=bool), total), rule)
    level = search(score, correct, total, rule)
    if math.isnan(level):
        assert all(math.isnan(value) for value in (point.threshold, point.precision, point.recall, point.f1))
        return
    # The threshold lies between the chosen score and the next lower one, and counts the same predictions.
    lower = score[score < level].max(initial=-math.inf)
    assert lower < point.threshold <= level
    assert point.threshold == pytest.approx((level + lower) / 2 if lower > -math.inf else level)
    right, predicted = counts(score, correct, point.threshold)
    assert (right, predicted) == counts(score, correct, level)
    assert point.precision == pytest.approx(right / predicted)
    assert point.recall == pytest.approx(right / total)
    assert point.f1 == pytest.approx(2 * right / (predicted + total))


def test_of_equally_many_objects_the_higher_precision_wins() -> None:
    score, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, True, False])
    point = choose_point(score_curve(score, correct, np.ones(4, dtype=bool), 5), ThresholdRule("precision", 0.5))
    assert point == OperatingPoint(pytest.approx(0.65), 1.0, pytest.approx(0.6), pytest.approx(0.75))


def test_f_beta_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    score, correct = np.sort(rng.random(40))[::-1], rng.random(40) < 0.6
    curve = score_curve(score, correct, np.ones(40, dtype=bool), int(correct.sum()))
    for beta in (0.5, 1.0, 3.0):
        expected = [fbeta_score(correct, score >= level, beta=beta) for level in score]
        np.testing.assert_allclose(curve.f(beta), expected, atol=1e-12)


def test_what_is_not_scored_is_left_out() -> None:
    score, correct = np.array([0.9, 0.8, 0.8, 0.7]), np.array([True, False, True, True])
    curve = score_curve(score, correct, np.array([True, False, True, True]), 4)
    assert curve.score.tolist() == [0.9, 0.8, 0.7]
    assert curve.correct.tolist() == curve.predicted.tolist() == [1, 2, 3]
    assert curve.precision.tolist() == [1, 1, 1]
    assert curve.recall.tolist() == [0.25, 0.5, 0.75]


def test_f1_at_any_threshold() -> None:
    curve = score_curve(np.array([0.9, 0.5, 0.5]), np.array([True, True, False]), np.ones(3, dtype=bool), 2)
    np.testing.assert_allclose(curve.f1_at(np.array([0.95, 0.9, 0.6, 0.5, 0.0])), [0, 2 / 3, 2 / 3, 0.8, 0.8])
    empty = score_curve(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), 2)
    assert empty.f1_at(np.array([0.0, 1.0])).tolist() == [0, 0]


def test_no_rule_finds_a_point_without_truth_or_hit() -> None:
    one = np.ones(1, dtype=bool)
    for rule in RULES:
        for curve in (score_curve(np.array([0.5]), ~one, one, 0), score_curve(np.array([0.5]), ~one, one, 2)):
            assert math.isnan(choose_point(curve, rule).threshold)
        assert math.isnan(choose_point(score_curve(np.zeros(0), one[:0], one[:0], 2), rule).recall)


@pytest.mark.parametrize("rule", RULES[::2], ids=str)
def test_points_of_a_data_set_equal_the_search(rule: ThresholdRule) -> None:
    truths, predictions = draw(np.random.default_rng(4), images=5, classes=2, objects=8, found=25)
    points = evidence(truths, predictions, 3).points(rule)
    assert list(points) == [item.name for item in categories(3)]
    assert math.isnan(points["taxon 2"].threshold)
    verdicts = judge(truths, predictions, 0.5, box_overlap)
    for label in range(2):
        scored = [(v.score, v.right) for v in verdicts if v.label == label and v.right is not None]
        score, correct = (np.array(column) for column in zip(*scored, strict=True))
        level = search(score, correct, count_truth(truths, label), rule)
        point = points[f"taxon {label}"]
        assert math.isnan(level) == math.isnan(point.threshold)
        if not math.isnan(level):
            assert counts(score, correct, point.threshold) == counts(score, correct, level)
