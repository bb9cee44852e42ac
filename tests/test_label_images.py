"""Scores of label images against bitmaps, exhaustive search and a dense assignment, and on cases counted by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.bootstrap import image_weights
from pelagia.metrics.label_images import LABEL_IMAGE_THRESHOLDS, evaluate_label_images
from pelagia.metrics.statistics import label_image_statistic

LEVELS = tuple(tenth / 10 for tenth in range(1, 10))


def strip(*runs: tuple[int, int]) -> np.ndarray:
    """A label image of one row: (id, pixels) from left to right."""
    return np.repeat([item for item, _ in runs], [length for _, length in runs])[None]


def draw_pair(rng: np.random.Generator, objects: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks, and a shifted and disturbed copy of them under other ids."""
    blocks = rng.integers(0, objects + 1, tuple(rng.integers(1, side, 2)))
    truth = blocks.repeat(2, axis=0).repeat(2, axis=1)
    noise = rng.random(truth.shape) < rng.choice([0.0, 0.2, 0.5])
    disturbed = np.where(noise, rng.integers(0, objects + 1, truth.shape), np.roll(truth, rng.integers(0, 2), axis=1))
    names = np.append(0, rng.permutation(objects) * 37 + 5)
    return truth, names[disturbed]


def table(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """[G, D] IoU of all pairs, one bitmap an object."""
    objects = [truth == item for item in np.unique(truth) if item]
    found = [predicted == item for item in np.unique(predicted) if item]
    values = [[(a & b).sum() / (a | b).sum() for b in found] for a in objects]
    return np.array(values, dtype=np.float64).reshape(len(objects), len(found))


def search(iou: np.ndarray, level: float, row: int = 0, used: frozenset[int] = frozenset()) -> tuple[int, float]:
    """Number and sum of IoU of the best matching, by trying all of them."""
    if row == len(iou):
        return 0, 0.0
    best = search(iou, level, row + 1, used)
    for column in range(iou.shape[1]):
        if column not in used and iou[row, column] >= level:
            count, total = search(iou, level, row + 1, used | {column})
            best = max(best, (count + 1, total + iou[row, column]))
    return best


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_every_score_equals_that_of_an_exhaustive_search(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [draw_pair(rng, int(rng.integers(1, 6)), 5) for _ in range(images)]
    result = evaluate_label_images(*zip(*pairs, strict=True), thresholds=LEVELS)
    assert result.thresholds.tolist() == list(LEVELS)
    for t, level in enumerate(LEVELS):
        rows = []
        for n, pair in enumerate(pairs):
            iou = table(*pair)
            tp, total = search(iou, level)
            objects, found = iou.shape
            assert result.counts[n, t].tolist() == [tp, found - tp, objects - tp]
            assert result.iou[n, t] == pytest.approx(total)
            rows.append((tp, found - tp, objects - tp, total))
        pooled = scores(*np.sum(rows, axis=0))
        single = np.array([list(scores(*row).values()) for row in rows])
        for column, (name, value) in enumerate(pooled.items()):
            assert getattr(result.pooled, name)[t] == pytest.approx(value, nan_ok=True)
            valid = single[~np.isnan(single[:, column]), column]
            wanted = valid.mean() if len(valid) else np.nan
            assert getattr(result.per_image, name)[t] == pytest.approx(wanted, nan_ok=True)


def scores(tp: float, fp: float, fn: float, iou: float) -> dict[str, float]:
    def share(part: float, whole: float) -> float:
        return float(part) / float(whole) if whole else np.nan

    f1 = share(2 * tp, 2 * tp + fp + fn)
    matched = share(iou, tp)
    return {
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
        "f1": f1,
        "accuracy": share(tp, tp + fp + fn),
        "matched_iou": matched,
        "panoptic_quality": f1 * matched if tp else f1,
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(10, 60))
def test_matchings_equal_those_of_a_dense_assignment(seed: int, objects: int) -> None:
    truth, predicted = draw_pair(np.random.default_rng(seed), objects, 20)
    levels = (0.01, 0.1, 0.3, 0.5)
    result = evaluate_label_images([truth], [predicted], thresholds=levels)
    iou = table(truth, predicted)
    for t, level in enumerate(levels):
        gain = np.where(iou >= level, 1 + iou / (2 * max(iou.shape)), 0)
        left, right = linear_sum_assignment(gain, maximize=True)
        chosen = iou[left, right][iou[left, right] >= level]
        assert result.counts[0, t, 0] == len(chosen)
        assert result.iou[0, t] == pytest.approx(chosen.sum())


def test_more_matches_come_before_better_ones() -> None:
    truth = strip((1, 10), (2, 4))
    found = strip((2, 3), (1, 11))  # IoU: 7/14 and 4/11 for the large one, 3/10 for the small one
    result = evaluate_label_images([truth], [found], thresholds=(0.2, 0.35, 0.5, 0.6))
    assert result.counts[0].tolist() == [[2, 0, 0], [1, 1, 1], [1, 1, 1], [0, 2, 2]]
    np.testing.assert_allclose(result.iou[0], [0.3 + 4 / 11, 0.5, 0.5, 0])
    np.testing.assert_allclose(result.pooled.panoptic_quality, [(0.3 + 4 / 11) / 2, 0.25, 0.25, 0])
    assert np.isnan(result.pooled.matched_iou[3])


def test_two_halves_are_one_match_at_one_half() -> None:
    result = evaluate_label_images([strip((1, 10))], [strip((1, 5), (2, 5))], thresholds=(0.5,))
    assert result.counts.tolist() == [[[1, 1, 0]]]


def test_an_iou_equal_to_the_threshold_reaches_it() -> None:
    for pixels, level in ((11, 0.55), (12, 0.6), (13, 0.65), (14, 0.7), (15, 0.75), (16, 0.8), (17, 0.85), (18, 0.9), (19, 0.95)):
        assert level in LABEL_IMAGE_THRESHOLDS
        result = evaluate_label_images([strip((1, 20))], [strip((1, pixels), (0, 20 - pixels))])
        reached = [value for value, count in zip(LABEL_IMAGE_THRESHOLDS, result.totals, strict=True) if count[0]]
        assert reached[-1] == level
    perfect = evaluate_label_images([strip((1, 3))], [strip((8, 3))], thresholds=(1.0,))
    assert perfect.counts.tolist() == [[[1, 0, 0]]]


def four_images() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All found; one of three found; empty on both sides; one false object."""
    truths = [strip((1, 4)), strip((1, 4), (2, 4), (3, 4)), strip((0, 4)), strip((0, 4))]
    return truths, [strip((7, 4)), strip((0, 8), (9, 4)), strip((0, 4)), strip((1, 4))]


def test_pooled_and_mean_over_images_by_hand() -> None:
    result = evaluate_label_images(*four_images())
    assert result.totals.tolist() == [[2, 1, 2]] * 10
    np.testing.assert_allclose(result.pooled.accuracy, 2 / 5)
    np.testing.assert_allclose(result.pooled.f1, 4 / 7)
    np.testing.assert_allclose(result.pooled.matched_iou, 1)
    np.testing.assert_allclose(result.per_image.accuracy, (1 + 1 / 3 + 0) / 3)
    np.testing.assert_allclose(result.per_image.recall, (1 + 1 / 3) / 2)
    np.testing.assert_allclose(result.per_image.precision, (1 + 1 + 0) / 3)


def test_nothing_at_all_has_no_score() -> None:
    for result in (evaluate_label_images([], []), evaluate_label_images([strip((0, 2))], [strip((0, 2))])):
        assert result.totals.tolist() == [[0, 0, 0]] * 10
        assert np.isnan(result.pooled.accuracy).all()
        assert np.isnan(result.per_image.accuracy).all()
        assert np.isnan([value for _, value in result.summary()]).all()


def test_weights_count_as_copies() -> None:
    truths, found = four_images()
    weights = np.array([3, 0, 1, 2])
    weighted = evaluate_label_images(truths, found).at(weights)
    wanted = evaluate_label_images(
        *([image for image, times in zip(side, weights, strict=True) for _ in range(times)] for side in (truths, found))
    )
    assert weighted.images == wanted.images == 6
    assert weighted.totals.tolist() == wanted.totals.tolist()
    for name in scores(1, 1, 1, 1):
        np.testing.assert_allclose(getattr(weighted.pooled, name), getattr(wanted.pooled, name))
        np.testing.assert_allclose(getattr(weighted.per_image, name), getattr(wanted.per_image, name))
    assert weighted.at(np.ones(4, dtype=np.int64)).to_dict() == evaluate_label_images(truths, found).to_dict()
    for wrong in (np.ones(3), np.full(4, 0.5), np.array([1, 1, 1, -1])):
        with pytest.raises(OptionError, match="4 whole numbers"):
            weighted.at(wrong)


def test_the_statistic_equals_scoring_repeated_images() -> None:
    rng = np.random.default_rng(3)
    pairs = [draw_pair(rng, 6, 12) for _ in range(6)]
    statistic = label_image_statistic(evaluate_label_images(*zip(*pairs, strict=True)))
    for resample in range(10):
        weights = image_weights(6, 4, resample)
        many = [pair for pair, times in zip(pairs, weights.astype(int), strict=True) for _ in range(times)]
        wanted, got = evaluate_label_images(*zip(*many, strict=True)), statistic(weights)
        for name, value in wanted.summary():
            assert got["", name] == pytest.approx(value, abs=1e-12, nan_ok=True)
        for row, level in enumerate(wanted.thresholds):
            assert got[f"IoU {level:g}", "F1"] == pytest.approx(wanted.pooled.f1[row], abs=1e-12, nan_ok=True)
            single = wanted.per_image.accuracy[row]
            assert got[f"IoU {level:g}", "accuracy per image"] == pytest.approx(single, abs=1e-12, nan_ok=True)


def test_images_may_come_from_generators_and_in_any_integer_type() -> None:
    truths, found = four_images()

    def stream(images: list[np.ndarray], dtype: str) -> Iterator[np.ndarray]:
        for image in images:
            yield image.astype(dtype)

    result = evaluate_label_images(stream(truths, "uint16"), stream(found, "int32"))
    assert result.to_dict() == evaluate_label_images(truths, found).to_dict()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((1, 4)), "float64"),
        (np.zeros((1, 4), dtype=bool), "bool"),
        (np.array([[0, -1, 1, 1]]), "ids from -1 to 1"),
        (np.zeros((2, 4), dtype=int), r"1 x 4 \(H x W\)"),
        (np.zeros((1, 1, 4), dtype=int), r"shape \[1, 1, 4\]"),
        (np.zeros(4, dtype=int), r"shape \[4\]"),
    ],
)
def test_what_is_no_label_image_is_refused(wrong: np.ndarray, message: str) -> None:
    good = strip((1, 4))
    for truth, predicted in ((good, wrong), (wrong, good)):
        with pytest.raises(EvaluationError, match=message) as caught:
            evaluate_label_images([good, truth], [good, predicted])
        assert caught.value.where == "image 1"


def test_other_numbers_of_images_are_refused() -> None:
    good = strip((1, 4))
    with pytest.raises(EvaluationError, match="image 1: there is a truth but no prediction"):
        evaluate_label_images([good, good], [good])
    with pytest.raises(EvaluationError, match="image 0: there is a prediction but no truth"):
        evaluate_label_images([], [good])


@pytest.mark.parametrize("thresholds", [(), (0.0,), (0.5, 1.1), (float("nan"),)])
def test_impossible_thresholds_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="thresholds must be"):
        evaluate_label_images([], [], thresholds=thresholds)


def test_text_and_json() -> None:
    result = evaluate_label_images(*four_images(), thresholds=(0.5, 0.75))
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (values["images"], values["thresholds"]) == (4, [0.5, 0.75])
    assert (values["tp"], values["fp"], values["fn"]) == ([2, 2], [1, 1], [2, 2])
    assert values["pooled"]["accuracy"] == [0.4, 0.4]
    summary = dict(result.summary())
    assert summary["accuracy@0.5"] == summary["mean accuracy"] == pytest.approx(0.4)
    assert summary["mean accuracy per image"] == pytest.approx(4 / 9)
    header, rows = result.threshold_rows()
    assert rows[0][:4] == ["0.5", "2", "1", "2"]
    assert all(len(row) == len(header) for row in rows)
    assert result.lines()[0] == "4 images, 4 objects, 3 predictions (label images)"
    assert str(result).splitlines()[-1].split()[:4] == ["0.75", "2", "1", "2"]


def grid(rows: int = 40, columns: int = 50) -> np.ndarray:
    """2,000 touching objects of 25 x 20 pixels on an image of 1000 x 1000."""
    return np.arange(rows * 25)[:, None] // 25 * columns + np.arange(columns * 20)[None, :] // 20 + 1


def test_two_thousand_objects_shifted_by_three_pixels() -> None:
    truth = grid()
    result = evaluate_label_images([truth], [np.roll(truth, 3, axis=1)])
    assert result.totals[:, 0].tolist() == [2000] * 5 + [0] * 5
    np.testing.assert_allclose(result.pooled.panoptic_quality[:5], 17 / 23)


def test_two_thousand_objects_that_all_hang_together() -> None:
    # Half a cell off in both directions every object overlaps four others, so the graph of pairs is one piece.
    truth = grid()
    result = evaluate_label_images([truth], [np.roll(truth, (12, 10), axis=(0, 1))], thresholds=(0.1,))
    assert result.totals.tolist() == [[2000, 0, 0]]
    assert result.iou[0, 0] == pytest.approx(2000 * 130 / 870)
