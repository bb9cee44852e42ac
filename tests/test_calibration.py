"""Calibration measures against loops written from the definitions and against scikit-learn."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics import reliability as reliability_module
from pelagia.metrics.bootstrap import image_weights
from pelagia.metrics.calibration import classification_calibration, detection_calibration, place_scores
from pelagia.metrics.reliability import CalibrationTally, Reliability, brier, reliability
from pelagia.metrics.statistics import calibration_statistic, pixel_calibration_statistic

NONE = np.zeros(0)


def sample(seed: int, count: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are too sure of themselves, and outcomes; with `ties` few distinct scores, 0, 1 and bin edges among them."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 11, count) / 10 if ties else rng.random(count)
    return score, rng.random(count) < 0.8 * score


def naive_bins(score: Any, correct: Any, weights: Any, edges: list[float]) -> list[tuple[float, float, float]]:
    """(weight, mean score, accuracy) of each bin that holds something: (low, high], and 0 in the first."""
    rows = []
    for index in range(len(edges) - 1):
        inside = []
        for position, value in enumerate(score):
            first = index == 0 and value == 0
            if first or edges[index] < value <= edges[index + 1]:
                inside.append(position)
        mass = sum(weights[i] for i in inside)
        if mass > 0:
            rows.append(
                (mass, sum(weights[i] * score[i] for i in inside) / mass, sum(weights[i] * correct[i] for i in inside) / mass)
            )
    return rows


def naive_edges(score: Any, weights: Any, bins: int) -> list[float]:
    """Inner edge k: the smallest score up to which the samples hold at least the share k / bins of the weight."""
    edges = [0.0]
    distinct = sorted(set(score))
    for k in range(1, bins):
        for value in distinct:
            held = sum(w for s, w in zip(score, weights, strict=True) if s <= value)
            if held >= k * sum(weights) / bins:
                if value < distinct[-1] and (value not in edges or (value == 0 and edges == [0.0])):
                    edges.append(value)
                break
    return [*edges, 1.0]


def assert_same(result: Reliability, rows: list[tuple[float, float, float]]) -> None:
    used = result.weight > 0
    assert result.weight[used] == pytest.approx([row[0] for row in rows])
    assert result.score[used] == pytest.approx([row[1] for row in rows])
    assert result.accuracy[used] == pytest.approx([row[2] for row in rows])
    total = sum(row[0] for row in rows)
    assert result.ece == pytest.approx(sum(row[0] * abs(row[1] - row[2]) for row in rows) / total)
    assert result.mce == pytest.approx(max(abs(row[1] - row[2]) for row in rows))
    assert result.overconfidence == pytest.approx(sum(row[0] * (row[1] - row[2]) for row in rows) / total)
    assert np.isnan(result.gap[~used]).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 20), st.booleans(), st.booleans())
def test_equal_width_is_the_naive_loop(seed: int, count: int, bins: int, ties: bool, weighted: bool) -> None:
    score, correct = sample(seed, count, ties=ties)
    weights = np.random.default_rng(seed).random(count) + 0.1 if weighted else None
    result = reliability(score, correct, bins=bins, weights=weights)
    mass = [1.0] * count if weights is None else weights.tolist()
    assert result.edges.tolist() == np.linspace(0, 1, bins + 1).tolist()
    assert result.count.sum() == count
    assert_same(result, naive_bins(score.tolist(), correct.tolist(), mass, result.edges.tolist()))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12), st.booleans(), st.booleans())
def test_equal_mass_is_the_naive_loop(seed: int, count: int, bins: int, ties: bool, weighted: bool) -> None:
    score, correct = sample(seed, count, ties=ties)
    weights = np.random.default_rng(seed).integers(1, 5, count) if weighted else np.ones(count, dtype=np.int64)
    result = reliability(score, correct, bins=bins, adaptive=True, weights=weights if weighted else None)
    edges = naive_edges(score.tolist(), weights.tolist(), bins)
    assert result.edges.tolist() == edges
    if edges[:2] == [0.0, 0.0]:
        # The first bin is the zeros alone, which the loop over half-open bins would count again in the second.
        zero = score == 0
        rest = naive_bins(score[~zero].tolist(), correct[~zero].tolist(), weights[~zero].tolist(), edges[1:])
        rows = [*naive_bins(score[zero].tolist(), correct[zero].tolist(), weights[zero].tolist(), edges[:2]), *rest]
    else:
        rows = naive_bins(score.tolist(), correct.tolist(), weights.tolist(), edges)
    assert_same(result, rows)


def test_equal_mass_bins_hold_equal_numbers_and_keep_ties_together() -> None:
    score, correct = sample(1, 150)
    assert reliability(score, correct, adaptive=True).count.tolist() == [10] * 15
    tied = np.repeat([0.0, 0.2, 0.9], [60, 30, 10])
    result = reliability(tied, np.zeros(100), bins=10, adaptive=True)
    assert result.edges.tolist() == [0, 0, 0.2, 1]
    assert result.count.tolist() == [60, 30, 10]
    assert reliability(np.full(5, 0.5), np.ones(5), adaptive=True).edges.tolist() == [0, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_weight_is_a_repetition(seed: int, adaptive: bool) -> None:
    score, correct = sample(seed, 30, ties=True)
    times = np.random.default_rng(seed).integers(1, 4, 30)
    weighted = reliability(score, correct, bins=6, adaptive=adaptive, weights=times)
    repeated = reliability(np.repeat(score, times), np.repeat(correct, times), bins=6, adaptive=adaptive)
    assert weighted.edges.tolist() == repeated.edges.tolist()
    assert weighted.weight.tolist() == repeated.weight.tolist()
    assert weighted.ece == pytest.approx(repeated.ece)
    assert weighted.mce == pytest.approx(repeated.mce)


@pytest.mark.parametrize("ties", [False, True])
def test_the_diagram_is_that_of_scikit_learn(ties: bool) -> None:
    score, correct = sample(2, 2000, ties=ties)
    result = reliability(score, correct, bins=10)
    accuracy, mean = calibration_curve(correct, score, n_bins=10)
    used = result.count > 0
    assert result.accuracy[used] == pytest.approx(accuracy)
    assert result.score[used] == pytest.approx(mean)


def test_brier_is_that_of_scikit_learn() -> None:
    score, correct = sample(3, 500)
    assert brier(score, correct) == pytest.approx(brier_score_loss(correct, score))
    assert brier(np.array([1, 0]), np.array([True, False])) == 0


def test_four_predictions_by_hand() -> None:
    result = reliability(np.array([0.2, 0.4, 0.9, 0.7]), np.array([0, 1, 1, 0]), bins=2)
    assert result.gap == pytest.approx([0.3 - 0.5, 0.8 - 0.5])
    assert result.ece == pytest.approx(0.25)
    assert result.mce == pytest.approx(0.3)
    assert result.overconfidence == pytest.approx(0.05)


def test_an_edge_belongs_to_the_bin_below_and_zero_to_the_first() -> None:
    edges = np.linspace(0, 1, 16)
    assert reliability(edges, np.zeros(16)).count.tolist() == [2] + [1] * 14
    assert reliability(np.nextafter(edges[1:15], 1), np.zeros(14)).count.tolist() == [0] + [1] * 14


def test_calibrated_scores_have_a_small_error_and_distorted_ones_a_large_one() -> None:
    rng = np.random.default_rng(4)
    score = rng.random(50_000)
    correct = rng.random(50_000) < score
    for adaptive in (False, True):
        assert reliability(score, correct, adaptive=adaptive).ece < 0.01
        sharp = reliability(score**3 / (score**3 + (1 - score) ** 3), correct, adaptive=adaptive)
        assert sharp.ece > 0.08
        assert abs(sharp.overconfidence) < 0.01  # too high above one half, too low below
    assert reliability(np.sqrt(score), correct).overconfidence == pytest.approx(2 / 3 - 1 / 2, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 200), min_size=1, max_size=5), st.integers(1, 20), st.booleans())
def test_a_tally_is_the_reliability_of_everything(seed: int, sizes: list[int], bins: int, ties: bool) -> None:
    score, correct = sample(seed, sum(sizes), ties=ties)
    first, second = CalibrationTally(bins), CalibrationTally(bins)
    cuts = np.cumsum(sizes)[:-1]
    for position, (part, right) in enumerate(zip(np.split(score, cuts), np.split(correct, cuts), strict=True)):
        (first, second)[position % 2].add(part, right)
    second.merge(first)
    result, expected = second.result(), reliability(score, correct, bins=bins)
    assert result.count.dtype == np.int64
    assert result.count.tolist() == expected.count.tolist()
    assert result.accuracy == pytest.approx(expected.accuracy, abs=1e-12, nan_ok=True)
    assert result.score == pytest.approx(expected.score, abs=1e-12, nan_ok=True)
    assert result.ece == pytest.approx(expected.ece, abs=1e-12, nan_ok=True)


def test_a_tally_takes_maps_of_any_shape_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability_module, "_AT_ONCE", 1000)
    score, correct = sample(5, 100 * 123)
    score = score.astype(np.float32)
    tally = CalibrationTally()
    tally.add(score.reshape(100, 123).T, correct.reshape(100, 123).T)
    expected = reliability(score, correct)
    assert tally.sums[0].tolist() == expected.count.tolist()
    assert tally.result().ece == pytest.approx(expected.ece, abs=1e-12)
    before = tally.result()
    tally.add(np.full((2, 2), 0.5), np.ones((2, 2)))
    assert before.count.sum() == 12_300  # a result does not change afterwards


def test_a_refused_map_leaves_the_tally_as_it_was() -> None:
    tally = CalibrationTally(4)
    with pytest.raises(EvaluationError, match="NaN"):
        tally.add(np.array([0.5, np.nan]), np.array([1, 0]))
    assert tally.sums[0].sum() == 0
    with pytest.raises(EvaluationError, match="5 bins"):
        tally.merge(CalibrationTally(5))


@pytest.mark.parametrize("seed", range(4))
def test_weighted_images_of_a_tally_are_repeated_images(seed: int) -> None:
    parts = [sample(seed + n, size) for n, size in enumerate((40, 0, 7, 150, 3))]
    tally = CalibrationTally(6)
    for image, (score, correct) in enumerate(parts):
        tally.add(score[:3], correct[:3], image=image)
        tally.add(score[3:], correct[3:], image=image)
    statistic = pixel_calibration_statistic(tally, 6)  # the last image has no scored pixel and was not added
    for resample in range(10):
        weights = image_weights(6, seed, resample)
        drawn = [parts[n] for n in range(5) for _ in range(int(weights[n]))]
        score, correct = (np.concatenate([NONE, *(part[side] for part in drawn)]) for side in (0, 1))
        expected, got = reliability(score, correct, bins=6), statistic(weights)
        for name, value in (("ECE", expected.ece), ("MCE", expected.mce), ("overconfidence", expected.overconfidence)):
            assert got["", name] == pytest.approx(value, abs=1e-12, nan_ok=True)
    tally.add(np.array([0.5]), np.array([1]))
    with pytest.raises(OptionError, match="image="):
        tally.image_sums()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("placed", [False, True])
def test_detections_of_weighted_images_are_repeated_detections(seed: int, placed: bool) -> None:
    rng = np.random.default_rng(seed)
    score, correct = sample(seed, 400)
    image, position = rng.integers(0, 9, 400), rng.random((400, 4))
    options: dict[str, Any] = {"bins": 7, "position_bins": (2, 2, 1, 2, 1), "least": 5}
    scores = place_scores(score, correct, image, position=position if placed else None, **options)
    statistic = calibration_statistic(scores)
    for resample in range(10):
        weights = image_weights(9, seed, resample)
        times = weights[image].astype(int)
        drawn = [np.repeat(part, times, axis=0) for part in (score, correct, position)]
        expected = detection_calibration(drawn[0], drawn[1], position=drawn[2] if placed else None, **options)
        got, numbers = scores.result(weights), statistic(weights)
        for name in ("d_ece", "d_ece_position", "kept", "kept_position"):
            assert getattr(got, name) == pytest.approx(getattr(expected, name), abs=1e-12, nan_ok=True)
        wanted = {"ECE": expected.confidence.ece, "MCE": expected.confidence.mce, "D-ECE": expected.d_ece}
        wanted |= {"overconfidence": expected.confidence.overconfidence}
        wanted |= {"D-ECE, place and size": expected.d_ece_position} if placed else {}
        assert numbers == {("", name): pytest.approx(value, abs=1e-12) for name, value in wanted.items()}


def softmax(seed: int, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight = np.exp(2 * rng.normal(size=(count, classes)))
    return weight / weight.sum(axis=1, keepdims=True), rng.integers(0, classes, count)


def test_class_probabilities_against_loops_and_scikit_learn() -> None:
    probabilities, labels = softmax(6, 300, 4)
    result = classification_calibration(probabilities, labels, bins=10)
    edges = np.linspace(0, 1, 11).tolist()
    top = [max(row) for row in probabilities.tolist()]
    hit = [row.index(max(row)) == label for row, label in zip(probabilities.tolist(), labels, strict=True)]
    assert_same(result.top_label, naive_bins(top, hit, [1.0] * 300, edges))
    errors = []
    for label in range(4):
        rows = naive_bins(probabilities[:, label].tolist(), (labels == label).tolist(), [1.0] * 300, edges)
        errors.append(sum(weight * abs(score - share) for weight, score, share in rows) / 300)
    assert result.classwise_ece == pytest.approx(np.mean(errors))
    squares = [sum((p - (c == y)) ** 2 for c, p in enumerate(row)) for row, y in zip(probabilities, labels, strict=True)]
    assert result.brier == pytest.approx(np.mean(squares))
    assert result.nll == pytest.approx(log_loss(labels, probabilities, labels=np.arange(4)))
    assert result.ece == result.top_label.ece


def test_a_perfect_and_a_hopeless_classifier() -> None:
    perfect = classification_calibration(np.eye(3), np.arange(3))
    assert (perfect.ece, perfect.classwise_ece, perfect.brier, perfect.nll) == (0, 0, 0, 0)
    hopeless = classification_calibration(np.eye(3), np.array([1, 2, 0]))
    assert (hopeless.ece, hopeless.brier) == (1, 2)
    assert hopeless.classwise_ece == pytest.approx(2 / 3)
    assert hopeless.nll == pytest.approx(-math.log(np.finfo(np.float64).eps))


def naive_d_ece(columns: list[Any], bins: list[int], correct: Any, least: int) -> tuple[float, float]:
    cells: dict[tuple[int, ...], list[int]] = {}
    for position in range(len(correct)):
        cell = []
        for column, size in zip(columns, bins, strict=True):
            value = min(max(column[position], 0), 1)
            index = 0
            while value > np.linspace(0, 1, size + 1)[index + 1]:
                index += 1
            cell.append(index)
        cells.setdefault(tuple(cell), []).append(position)
    kept = [inside for inside in cells.values() if len(inside) >= least]
    samples = sum(len(inside) for inside in kept)
    if samples == 0:
        return math.nan, 0.0
    error = sum(abs(sum(columns[0][i] - correct[i] for i in inside)) for inside in kept)
    return error / samples, samples / len(correct)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 12))
def test_d_ece_is_the_naive_loop(seed: int, count: int, least: int) -> None:
    score, correct = sample(seed, count, ties=True)
    position = np.random.default_rng(seed).random((count, 4)) * 1.2 - 0.1
    bins = (3, 2, 2, 1, 2)
    result = detection_calibration(score, correct, position=position, bins=10, position_bins=bins, least=least)
    alone = naive_d_ece([score], [10], correct, least)
    joint = naive_d_ece([score, *position.T], list(bins), correct, least)
    assert (result.d_ece, result.kept) == pytest.approx(alone, nan_ok=True)
    assert (result.d_ece_position, result.kept_position) == pytest.approx(joint, nan_ok=True)


def test_d_ece_sees_an_error_that_averages_out_over_the_image() -> None:
    rng = np.random.default_rng(7)
    score, x = rng.random(40_000), rng.random(40_000)
    # Left half: right more often than said; right half: less often.
    correct = rng.random(40_000) < score + np.where(x < 0.5, 1, -1) * np.minimum(score, 1 - score) / 2
    position = np.stack([x, np.full_like(x, 0.5), np.full_like(x, 0.1), np.full_like(x, 0.1)], axis=1)
    result = detection_calibration(score, correct, position=position, position_bins=(5, 4, 1, 1, 1))
    assert result.d_ece < 0.015
    assert result.d_ece_position == pytest.approx(0.125, abs=0.015)
    assert result.kept_position == 1
    without = detection_calibration(score, correct)
    assert math.isnan(without.d_ece_position)
    assert math.isnan(without.kept_position)
    assert without.d_ece == result.d_ece == pytest.approx(without.confidence.ece)


def test_nothing_gives_nan() -> None:
    empty = reliability(NONE, NONE)
    for value in (empty, reliability(NONE, NONE, adaptive=True), CalibrationTally().result()):
        assert np.isnan([value.ece, value.mce, value.overconfidence]).all()
    assert math.isnan(brier(NONE, NONE))
    result = classification_calibration(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    assert np.isnan([result.ece, result.classwise_ece, result.brier, result.nll]).all()
    found = detection_calibration(NONE, NONE, position=np.zeros((0, 4)))
    assert np.isnan([found.d_ece, found.d_ece_position, found.kept, found.kept_position]).all()
    few = detection_calibration(np.array([0.5]), np.array([True]))
    assert math.isnan(few.d_ece)
    assert few.kept == 0
    weightless = reliability(np.array([0.5]), np.array([True]), weights=np.zeros(1))
    assert math.isnan(weightless.ece)
    assert weightless.count.sum() == 1


def test_results_are_json() -> None:
    score, correct = sample(8, 20)
    values = json.loads(json.dumps(detection_calibration(score, correct).to_dict(), allow_nan=False))
    assert values["d_ece_position"] is None
    assert sum(values["confidence"]["count"]) == 20
    assert None in values["confidence"]["score"]
    probabilities, labels = softmax(9, 5, 3)
    values = json.loads(json.dumps(classification_calibration(probabilities, labels).to_dict(), allow_nan=False))
    assert len(values["classes"]) == 3
    assert values["nll"] > 0


def test_rounding_beyond_the_ends_is_cut_off() -> None:
    result = reliability(np.array([1 + 2e-7, -1e-7], dtype=np.float32), np.array([1, 0]), bins=2)
    assert result.count.tolist() == [1, 1]
    assert result.ece == 0


@pytest.mark.parametrize(
    ("score", "correct", "message"),
    [
        ([0.5, 1.5], [0, 1], "outside 0 to 1"),
        ([-0.5], [0], "outside 0 to 1"),
        ([math.nan], [0], "NaN"),
        ([0.5], [0, 1], "one outcome for each"),
        ([0.5], [0.5], "neither right"),
        ([0.5], [math.nan], "neither right"),
        (["high"], [1], "real numbers"),
    ],
)
def test_scores_and_outcomes_that_are_none_are_refused(score: Any, correct: Any, message: str) -> None:
    for measure in (reliability, brier, detection_calibration):
        with pytest.raises(EvaluationError, match=message):
            measure(np.array(score), np.array(correct))


def test_other_misfits_are_named() -> None:
    half, right = np.full(3, 0.5), np.ones(3)
    with pytest.raises(OptionError, match="at least one bin"):
        reliability(half, right, bins=0)
    with pytest.raises(OptionError, match="at least one bin"):
        CalibrationTally(0)
    with pytest.raises(EvaluationError, match="one weight for each"):
        reliability(half, right, weights=np.ones(2))
    with pytest.raises(EvaluationError, match="negative or not finite"):
        reliability(half, right, weights=np.array([1, -1, 1]))
    with pytest.raises(OptionError, match="least"):
        detection_calibration(half, right, least=0)
    with pytest.raises(OptionError, match="five numbers"):
        detection_calibration(half, right, position=np.zeros((3, 4)), position_bins=(5, 5))
    with pytest.raises(EvaluationError, match=r"expected \[3, 4\]"):
        detection_calibration(half, right, position=np.zeros((2, 4)))
    with pytest.raises(EvaluationError, match="divide pixels"):
        detection_calibration(half, right, position=np.full((3, 4), 320.0))
    with pytest.raises(EvaluationError, match=r"sum to 1\.5"):
        classification_calibration(np.full((2, 3), 0.5), np.zeros(2, dtype=np.int64))
    with pytest.raises(EvaluationError, match="label 3 at 1"):
        classification_calibration(np.full((2, 2), 0.5), np.array([0, 3]))
    with pytest.raises(EvaluationError, match=r"expected \[N, C\] and \[N\]"):
        classification_calibration(np.full((2, 2), 0.5), np.zeros(3, dtype=np.int64))
    with pytest.raises(EvaluationError, match="whole numbers"):
        classification_calibration(np.full((2, 2), 0.5), np.array([0.0, 1.0]))
