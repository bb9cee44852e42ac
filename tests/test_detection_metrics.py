"""Detection metrics against pycocotools, and against a naive implementation written from the definition."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from shapely.geometry import Polygon

from pelagia.core.oriented import to_corners
from pelagia.core.types import Category, Instances, MaskCrop
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics import DetectionResult, evaluate_detection
from pelagia.metrics.matching import Kind

SIDE = 200  # of the images, in pixels


# ---------------------------------------------------------------------------------------------- drawn data


def categories(count: int) -> list[Category]:
    return [Category(id=label + 1, name=f"taxon {label}") for label in range(count)]


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes with whole coordinates, so that IoUs on a threshold and areas on a limit (32 x 32) do occur."""
    corner = rng.integers(0, SIDE - 10, (count, 2))
    size = rng.choice([4, 10, 20, 32, 33, 60, 96, 97, 130], (count, 2))
    return np.concatenate([corner, np.minimum(corner + size, SIDE)], axis=1).astype(np.float64)


def draw(
    rng: np.random.Generator, *, images: int, classes: int, objects: int, found: int, crowd: float = 0.1, areas: bool = False
) -> tuple[list[Instances], list[Instances]]:
    """Truth, and predictions made from it: shifted, of a wrong class, repeated, with many equal scores."""
    truths, predictions = [], []
    for _ in range(images):
        count, many = int(rng.integers(0, objects + 1)), int(rng.integers(0, found + 1))
        boxes, labels = draw_boxes(rng, count), rng.integers(0, classes, count)
        stated = rng.uniform(0, 20000, count) if areas else None
        truths.append(Instances(labels=labels, boxes=boxes, crowd=rng.random(count) < crowd, areas=stated))
        near, kinds = draw_boxes(rng, many), rng.integers(0, classes, many)
        if count:
            source = rng.integers(0, count, many)
            hit, keep = rng.random(many) < 0.8, rng.random(many) < 0.8
            shift = rng.integers(-6, 7, (many, 4)) * (rng.random((many, 1)) < 0.8)
            near = np.where(hit[:, None], boxes[source] + shift, near)
            near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
            kinds = np.where(keep, labels[source], kinds)
        predictions.append(Instances(labels=kinds, boxes=near, scores=np.round(rng.random(many), int(rng.integers(1, 4)))))
    return truths, predictions


def draw_masks(rng: np.random.Generator, items: list[Instances]) -> list[Instances]:
    """Fill each box with a random mask (possibly empty)."""
    result = []
    for item in items:
        crops = []
        for x1, y1, x2, y2 in np.clip(item.box_array, 0, SIDE).astype(int):
            bitmap = rng.random((max(y2 - y1, 1), max(x2 - x1, 1))) < rng.choice([0.0, 0.8, 0.95, 1.0])
            crops.append(MaskCrop(int(min(x1, SIDE - 1)), int(min(y1, SIDE - 1)), bitmap))
        result.append(item.replace(masks=tuple(crops)))
    return result


def whole(crop: MaskCrop) -> np.ndarray:
    full = np.zeros((SIDE, SIDE), dtype=np.uint8)
    height, width = crop.bitmap.shape
    full[crop.y : crop.y + height, crop.x : crop.x + width] = crop.bitmap[: SIDE - crop.y, : SIDE - crop.x]
    return full


# ---------------------------------------------------------------------------------------------- the reference


def annotation(item: Instances, index: int, masks: bool) -> dict[str, Any]:
    x1, y1, x2, y2 = item.box_array[index].tolist()
    values: dict[str, Any] = {"category_id": int(item.labels[index]) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    if masks:
        assert item.masks is not None
        values["segmentation"] = coco_mask.encode(np.asfortranarray(whole(item.masks[index])))
        del values["bbox"]
    return values


def reference(
    truths: list[Instances], predictions: list[Instances], classes: int, *, kind: Kind = "boxes", most: int = 100
) -> COCOeval:
    """The same data through pycocotools."""
    masks = kind == "masks"
    truth, results = [], []
    for image, (real, found) in enumerate(zip(truths, predictions, strict=True), start=1):
        for index in range(len(real)):
            area = real.box_array[index, 2:] - real.box_array[index, :2]
            own = float(real.masks[index].area) if masks and real.masks else float(area[0] * area[1])
            stated = own if real.areas is None else float(real.areas[index])
            truth.append({**annotation(real, index, masks), "id": len(truth) + 1, "image_id": image, "area": stated})
            truth[-1]["iscrowd"] = int(real.crowd[index])
        assert found.scores is not None
        scores = found.scores.tolist()
        results += [{**annotation(found, i, masks), "image_id": image, "score": score} for i, score in enumerate(scores)]
    frame = {
        "images": [{"id": image + 1, "height": SIDE, "width": SIDE} for image in range(len(truths))],
        "categories": [{"id": label + 1} for label in range(classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        gt.dataset = {**frame, "annotations": truth}
        gt.createIndex()
        dt.dataset = {**frame, "annotations": []}
        dt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(results) if results else dt, "segm" if masks else "bbox")
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
        if most == 100:
            evaluation.summarize()
    return evaluation


def assert_equals_reference(truths: list[Instances], predictions: list[Instances], classes: int, kind: Kind = "boxes") -> None:
    result = evaluate_detection(truths, predictions, categories(classes), kind=kind)
    expected = reference(truths, predictions, classes, kind=kind)
    np.testing.assert_allclose(np.where(np.isnan(result.stats), -1, result.stats), expected.stats, rtol=0, atol=1e-12)
    for label, item in enumerate(result.classes):
        precision = expected.eval["precision"][:, :, label, 0, 2]
        assert (-1 if math.isnan(item.ap) else item.ap) == pytest.approx(precision.mean(), abs=1e-12)
        assert (-1 if math.isnan(item.ap50) else item.ap50) == pytest.approx(precision[0].mean(), abs=1e-12)
        recall = expected.eval["recall"][:, label, 0, 2].mean()
        assert (-1 if math.isnan(item.recall) else item.recall) == pytest.approx(recall, abs=1e-12)


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


def one_box(count: int, box: tuple[float, float, float, float] = (10, 10, 50, 60), **more: Any) -> Instances:
    return Instances(labels=np.zeros(count, dtype=np.int64), boxes=np.tile(box, (count, 1)), **more)


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


def test_uncapped_equals_pycocotools_with_a_high_cut() -> None:
    rng = np.random.default_rng(6)
    truths, predictions = draw(rng, images=2, classes=1, objects=200, found=500)
    result = evaluate_detection(truths, predictions, categories(1))
    expected = reference(truths, predictions, 1, most=10_000)
    assert result.ap_all != result.ap  # the cut of 100 bites, else this shows nothing
    assert result.ap_all == pytest.approx(expected.eval["precision"][:, :, 0, 0, 2].mean(), abs=1e-12)
    assert result.ar[0] == pytest.approx(expected.eval["recall"][:, 0, 0, 2].mean(), abs=1e-12)


# ---------------------------------------------------------------------------------------------- equal to the definition

Overlap = Callable[[Instances, int, Instances, int, bool], float]


def box_overlap(found: Instances, i: int, truth: Instances, j: int, crowd: bool) -> float:
    a, b = found.box_array[i], truth.box_array[j]
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1])
    return float(width * height / (area if crowd else area + (b[2] - b[0]) * (b[3] - b[1]) - width * height))


def oriented_overlap(found: Instances, i: int, truth: Instances, j: int, crowd: bool) -> float:
    assert found.oriented is not None
    assert truth.oriented is not None
    a, b = (Polygon(to_corners(item.oriented[k : k + 1])[0]) for item, k in ((found, i), (truth, j)))
    shared = a.intersection(b).area
    return float(shared / (a.area if crowd else a.area + b.area - shared))


def naive_ap(truths: list[Instances], predictions: list[Instances], label: int, threshold: float, overlap: Overlap) -> float:
    """AP of one class and threshold, all predictions, loops only."""
    outcomes: list[tuple[float, bool]] = []
    total = 0
    for truth, found in zip(truths, predictions, strict=True):
        assert found.scores is not None
        mine = [j for j in range(len(truth)) if truth.labels[j] == label and not truth.ignore[j]]
        total += sum(not (truth.crowd[j] or truth.difficult[j]) for j in mine)
        used: set[int] = set()
        for i in sorted((i for i in range(len(found)) if found.labels[i] == label), key=lambda i: -found.scores[i]):
            best, free = -1, [j for j in mine if j not in used]
            for scored in (True, False):
                if best >= 0:
                    break
                reach = threshold
                for j in (j for j in free if scored != bool(truth.crowd[j] or truth.difficult[j])):
                    value = overlap(found, i, truth, j, bool(truth.crowd[j]))
                    if value >= reach:
                        best, reach = j, value
            if best >= 0 and (truth.crowd[best] or truth.difficult[best]):
                continue
            regions = np.flatnonzero(truth.ignore)
            if best < 0 and any(overlap(found, i, truth, int(j), True) > 0.5 for j in regions):
                continue
            used.add(best)
            outcomes.append((float(found.scores[i]), best >= 0))
            used.discard(-1)
    if total == 0:
        return math.nan
    outcomes.sort(key=lambda item: -item[0])
    points, hits = [], 0
    for place, (_, hit) in enumerate(outcomes, start=1):
        hits += hit
        points.append((hits / total, hits / place))
    return float(np.mean([max((p for r, p in points if r >= level), default=0.0) for level in np.linspace(0, 1, 101)]))


def naive_mean(
    truths: list[Instances], predictions: list[Instances], classes: int, thresholds: tuple[float, ...], overlap: Overlap
) -> float:
    values = [naive_ap(truths, predictions, label, level, overlap) for label in range(classes) for level in thresholds]
    return float(np.nanmean(values))


THREE = (0.5, 0.6, 0.75)


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


def rotated(rng: np.random.Generator, items: list[Instances]) -> list[Instances]:
    result = []
    for item in items:
        x1, y1, x2, y2 = item.box_array.T
        sizes = np.sort(np.maximum(np.stack([x2 - x1, y2 - y1], axis=1), 3), axis=1)
        angle = np.round(rng.uniform(-0.3, 0.3, len(item)), 1)
        boxes = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, sizes[:, 1], sizes[:, 0], angle], axis=1)
        result.append(item.replace(boxes=None, oriented=boxes))
    return result


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
