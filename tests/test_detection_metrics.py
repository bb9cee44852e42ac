"""Detection metrics against pycocotools, and against a naive implementation written from the definition."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn import categories, draw, draw_masks, draw_poses, extent, one_box, rotated
from oracles import Overlap, box_overlap, count_truth, judge, naive_ap, oriented_overlap, pose_overlap, reference
from pelagia.core.types import Instances
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics import DetectionResult, evaluate_detection
from pelagia.metrics.curves import AREAS, RECALLS
from pelagia.metrics.objects import Kind


def assert_equals_reference(
    truths: list[Instances],
    predictions: list[Instances],
    classes: int,
    kind: Kind = "boxes",
    *,
    sigmas: Sequence[float] | None = None,
    default: Sequence[float] | None = None,
) -> None:
    """`default`: the sigmas that `None` stands for, where they are not pycocotools'."""
    result = evaluate_detection(truths, predictions, categories(classes), kind=kind, sigmas=sigmas)
    expected = reference(truths, predictions, classes, kind=kind, sigmas=default if sigmas is None else sigmas)
    assert len(result.stats) == (10 if kind == "keypoints" else 12)
    np.testing.assert_allclose(np.where(np.isnan(result.stats), -1, result.stats), expected.stats, rtol=0, atol=1e-12)
    for label, item in enumerate(result.classes):
        precision = expected.eval["precision"][:, :, label, 0, -1]
        assert (-1 if math.isnan(item.ap) else item.ap) == pytest.approx(precision.mean(), abs=1e-12)
        assert (-1 if math.isnan(item.ap50) else item.ap50) == pytest.approx(precision[0].mean(), abs=1e-12)
        recall = expected.eval["recall"][:, label, 0, -1].mean()
        assert (-1 if math.isnan(item.recall) else item.recall) == pytest.approx(recall, abs=1e-12)


def test_areas_and_recalls_are_those_of_pycocotools() -> None:
    params = reference([one_box(1)], [one_box(1, scores=np.ones(1))], 1).params
    assert [list(bounds) for bounds in AREAS.values()] == params.areaRng
    assert list(AREAS) == params.areaRngLbl
    assert RECALLS.tolist() == params.recThrs.tolist()


# ---------------------------------------------------------------------------------------------- equal to pycocotools


@pytest.mark.parametrize("seed", range(24))
def test_random_boxes_equal_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 4))
    truths, predictions = draw(
        rng, images=int(rng.integers(1, 6)), classes=classes, objects=12, found=40, crowd=0.15, areas=seed % 3 == 0
    )
    assert_equals_reference(truths, predictions, classes)


@pytest.mark.parametrize("seed", range(8))
def test_random_masks_equal_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    truths, predictions = draw(rng, images=3, classes=2, objects=8, found=20, crowd=0.15)
    assert_equals_reference(draw_masks(rng, truths), draw_masks(rng, predictions), 2, "masks")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(0, 6), st.integers(0, 10), st.sampled_from([0.0, 0.5, 1.0]))
def test_drawn_shapes_equal_pycocotools(seed: int, images: int, objects: int, found: int, crowd: float) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=images, classes=2, objects=objects, found=found, crowd=crowd)
    assert_equals_reference(truths, predictions, 2)


ADVERSARIAL: dict[str, tuple[Instances, Instances]] = {
    "nothing at all": (Instances.empty(), Instances.empty(scores=True)),
    "no truth": (Instances.empty(), one_box(5, scores=np.linspace(0.1, 0.9, 5))),
    "no prediction": (one_box(3), Instances.empty(scores=True)),
    "all crowd": (one_box(2, crowd=np.array([True, True])), one_box(4, scores=np.linspace(0.1, 0.9, 4))),
    "crowd and truth in one place": (one_box(3, crowd=np.array([True, False, True])), one_box(4, scores=np.full(4, 0.5))),
    "duplicates with equal scores": (one_box(3), one_box(6, scores=np.full(6, 0.5))),
    "zero area": (one_box(2, (5, 5, 5, 5)), one_box(3, (5, 5, 5, 5), scores=np.full(3, 0.5))),
    "zero area in a crowd": (one_box(1, crowd=np.array([True])), one_box(3, (20, 20, 20, 30), scores=np.full(3, 0.5))),
    "more than the cut": (one_box(150), one_box(260, scores=np.tile([0.25, 0.5], 130))),
    "IoU on the threshold": (one_box(1, (0, 0, 10, 10)), one_box(1, (0, 0, 10, 5), scores=np.ones(1))),
    "area on the limit": (one_box(2, (0, 0, 32, 32)), one_box(2, (0, 0, 96, 96), scores=np.ones(2))),
    "scores of zero and one": (one_box(2), one_box(2, scores=np.array([0.0, 1.0]))),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_boxes_equal_pycocotools(name: str) -> None:
    truth, found = ADVERSARIAL[name]
    assert_equals_reference([truth], [found], 1)
    assert_equals_reference([truth, Instances.empty(), truth], [found, found, Instances.empty(scores=True)], 2)


def test_many_objects_equal_pycocotools() -> None:
    rng = np.random.default_rng(5)
    truths, predictions = draw(rng, images=2, classes=1, objects=260, found=500, crowd=0.02)
    assert_equals_reference(truths, predictions, 1)


@pytest.mark.slow
def test_ten_thousand_objects_in_an_image_equal_pycocotools() -> None:
    rng = np.random.default_rng(8)
    corner = rng.integers(0, 5000, (10_000, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 60, (10_000, 2))], axis=1).astype(np.float64)
    truth = Instances(labels=rng.integers(0, 2, 10_000), boxes=boxes, crowd=rng.random(10_000) < 0.01)
    scores = np.round(rng.random(10_000), 3)
    found = Instances(labels=truth.labels, boxes=boxes + rng.integers(-4, 5, (10_000, 4)), scores=scores)
    assert_equals_reference([truth], [found], 2)


def test_uncapped_equals_pycocotools_with_a_high_cut() -> None:
    rng = np.random.default_rng(6)
    truths, predictions = draw(rng, images=2, classes=1, objects=200, found=500)
    result = evaluate_detection(truths, predictions, categories(1))
    expected = reference(truths, predictions, 1, most=(1, 10, 10_000))
    assert result.ap_all != result.ap  # the cut of 100 bites, else this shows nothing
    assert result.ap_all == pytest.approx(expected.eval["precision"][:, :, 0, 0, 2].mean(), abs=1e-12)
    assert result.ar[0] == pytest.approx(expected.eval["recall"][:, 0, 0, 2].mean(), abs=1e-12)


def test_other_cuts_equal_pycocotools() -> None:
    rng = np.random.default_rng(10)
    truths, predictions = draw(rng, images=3, classes=2, objects=30, found=90)
    result = evaluate_detection(truths, predictions, categories(2), max_dets=(25, 2, 0, 7, 2))
    expected = reference(truths, predictions, 2, most=(2, 7, 25))
    assert result.max_dets == (2, 7, 25, 0)
    for place, cut in enumerate((2, 7, 25)):
        assert result.ar[cut] == pytest.approx(expected.eval["recall"][:, :, 0, place].mean(), abs=1e-12)
    assert result.ap == pytest.approx(expected.eval["precision"][:, :, :, 0, 2].mean(), abs=1e-12)
    assert len({*result.ar.values()}) == 4


# ---------------------------------------------------------------------------------------------- poses equal pycocotools


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(0, 6), st.sampled_from([3, 20, 50]), st.booleans())
def test_drawn_poses_equal_pycocotools(seed: int, images: int, objects: int, found: int, areas: bool) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw_poses(rng, images=images, classes=2, objects=objects, found=found, areas=areas)
    assert_equals_reference(truths, predictions, 2, "keypoints")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.booleans())
def test_poses_of_other_skeletons_equal_pycocotools(seed: int, points: int, own: bool) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw_poses(rng, images=2, classes=2, objects=6, found=12, points=points)
    sigmas = rng.uniform(0.02, 0.2, points).tolist() if own else None
    assert_equals_reference(truths, predictions, 2, "keypoints", sigmas=sigmas, default=[0.05] * points)


def pose(count: int, visible: int = 2, side: float = 50, **more: np.ndarray) -> Instances:
    """Equal objects of 17 points on the diagonal of a square."""
    place = np.linspace(10, 10 + side, 17)
    points = np.stack([place, place, np.full(17, visible)], axis=1)
    return extent(Instances(labels=np.zeros(count), boxes=np.zeros((count, 4)), keypoints=np.tile(points, (count, 1, 1)), **more))


ADVERSARIAL_POSES: dict[str, tuple[Instances, Instances]] = {
    "nothing at all": (Instances.empty(), Instances.empty(scores=True)),
    "no truth": (Instances.empty(), pose(3, scores=np.linspace(0.1, 0.9, 3))),
    "no prediction": (pose(3), Instances.empty(scores=True)),
    "no labelled points": (pose(2, 0), pose(3, scores=np.linspace(0.1, 0.9, 3))),
    "no labelled points beside labelled ones": (
        Instances.concatenate([pose(1, 0), pose(1), pose(1, 0)]),
        pose(5, scores=np.full(5, 0.5)),
    ),
    "all crowd": (pose(2, crowd=np.array([True, True])), pose(4, scores=np.linspace(0.1, 0.9, 4))),
    "crowd and truth in one place": (pose(3, crowd=np.array([True, False, True])), pose(4, scores=np.full(4, 0.5))),
    "crowd without points": (pose(1, 0, crowd=np.array([True])), pose(4, scores=np.full(4, 0.5))),
    "equal scores": (pose(3), Instances.concatenate([pose(3, side=45, scores=np.full(3, 0.5)), pose(3, scores=np.full(3, 0.5))])),
    "more than 20": (pose(30), pose(45, scores=np.tile([0.25, 0.5, 0.5], 15))),
    "zero area": (pose(1, side=0), pose(2, side=0, scores=np.ones(2))),
    "area on the limit": (pose(2, side=32), pose(3, side=96, scores=np.ones(3))),
}


@pytest.mark.parametrize("name", ADVERSARIAL_POSES)
def test_adversarial_poses_equal_pycocotools(name: str) -> None:
    truth, found = ADVERSARIAL_POSES[name]
    assert_equals_reference([truth], [found], 1, "keypoints")
    assert_equals_reference([truth, Instances.empty(), truth], [found, found, Instances.empty(scores=True)], 2, "keypoints")


def test_uncapped_poses_equal_the_definition() -> None:
    rng = np.random.default_rng(11)
    truths, predictions = draw_poses(rng, images=3, classes=1, objects=25, found=90, points=3)
    result = evaluate_detection(truths, predictions, categories(1), kind="keypoints", iou_thresholds=THREE)
    assert result.max_dets == (20, 0)
    assert result.ap_all != result.ap
    assert result.ap_all == pytest.approx(naive_mean(truths, predictions, 1, THREE, pose_overlap([0.05] * 3)), abs=1e-12)


def test_sigmas_that_do_not_fit_are_refused() -> None:
    for given_sigmas in ([0.1] * 16, [0.1] * 16 + [0.0], [0.1] * 16 + [-0.1]):
        with pytest.raises((EvaluationError, OptionError), match="sigmas"):
            evaluate_detection([pose(1)], [pose(1, scores=np.ones(1))], categories(1), kind="keypoints", sigmas=given_sigmas)


# ---------------------------------------------------------------------------------------------- equal to the definition

THREE = (0.5, 0.6, 0.75)


def naive_mean(
    truths: list[Instances],
    predictions: list[Instances],
    classes: int,
    thresholds: tuple[float, ...],
    overlap: Overlap,
    limit: int = 10**9,
) -> float:
    values = [naive_ap(truths, predictions, label, level, overlap, limit) for label in range(classes) for level in thresholds]
    return float(np.nanmean(values))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_cuts_equal_the_definition(seed: int, images: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=images, classes=2, objects=8, found=25)
    result = evaluate_detection(truths, predictions, categories(2), iou_thresholds=THREE, max_dets=cuts)
    finite = sorted({cut for cut in cuts if cut})
    assert list(result.ar) == [*finite, *([0] if 0 in cuts else [])]
    real = [label for label in range(2) if count_truth(truths, label)]
    if not real:
        assert math.isnan(result.ap)
        return
    for cut in {*finite, 0}:
        verdicts = {level: judge(truths, predictions, level, box_overlap, limit=cut or 1000) for level in THREE}
        found = [sum(v.right is True and v.label == label for v in verdicts[level]) for level in THREE for label in real]
        recall = np.mean(np.array(found) / np.tile([count_truth(truths, label) for label in real], 3))
        assert cut not in result.ar or result.ar[cut] == pytest.approx(recall, abs=1e-12)
    largest = max(finite, default=1000)
    assert result.ap == pytest.approx(naive_mean(truths, predictions, 2, THREE, box_overlap, largest), abs=1e-12)
    assert result.ap_all == pytest.approx(naive_mean(truths, predictions, 2, THREE, box_overlap), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_uncapped_ap_equals_the_definition(seed: int) -> None:
    rng = np.random.default_rng(200 + seed)
    truths, predictions = draw(rng, images=2, classes=1, objects=20, found=150)
    result = evaluate_detection(truths, predictions, categories(1), iou_thresholds=THREE, max_dets=(5, 0))
    assert result.ap_all == pytest.approx(naive_mean(truths, predictions, 1, THREE, box_overlap), abs=1e-12)
    assert result.ap < result.ap_all
    only = evaluate_detection(truths, predictions, categories(1), iou_thresholds=THREE, max_dets=(0,))
    assert only.ap == only.ap_all == result.ap_all


@pytest.mark.parametrize("seed", range(4))
def test_ignore_regions_and_difficult_objects_equal_the_definition(seed: int) -> None:
    rng = np.random.default_rng(300 + seed)
    truths, predictions = draw(rng, images=4, classes=2, objects=10, found=30)
    flagged = [
        item.replace(ignore=(rng.random(len(item)) < 0.2) & ~item.crowd, difficult=rng.random(len(item)) < 0.2) for item in truths
    ]
    result = evaluate_detection(flagged, predictions, categories(2), iou_thresholds=THREE)
    assert result.ap_all == pytest.approx(naive_mean(flagged, predictions, 2, THREE, box_overlap), abs=1e-12)
    assert result.ap_all != evaluate_detection(truths, predictions, categories(2), iou_thresholds=THREE).ap_all


@pytest.mark.parametrize("seed", range(4))
def test_oriented_ap_equals_the_definition_by_shapely(seed: int) -> None:
    rng = np.random.default_rng(400 + seed)
    truths, predictions = (rotated(rng, items) for items in draw(rng, images=3, classes=2, objects=8, found=15))
    truths = [item.replace(ignore=(rng.random(len(item)) < 0.1) & ~item.crowd) for item in truths]
    result = evaluate_detection(truths, predictions, categories(2), kind="oriented", iou_thresholds=THREE)
    assert result.ap_all == pytest.approx(naive_mean(truths, predictions, 2, THREE, oriented_overlap), abs=1e-9)
    assert result.kind == "oriented"


def test_a_prediction_in_an_ignore_region_of_another_class_does_not_count() -> None:
    truth = Instances(
        labels=np.array([0, 1]), boxes=np.array([[0, 0, 10, 10], [50, 50, 90, 90.0]]), ignore=np.array([False, True])
    )
    found = Instances(labels=np.array([0, 0]), boxes=np.array([[0, 0, 10, 10], [60, 60, 70, 70.0]]), scores=np.array([0.5, 0.9]))
    assert evaluate_detection([truth], [found], categories(2)).ap == pytest.approx(1)
    plain = truth.replace(ignore=np.array([False, False]))
    assert evaluate_detection([plain], [found], categories(2)).classes[0].ap == pytest.approx(0.5)


def test_half_inside_an_ignore_region_still_counts() -> None:
    truth = Instances(
        labels=np.array([0, 0]), boxes=np.array([[0, 0, 10, 10], [50, 50, 90, 90.0]]), ignore=np.array([False, True])
    )
    found = Instances(labels=np.array([0, 0]), boxes=np.array([[0, 0, 10, 10], [40, 60, 60, 70.0]]), scores=np.array([0.5, 0.9]))
    assert evaluate_detection([truth], [found], categories(1)).ap == pytest.approx(0.5)


# ---------------------------------------------------------------------------------------------- thresholds and the result


def two_classes() -> DetectionResult:
    rng = np.random.default_rng(7)
    return evaluate_detection(*draw(rng, images=6, classes=2, objects=10, found=30), categories(3))


def test_best_threshold_is_the_best_of_all_cuts() -> None:
    rng = np.random.default_rng(8)
    truths, predictions = draw(rng, images=6, classes=2, objects=10, found=20, crowd=0)
    result = evaluate_detection(truths, predictions, categories(2))
    for label, item in enumerate(result.classes):
        reached = {}
        for level in np.unique(np.concatenate([found.scores for found in predictions])):
            cut = [found.select(found.scores >= level) for found in predictions]
            part = evaluate_detection(truths, cut, categories(2), iou_thresholds=(0.5,), score_threshold=0.0)
            correct = int(part.confusion.counts[label, label])
            reached[level] = 2 * correct / max(part.classes[label].predictions + item.truths, 1)
        assert item.best.f1 == pytest.approx(max(reached.values()), abs=1e-12)
        kept = sum(int(((found.scores >= item.best.threshold) & (found.labels == label)).sum()) for found in predictions)
        correct = item.best.precision * kept
        assert 2 * correct / (kept + item.truths) == pytest.approx(item.best.f1)
        assert correct / item.truths == pytest.approx(item.best.recall)
        assert item.f1.max() <= item.best.f1 + 1e-12


def test_curves_hold_the_average_precision() -> None:
    result = two_classes()
    for item in result.classes[:2]:
        assert item.precision.mean() == pytest.approx(item.ap50_all)
        assert (np.diff(item.precision) <= 0).all()


def test_result_is_json_with_none_for_what_does_not_exist() -> None:
    result = two_classes()
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["ap50"] == result.ap50
    assert values["classes"][2]["ap"] is None
    assert values["classes"][2]["best"]["threshold"] is None
    assert values["ar"]["all"] == result.ar[0]
    assert set(result.thresholds) == {"taxon 0", "taxon 1"}
    assert "precision" not in result.to_dict(curves=False)["classes"][0]


def test_lines_name_every_number_and_class() -> None:
    result = two_classes()
    text = "\n".join(result.lines())
    for word in ("AP50", "AP@all", "AR@100", "AR small@100", "taxon 0", "taxon 2", f"{result.ap:.3f}"):
        assert word in text
    header, rows = result.class_rows()
    assert all(len(row) == len(header) for row in rows)


def test_thresholds_that_were_not_asked_for_give_nan() -> None:
    rng = np.random.default_rng(9)
    truths, predictions = draw(rng, images=3, classes=1, objects=8, found=20)
    result = evaluate_detection(truths, predictions, categories(1), iou_thresholds=(0.6,), max_dets=(7,))
    assert math.isnan(result.ap50)
    assert math.isnan(result.ap75)
    assert not math.isnan(result.ap)
    assert result.curve_iou == 0.6
    assert list(result.ar) == [7]
    assert np.isnan(result.stats).sum() >= 4


def test_no_image_and_no_class() -> None:
    assert math.isnan(evaluate_detection([], [], categories(1)).ap)
    assert math.isnan(evaluate_detection([Instances.empty()], [Instances.empty(scores=True)], []).ap)


# ---------------------------------------------------------------------------------------------- errors

BOX = np.array([[0, 0, 9, 9.0]])


@pytest.mark.parametrize(
    ("truth", "found", "kind", "message"),
    [
        (one_box(1), one_box(1), "boxes", "scores"),
        (one_box(1), one_box(1, scores=np.array([np.nan])), "boxes", "NaN"),
        (one_box(1), one_box(1, (0, 0, np.inf, 1), scores=np.ones(1)), "boxes", "infinity"),
        (one_box(1), Instances(labels=np.array([1]), boxes=BOX, scores=np.ones(1)), "boxes", "label 1"),
        (Instances(labels=np.array([-1]), boxes=BOX), one_box(1, scores=np.ones(1)), "boxes", "label -1"),
        (one_box(1), one_box(1, scores=np.ones(1)), "oriented", "oriented"),
        (one_box(1), one_box(1, scores=np.ones(1)), "masks", "masks"),
    ],
)
def test_what_does_not_fit_is_refused(truth: Instances, found: Instances, kind: Kind, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate_detection([truth], [found], categories(1), kind=kind)


def test_options_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(EvaluationError, match="1 predictions for 2 images"):
        evaluate_detection([one_box(1)] * 2, [one_box(1, scores=np.ones(1))], categories(1))
    for thresholds in ((), (0.0, 0.5), (1.5,)):
        with pytest.raises(OptionError, match="iou_thresholds"):
            evaluate_detection([], [], categories(1), iou_thresholds=thresholds)
    for cuts in ((), (-1,)):
        with pytest.raises(OptionError, match="max_dets"):
            evaluate_detection([], [], categories(1), max_dets=cuts)
