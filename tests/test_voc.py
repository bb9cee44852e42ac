"""AP by the rules of Pascal VOC and DOTA against loops written from the paper, and on cases counted by hand."""

from __future__ import annotations

import json
import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn import SIDE, categories, different_scores, draw, draw_masks, one_box, repeated, rotated
from oracles import Overlap, box_overlap, in_ignored_region, mask_overlap, oriented_overlap
from pelagia.core.types import Instances
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics import evaluate_detection
from pelagia.metrics.bootstrap import image_weights
from pelagia.metrics.objects import Kind, flatten
from pelagia.metrics.statistics import voc_statistic
from pelagia.metrics.voc import VocResult, evaluate_voc, gather_voc

Year = Literal[2007, 2010]

# ---------------------------------------------------------------------------------------------- the rules in loops


def outcomes(
    truths: list[Instances], predictions: list[Instances], label: int, iou: float, overlap: Overlap
) -> tuple[list[bool], int]:
    """True or false for every prediction that counts, in descending score over all images, and the objects that count."""
    listed = [(image, i) for image, found in enumerate(predictions) for i in range(len(found)) if found.labels[i] == label]
    listed.sort(key=lambda place: -predictions[place[0]].scores[place[1]])
    detected: set[tuple[int, int]] = set()
    result = []
    for image, i in listed:
        truth, found = truths[image], predictions[image]
        largest, best = -math.inf, -1
        for j in range(len(truth)):
            if truth.labels[j] != label or truth.ignore[j]:
                continue
            value = overlap(found, i, truth, j, bool(truth.crowd[j]))
            if value > largest:
                largest, best = value, j
        if largest > iou:
            if truth.difficult[best] or truth.crowd[best]:
                continue
            right = (image, best) not in detected
            detected.add((image, best))
        else:
            right = False
        if right or not in_ignored_region(truth, found, i, overlap):
            result.append(right)
    total = sum(
        truth.labels[j] == label and not (truth.difficult[j] or truth.crowd[j] or truth.ignore[j])
        for truth in truths
        for j in range(len(truth))
    )
    return result, total


def average(right: list[bool], total: int, year: Year) -> float:
    """IJCV 2010, section 4.2: the mean over eleven recalls (2007), or the area under the interpolated curve (2010)."""
    if total == 0:
        return math.nan
    points = [(sum(right[: n + 1]) / total, sum(right[: n + 1]) / (n + 1)) for n in range(len(right))]
    if year == 2007:
        return sum(max((p for r, p in points if r >= 0.1 * step), default=0.0) for step in range(11)) / 11
    area, before = 0.0, 0.0
    for n, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[n:])
        before = recall
    return area


def assert_equals_loops(
    truths: list[Instances], predictions: list[Instances], kind: Kind, overlap: Overlap, *, iou: float = 0.5, year: Year = 2007
) -> VocResult:
    result = evaluate_voc(truths, predictions, categories(2), kind=kind, iou=iou, year=year)
    values = []
    for label, item in enumerate(result.classes):
        right, total = outcomes(truths, predictions, label, iou, overlap)
        assert item.truths == total
        assert item.predictions == sum(int((found.labels == label).sum()) for found in predictions)
        hits = np.cumsum(right)
        np.testing.assert_allclose(item.precision, hits / np.arange(1, len(right) + 1), atol=1e-12)
        np.testing.assert_allclose(item.recall, hits / max(total, 1), atol=1e-12)
        values.append(average(right, total, year))
        assert item.ap == pytest.approx(values[-1], abs=1e-12, nan_ok=True)
    real = [value for value in values if not math.isnan(value)]
    assert result.map == pytest.approx(sum(real) / len(real) if real else math.nan, abs=1e-12, nan_ok=True)
    return result


def flagged(rng: np.random.Generator, items: list[Instances], difficult: float) -> list[Instances]:
    return [
        item.replace(difficult=rng.random(len(item)) < difficult, ignore=(rng.random(len(item)) < 0.1) & ~item.crowd)
        for item in items
    ]


YEARS: list[Year] = [2007, 2010]


@pytest.mark.parametrize("year", YEARS)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_drawn_boxes_equal_the_loops(year: Year, seed: int, images: int, difficult: float, iou: float) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=images, classes=2, objects=8, found=25, crowd=0.05)
    assert_equals_loops(flagged(rng, truths, difficult), predictions, "boxes", box_overlap, iou=iou, year=year)


@pytest.mark.parametrize("year", YEARS)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_drawn_oriented_boxes_equal_the_loops_by_shapely(year: Year, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = (rotated(rng, items) for items in draw(rng, images=2, classes=2, objects=6, found=12, crowd=0))
    assert_equals_loops(flagged(rng, truths, 0.2), predictions, "oriented", oriented_overlap, iou=0.47, year=year)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_drawn_masks_equal_the_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = (draw_masks(rng, items) for items in draw(rng, images=2, classes=2, objects=4, found=8, crowd=0))
    assert_equals_loops(flagged(rng, truths, 0.2), predictions, "masks", mask_overlap, year=2010)


def test_the_settled_rule_matters_in_what_is_drawn() -> None:
    """Crowded, or the loops above would not tell VOC from COCO."""
    rng = np.random.default_rng(1)
    corner = rng.integers(0, 30, (40, 2))
    truth = Instances(labels=np.zeros(40), boxes=np.concatenate([corner, corner + 60], axis=1))
    found = Instances(labels=np.zeros(40), boxes=truth.box_array + rng.integers(-5, 6, (40, 4)), scores=rng.random(40))
    assert SIDE > 100
    result = assert_equals_loops([truth], [found], "boxes", box_overlap, year=2010)
    coco = evaluate_detection([truth], [found], categories(2), iou_thresholds=(0.5,))
    assert coco.classes[0].best.recall > result.classes[0].recall[-1] + 0.1


@pytest.mark.parametrize("year", YEARS)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_weights_equal_the_loops_over_repeated_images(year: Year, seed: int, turned: bool) -> None:
    """`different_scores`: copies of an image stay together where a class has equal scores in it."""
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=4, classes=2, objects=5, found=12, crowd=0.05)
    truths, predictions = flagged(rng, truths, 0.2), different_scores(rng, predictions)
    kind: Kind = "oriented" if turned else "boxes"
    if turned:
        truths, predictions = rotated(rng, truths), rotated(rng, predictions)
    truth, found = (flatten(items, kind, what="objects") for items in (truths, predictions))
    statistic = voc_statistic(gather_voc(truth, found, categories(2), year=year))
    title = "DOTA" if turned else "VOC"
    for resample in range(3):
        weights = image_weights(4, seed, resample)
        drawn = repeated(truths, weights), repeated(predictions, weights)
        got = statistic(weights)
        values = []
        for label in range(2):
            right, total = outcomes(*drawn, label, 0.5, oriented_overlap if turned else box_overlap)
            values.append(average(right, total, year))
            assert got[f"taxon {label}", f"{title} AP"] == pytest.approx(values[-1], abs=1e-12, nan_ok=True)
        real = [value for value in values if not math.isnan(value)]
        expected = sum(real) / len(real) if real else math.nan
        assert got["", f"{title} mAP"] == pytest.approx(expected, abs=1e-12, nan_ok=True)


# ---------------------------------------------------------------------------------------------- by hand


def found(boxes: list[list[float]], scores: list[float]) -> Instances:
    return Instances(labels=np.zeros(len(boxes)), boxes=np.array(boxes, dtype=float).reshape(-1, 4), scores=np.array(scores))


def real(boxes: list[list[float]], **flags: list[bool]) -> Instances:
    return Instances(
        labels=np.zeros(len(boxes)),
        boxes=np.array(boxes, dtype=float),
        **{name: np.array(value) for name, value in flags.items()},
    )


A, B, FAR = [0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]


def ap(truth: Instances, predictions: Instances, year: Year = 2007, iou: float = 0.5) -> float:
    return evaluate_voc([truth], [predictions], categories(1), year=year, iou=iou).classes[0].ap


@pytest.mark.parametrize("year", YEARS)
def test_perfect_is_one(year: Year) -> None:
    assert ap(real([A, FAR]), found([FAR, A], [0.2, 0.1]), year) == pytest.approx(1)


def test_eleven_points_and_the_area_differ() -> None:
    truth, predictions = real([A, FAR]), found([A, [100, 100, 110, 110], FAR], [0.9, 0.8, 0.7])
    assert ap(truth, predictions, 2007) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert ap(truth, predictions, 2010) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_the_threshold_must_be_exceeded() -> None:
    half = found([[0, 0, 10, 5]], [1.0])
    assert ap(real([A]), half) == 0
    assert ap(real([A]), half, iou=0.49) == pytest.approx(1)
    assert ap(real([A]), found([[10, 0, 20, 10]], [1.0]), iou=0) == 0
    assert ap(real([A]), found([[9, 9, 19, 19]], [1.0]), iou=0) == pytest.approx(1)


def test_a_prediction_asks_only_its_best_object() -> None:
    truth, predictions = real([A, B]), found([A, A], [0.9, 0.8])  # the second overlaps B by 0.8, but A by 1
    assert ap(truth, predictions, 2010) == pytest.approx(0.5)
    assert ap(truth, predictions, 2007) == pytest.approx(6 / 11)
    assert evaluate_detection([truth], [predictions], categories(1)).ap50 == pytest.approx(1)


def test_difficult_objects_neither_count_nor_punish() -> None:
    truth = real([A, FAR], difficult=[True, False])
    assert ap(truth, found([A, A, FAR], [0.9, 0.8, 0.7]), 2010) == pytest.approx(1)
    assert math.isnan(ap(real([A], difficult=[True]), found([A], [0.9])))
    assert ap(truth, found([B, FAR], [0.9, 0.7]), 2010) == pytest.approx(1)
    # The best object is difficult: the other one, above the threshold too, stays without a prediction.
    assert ap(real([A, B], difficult=[True, False]), found([A], [0.9]), 2010) == 0


def test_three_of_ten_objects_do_not_reach_the_recall_after_two_tenths() -> None:
    places = [[20 * n, 0, 20 * n + 10, 10] for n in range(10)]
    assert ap(real(places), found(places[:3], [0.9, 0.8, 0.7])) == pytest.approx(3 / 11)  # 0.1 * 3 is above 3 / 10
    assert ap(real(places), found(places[:4], [0.9, 0.8, 0.7, 0.6])) == pytest.approx(5 / 11)


def test_equal_scores_keep_the_order_of_the_images() -> None:
    truth, wrong, right = real([A]), found([FAR], [0.5]), found([A], [0.5])
    first = evaluate_voc([truth, truth], [right, wrong], categories(1), year=2010).map
    last = evaluate_voc([truth, truth], [wrong, right], categories(1), year=2010).map
    assert (first, last) == (pytest.approx(0.5), pytest.approx(0.25))


def test_no_cut_of_predictions() -> None:
    truth = real([A])
    many = found([*[FAR] * 300, A], [0.9] * 300 + [0.1])
    assert ap(truth, many, 2010) == pytest.approx(1 / 301)


def test_empty_data() -> None:
    result = evaluate_voc([], [], categories(2))
    assert math.isnan(result.map)
    assert ap(real([A]), Instances.empty(scores=True)) == 0
    assert math.isnan(evaluate_voc([Instances.empty()], [found([A], [0.5])], categories(1)).map)


def test_text_and_json() -> None:
    result = evaluate_voc([real([A])], [found([A], [0.5])], categories(2), year=2010)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["map"] == 1
    assert [row["ap"] for row in values["classes"]] == [1, None]
    assert (values["year"], values["iou"], values["kind"]) == (2010, 0.5, "boxes")
    text = "\n".join(result.lines())
    for word in ("mAP 1.000", "VOC 2010", "above 0.5", "taxon 0", "taxon 1"):
        assert word in text


def test_what_does_not_fit_is_refused() -> None:
    truth, some = one_box(1), one_box(1, scores=np.ones(1))
    for wrong in ({"year": 2012}, {"iou": 1.0}, {"iou": -0.1}, {"iou": math.nan}):
        with pytest.raises(OptionError, match="2007 and 2010"):
            evaluate_voc([truth], [some], categories(1), **wrong)
    with pytest.raises(EvaluationError, match="2 images"):
        evaluate_voc([truth] * 2, [some], categories(1))
    with pytest.raises(EvaluationError, match="scores"):
        evaluate_voc([truth], [truth], categories(1))
    pose = np.zeros((1, 3, 3))
    with pytest.raises(EvaluationError, match="keypoints"):
        evaluate_voc([truth.replace(keypoints=pose)], [some.replace(keypoints=pose)], categories(1), kind="keypoints")
