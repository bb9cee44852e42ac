"""The confusion matrix on cases small enough to count by hand, and its sums on random ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn import draw
from oracles import box_overlap, coco_matches, in_ignored_region, judge, unscored
from pelagia.core.types import Category, Instances
from pelagia.metrics import ConfusionMatrix, evaluate_detection
from pelagia.metrics.confusion import confusion_matrix, match_across
from pelagia.metrics.matching import Comparison, compare
from pelagia.metrics.objects import flatten
from pelagia.metrics.thresholds import choose_point, score_curve

A, B, C, D = ([0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10], [60.0, 0, 70, 10])


def items(labels: list[int], boxes: list[list[float]], scores: list[float] | None = None, **flags: list[bool]) -> Instances:
    given = {name: np.array(value) for name, value in flags.items()}
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Instances(labels=np.array(labels), boxes=array, scores=None if scores is None else np.array(scores), **given)


def compared(truth: Instances, found: Instances, classes: int) -> Comparison:
    return compare(flatten([truth], "boxes", what="truth"), flatten([found], "boxes", what="predictions"), classes)


def count(truth: Instances, found: Instances, threshold: float = 0.0, classes: int = 2) -> list[list[int]]:
    names = [str(label) for label in range(classes)]
    matrix = confusion_matrix(compared(truth, found, classes), names, np.full(classes, threshold))
    values: list[list[int]] = matrix.counts.tolist()
    return values


def test_right_wrong_missed_and_false() -> None:
    truth = items([0, 0, 1], [A, B, C])
    found = items([0, 1, 1], [A, B, D], [0.9, 0.8, 0.7])
    assert count(truth, found) == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_predictions_below_the_threshold_are_left_out() -> None:
    truth, found = items([0], [A]), items([0, 1], [A, B], [0.4, 0.6])
    assert count(truth, found, 0.5) == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_a_duplicate_is_false_and_the_own_class_comes_first() -> None:
    truth = items([1], [A])
    found = items([0, 1, 1], [A, A, A], [0.9, 0.8, 0.7])
    assert count(truth, found) == [[0, 0, 0], [0, 1, 0], [1, 1, 0]]


def test_crowds_difficult_objects_and_ignore_regions_do_not_count() -> None:
    truth = items([0, 0, 1], [A, B, C], crowd=[True, False, False], difficult=[False, True, False], ignore=[False, False, True])
    found = items([0, 0, 0, 0], [A, A, B, C], [0.9, 0.8, 0.7, 0.6])
    assert count(truth, found) == [[0, 0, 0]] * 3


def test_no_truth_and_no_prediction() -> None:
    assert count(Instances.empty(), items([1], [A], [0.5])) == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert count(items([1], [A]), Instances.empty(scores=True)) == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_a_class_without_threshold_is_never_predicted() -> None:
    comparison = compared(items([0, 1], [A, B]), items([0, 1], [A, B], [0.5, 0.5]), 2)
    matrix = confusion_matrix(comparison, ["a", "b"], np.array([0.5, np.nan]))
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert matrix.to_dict()["thresholds"] == [0.5, None]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(0, 20))
def test_rows_sum_to_truth_and_columns_to_predictions(seed: int, real: int, many: int) -> None:
    rng = np.random.default_rng(seed)
    places = np.array([A, B, C, D])
    truth = Instances(labels=rng.integers(0, 3, real), boxes=places[rng.integers(0, 4, real)])
    found = Instances(labels=rng.integers(0, 3, many), boxes=places[rng.integers(0, 4, many)] + 1, scores=rng.random(many))
    result = evaluate_detection([truth], [found], [Category(i, str(i)) for i in range(3)], score_threshold=0.5)
    counts = result.confusion.counts
    kept = found.select(found.scores >= 0.5) if found.scores is not None else found
    assert counts[:3].sum(axis=1).tolist() == np.bincount(truth.labels, minlength=3).tolist()
    assert counts[:, :3].sum(axis=0).tolist() == np.bincount(kept.labels, minlength=3).tolist()
    assert counts[3, 3] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_drawn_matrices_equal_the_loop(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=images, classes=3, objects=8, found=15)
    truths = [
        item.replace(ignore=(rng.random(len(item)) < 0.1) & ~item.crowd, difficult=rng.random(len(item)) < 0.1) for item in truths
    ]
    levels = rng.random(3)
    comparison = compare(flatten(truths, "boxes", what="truth"), flatten(predictions, "boxes", what="predictions"), 3)
    expected = np.zeros((4, 4), dtype=int)
    for truth, found in zip(truths, predictions, strict=True):
        used = found.select(found.scores >= levels[found.labels])
        verdicts = judge([truth], [used], 0.5, box_overlap)
        taken = {v.truth for v in verdicts if v.right}
        for j in taken:
            expected[truth.labels[j], truth.labels[j]] += 1
        lost = [j for j in range(len(truth)) if j not in taken and not unscored(truth, j)]
        spare = [v.index for v in verdicts if v.truth < 0]
        mistaken = coco_matches(truth, used, (spare, lost), 0.5, box_overlap)
        for i, j in mistaken.items():
            expected[truth.labels[j], used.labels[i]] += 1
        for i in set(spare) - set(mistaken):
            expected[3, used.labels[i]] += not in_ignored_region(truth, used, i, box_overlap)
        for j in set(lost) - set(mistaken.values()):
            expected[truth.labels[j], 3] += 1
    assert confusion_matrix(comparison, ["a", "b", "c"], levels).counts.tolist() == expected.tolist()


def test_matching_across_classes_goes_by_score() -> None:
    comparison = compared(items([0, 1], [A, B]), items([1, 0, 1], [A, A, C], [0.5, 0.9, 0.8]), 2)
    everyone, objects = np.arange(3), np.arange(2)
    assert match_across(comparison, everyone, objects, 0.5).tolist() == [-1, 0, -1]
    assert match_across(comparison, everyone[:1], objects, 0.5).tolist() == [0]
    assert match_across(comparison, everyone, objects[1:], 0.5).tolist() == [-1, -1, -1]


def test_the_diagonal_holds_the_true_positives_of_the_best_thresholds() -> None:
    rng = np.random.default_rng(3)
    corner = rng.integers(0, 300, (60, 2))
    boxes = np.concatenate([corner, corner + 20], axis=1)
    truth = Instances(labels=rng.integers(0, 2, 60), boxes=boxes)
    found = Instances(
        labels=np.where(rng.random(60) < 0.8, truth.labels, 0), boxes=boxes + rng.integers(-6, 7, (60, 4)), scores=rng.random(60)
    )
    result = evaluate_detection([truth], [found], [Category(1, "a"), Category(2, "b")])
    for label, item in enumerate(result.classes):
        assert result.confusion.counts[label, label] == pytest.approx(item.best.recall * item.truths)
        assert result.confusion.counts[:, label].sum() * item.best.precision == pytest.approx(item.best.recall * item.truths)


def test_shares_and_json() -> None:
    matrix = ConfusionMatrix(np.array([[3, 1, 0], [0, 0, 0], [1, 0, 0]]), ("a", "b"), np.array([0.5, 0.5]), 0.5)
    assert matrix.normalised("truth").tolist() == [[0.75, 0.25, 0], [0, 0, 0], [1, 0, 0]]
    assert matrix.normalised("predicted")[:, 0].tolist() == [0.75, 0, 0.25]
    values = json.loads(json.dumps(matrix.to_dict()))
    assert values["class_names"] == ["a", "b", "background"]
    assert values["counts"][0] == [3, 1, 0]


def test_best_f1_keeps_equal_scores_together() -> None:
    score = np.array([0.9, 0.6, 0.6, 0.6, 0.1])
    correct = np.array([True, True, False, False, True])
    point = choose_point(score_curve(score, correct, np.ones(5, dtype=bool), 3))
    assert point.f1 == pytest.approx(0.75)  # all five; a cut inside the three equal scores would give 0.8
    assert point.threshold == 0.1
    first = choose_point(score_curve(score[:4], correct[:4], np.ones(4, dtype=bool), 1))
    assert first.threshold == pytest.approx(0.75)
    assert (first.precision, first.recall) == (1, 1)


def test_neighbouring_scores_keep_the_threshold_on_the_right_side() -> None:
    high = 0.5
    low = float(np.nextafter(high, 0))
    point = choose_point(score_curve(np.array([high, low]), np.array([True, False]), np.ones(2, dtype=bool), 1))
    assert low < point.threshold <= high


def test_no_operating_point_without_truth_or_hit() -> None:
    one = np.ones(1, dtype=bool)
    assert np.isnan(choose_point(score_curve(np.array([0.5]), ~one, one, 0)).threshold)
    assert np.isnan(choose_point(score_curve(np.array([0.5]), ~one, one, 2)).f1)
    assert np.isnan(choose_point(score_curve(np.zeros(0), one[:0], one[:0], 2)).f1)
