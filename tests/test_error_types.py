"""Error types against loops written from their definitions, and on cases with one error of one kind."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn import categories, different_scores, draw, evidence, repeated
from oracles import Verdict, box_overlap, count_truth, interpolated, judge, unscored
from pelagia.core.types import Instances
from pelagia.errors import OptionError
from pelagia.metrics.bootstrap import image_weights
from pelagia.metrics.detection import Evidence
from pelagia.metrics.error_types import ERROR_TYPES, ErrorBreakdown, ImageErrors, error_types, gather_errors, worst_images
from pelagia.metrics.statistics import error_statistic

CLASSES = 3

# ---------------------------------------------------------------------------------------------- the definitions in loops

Place = tuple[int, int]  # image, object


def assign(
    truths: list[Instances], predictions: list[Instances], verdicts: list[Verdict], foreground: float, background: float
) -> tuple[dict[int, str], dict[int, Place]]:
    """Position among the verdicts -> type of error, and the true object that it is measured by."""
    kinds: dict[int, str] = {}
    aims: dict[int, Place] = {}
    for position, v in enumerate(verdicts):
        if v.right is not False:
            continue
        truth = truths[v.image]
        own, other = (0.0, -1), (0.0, -1)
        for j in range(len(truth)):
            if unscored(truth, j):
                continue
            value = box_overlap(predictions[v.image], v.index, truth, j, False)
            if truth.labels[j] == v.label and value > own[0]:
                own = value, j
            if truth.labels[j] != v.label and value > other[0]:
                other = value, j
        if background <= own[0] < foreground:
            kinds[position], aims[position] = "localisation", (v.image, own[1])
        elif other[0] >= foreground:
            kinds[position], aims[position] = "classification", (v.image, other[1])
        elif own[0] >= foreground:
            kinds[position], aims[position] = "duplicate", (v.image, own[1])
        elif max(own[0], other[0]) <= background:
            kinds[position] = "background"
        else:
            kinds[position], aims[position] = "both", (v.image, other[1])
    return kinds, aims


def average(outcomes: list[tuple[int, float, bool]], totals: list[int]) -> list[float]:
    """AP of each class; outcomes are (class, score, right)."""
    return [interpolated([(s, right) for c, s, right in outcomes if c == label], totals[label]) for label in range(CLASSES)]


def naive(
    truths: list[Instances], predictions: list[Instances], foreground: float = 0.5, background: float = 0.1
) -> dict[str, Any]:
    verdicts = judge(truths, predictions, foreground, box_overlap)
    kinds, aims = assign(truths, predictions, verdicts, foreground, background)
    totals = [count_truth(truths, label) for label in range(CLASSES)]
    held = {(v.image, v.truth) for v in verdicts if v.right}
    pointed = {aims[p] for p, kind in kinds.items() if kind in ("localisation", "classification")}
    everything = [(n, j) for n, truth in enumerate(truths) for j in range(len(truth)) if not unscored(truth, j)]
    missed = [place for place in everything if place not in held and place not in pointed]

    def outcomes(without: set[int], put_right: dict[int, int]) -> list[tuple[int, float, bool]]:
        return [
            (put_right.get(p, v.label), v.score, bool(v.right) or p in put_right)
            for p, v in enumerate(verdicts)
            if v.right is not None and (p not in without or p in put_right)
        ]

    def corrected(kind: str) -> list[tuple[int, float, bool]]:
        found, mended = set(held), {}
        for p in sorted((p for p in kinds if kinds[p] == kind), key=lambda p: -verdicts[p].score):
            if aims[p] not in found:
                found.add(aims[p])
                mended[p] = int(truths[aims[p][0]].labels[aims[p][1]])
        return outcomes({p for p in kinds if kinds[p] == kind}, mended)

    def remaining(gone: list[Place]) -> list[int]:
        return [total - sum(truths[n].labels[j] == label for n, j in gone) for label, total in enumerate(totals)]

    whole = outcomes(set(), {})
    plain = average(whole, totals)
    after = {kind: average(corrected(kind), totals) for kind in ("classification", "localisation")}
    for kind in ("both", "duplicate", "background"):
        after[kind] = average(outcomes({p for p in kinds if kinds[p] == kind}, {}), totals)
    after["missed"] = average(whole, remaining(missed))
    after["false positive"] = average(outcomes(set(kinds), {}), totals)
    after["false negative"] = average(whole, remaining([place for place in everything if place not in held]))
    gains = {
        kind: [
            math.nan if not totals[c] else 1 - plain[c] if math.isnan(values[c]) else values[c] - plain[c] for c in range(CLASSES)
        ]
        for kind, values in after.items()
    }

    def size(p: int) -> float:
        place = aims.get(p)
        item, index = (predictions[verdicts[p].image], verdicts[p].index) if place is None else (truths[place[0]], place[1])
        return area(item, index)

    labels = {kind: [verdicts[p].label for p in kinds if kinds[p] == kind] for kind in ERROR_TYPES}
    sizes = {kind: [size(p) for p in kinds if kinds[p] == kind] for kind in ERROR_TYPES}
    labels["missed"] = [int(truths[n].labels[j]) for n, j in missed]
    sizes["missed"] = [area(truths[n], j) for n, j in missed]
    return {"plain": plain, "gains": gains, "labels": labels, "sizes": sizes}


def area(item: Instances, index: int) -> float:
    x1, y1, x2, y2 = item.box_array[index]
    return float((x2 - x1) * (y2 - y1) if item.areas is None else item.areas[index])


def mean(values: list[float]) -> float:
    real = [value for value in values if not math.isnan(value)]
    return sum(real) / len(real) if real else math.nan


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.sampled_from([2, 5, 10]),
    st.sampled_from([(0.5, 0.1), (0.6, 0.3)]),
    st.booleans(),
)
def test_drawn_errors_equal_the_loops(seed: int, images: int, objects: int, levels: tuple[float, float], areas: bool) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=images, classes=CLASSES, objects=objects, found=20, areas=areas)
    truths = [
        item.replace(difficult=rng.random(len(item)) < 0.1, ignore=(rng.random(len(item)) < 0.1) & ~item.crowd) for item in truths
    ]
    # Twice as many shifts: overlaps between the levels occur.
    predictions = [item.replace(boxes=item.box_array + rng.integers(-15, 16, (len(item), 1))) for item in predictions]
    got = error_types(evidence(truths, predictions, CLASSES), foreground=levels[0], background=levels[1])
    expected = naive(truths, predictions, *levels)
    assert got.ap == pytest.approx(mean(expected["plain"]), abs=1e-12, nan_ok=True)
    for name, values in expected["gains"].items():
        np.testing.assert_allclose(got.class_gain[name], values, rtol=0, atol=1e-12, err_msg=name)
        assert got.gain[name] == pytest.approx(mean(values), abs=1e-12, nan_ok=True)
    for name in ERROR_TYPES:
        assert got.counts[name].tolist() == np.bincount(expected["labels"][name], minlength=CLASSES).tolist(), name
        bins = [(sum(low < size <= high for size in expected["sizes"][name])) for low, high in BINS]
        assert list(got.sizes[name].values()) == bins


@pytest.mark.parametrize("seed", range(5))
def test_gains_of_weighted_images_are_those_of_repeated_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=5, classes=CLASSES, objects=6, found=14)
    predictions = different_scores(rng, [item.replace(boxes=item.box_array + 3) for item in predictions])
    statistic = error_statistic(gather_errors(evidence(truths, predictions, CLASSES)))
    for resample in range(6):
        weights = image_weights(5, seed, resample)
        expected = naive(repeated(truths, weights), repeated(predictions, weights))["gains"]
        got = statistic(weights)
        for name, values in expected.items():
            single = [got[f"taxon {label}", f"AP50 lost, {name}"] for label in range(CLASSES)]
            np.testing.assert_allclose(single, values, rtol=0, atol=1e-12, err_msg=name)
            assert got["", f"AP50 lost, {name}"] == pytest.approx(mean(values), abs=1e-12, nan_ok=True)


BINS = [(-math.inf, 32**2), (32**2, 96**2), (96**2, math.inf)]


def test_every_type_occurs_in_what_is_drawn() -> None:
    rng = np.random.default_rng(0)
    truths, predictions = draw(rng, images=6, classes=CLASSES, objects=10, found=30)
    predictions = [item.replace(boxes=item.box_array + rng.integers(-15, 16, (len(item), 1))) for item in predictions]
    got = error_types(evidence(truths, predictions, CLASSES))
    for name in ERROR_TYPES:
        assert got.counts[name].sum() > 0, name
        assert got.gain[name] > 0, name


# ---------------------------------------------------------------------------------------------- one error of one kind

A, B, FAR = [0, 0, 10, 10], [100, 0, 110, 10], [100, 100, 110, 110]
HALF = 51 / 101  # AP when every second object is found, without false positives
FULL = [(0, A, None), (0, B, None)]


def items(rows: list[tuple[int, list[float], float | None]], **flags: list[bool]) -> Instances:
    scores = [score for _, _, score in rows if score is not None]
    return Instances(
        labels=np.array([label for label, _, _ in rows]),
        boxes=np.array([box for _, box, _ in rows], dtype=float).reshape(-1, 4),
        scores=np.array(scores) if scores or not rows else None,
        **{name: np.array(value) for name, value in flags.items()},
    )


def breakdown(truth: Instances, found: Instances) -> ErrorBreakdown:
    return error_types(evidence([truth], [found], 2))


@pytest.mark.parametrize(
    ("name", "rows", "ap", "gain", "label"),
    [
        ("classification", [(0, A, 0.9), (1, B, 0.5)], HALF, 1 - HALF, 1),
        ("localisation", [(0, A, 0.9), (0, [105, 0, 115, 10], 0.5)], HALF, 1 - HALF, 0),  # IoU 1/3
        ("both", [(0, A, 0.9), (0, B, 0.8), (1, [105, 0, 115, 10], 0.5)], 1.0, 0.0, 1),
        ("duplicate", [(0, A, 0.9), (0, A, 0.8), (0, B, 0.7)], (51 + 50 * 2 / 3) / 101, 50 / 3 / 101, 0),
        ("background", [(0, FAR, 0.9), (0, A, 0.8), (0, B, 0.7)], 2 / 3, 1 / 3, 0),
        ("missed", [(0, A, 0.9)], HALF, 1 - HALF, 0),
    ],
)
def test_one_error(name: str, rows: list[tuple[int, list[float], float | None]], ap: float, gain: float, label: int) -> None:
    got = breakdown(items(FULL), items(rows))
    assert got.ap == pytest.approx(ap)
    for other in ERROR_TYPES:
        assert got.counts[other].tolist() == [int(other == name and label == 0), int(other == name and label == 1)], other
        assert got.gain[other] == pytest.approx(gain if other == name else 0, abs=1e-12), other
        assert got.sizes[other] == {"small": int(other == name), "medium": 0, "large": 0}
    assert np.isnan(got.class_gain[name][1])


def test_no_error() -> None:
    got = breakdown(items(FULL), items([(0, A, 0.9), (0, B, 0.8)]))
    assert got.ap == pytest.approx(1)
    assert all(gain == pytest.approx(0, abs=1e-12) for gain in got.gain.values())
    assert sum(values.sum() for values in got.counts.values()) == 0


def test_a_corrected_prediction_whose_object_is_found_is_removed() -> None:
    badly = [105, 0, 115, 10]
    got = breakdown(items(FULL), items([(0, badly, 0.9), (0, A, 0.8), (0, B, 0.7)]))
    assert got.ap == pytest.approx(2 / 3)
    assert got.counts["localisation"].tolist() == [1, 0]
    assert got.gain["localisation"] == pytest.approx(1 / 3)
    # Of two that point at one object the better is put right and the other removed.
    got = breakdown(items(FULL), items([(0, badly, 0.9), (0, A, 0.8), (0, badly, 0.7)]))
    assert got.gain["localisation"] == pytest.approx(1 - got.ap)


def test_localisation_goes_before_classification() -> None:
    truth = items([(0, A, None), (1, [0, 0, 10, 4], None)])
    got = breakdown(truth, items([(1, A, 0.9)]))  # its class overlaps by 0.4, the other one by 1
    assert got.counts["localisation"].tolist() == [0, 1]
    assert got.counts["classification"].tolist() == [0, 0]
    assert got.counts["missed"].tolist() == [1, 0]


def test_overlaps_on_the_limits() -> None:
    def kind(box: list[float], label: int) -> str:
        got = breakdown(items([(0, A, None)]), items([(label, box, 0.9)]))
        return next(name for name in ERROR_TYPES if name != "missed" and got.counts[name].sum())

    assert kind([0, 0, 10, 1], 0) == "localisation"  # IoU 0.1
    assert kind([0, 0, 10, 1], 1) == "background"
    assert kind([0, 0, 10, 1.01], 1) == "both"
    assert kind([0, 0, 10, 5], 1) == "classification"  # IoU 0.5
    assert kind([0, 0, 10, 4.99], 1) == "both"


def test_false_positives_and_false_negatives_as_wholes() -> None:
    got = breakdown(items(FULL), items([(0, FAR, 0.9), (0, A, 0.8)]))
    assert got.ap == pytest.approx(0.5 * HALF)
    assert got.gain["false positive"] == pytest.approx(0.5 * HALF)
    assert got.gain["false negative"] == pytest.approx(0.5 - 0.5 * HALF)


def test_a_class_with_nothing_but_misses_gains_everything() -> None:
    got = breakdown(items(FULL), items([]))
    assert got.ap == 0
    assert got.gain["missed"] == got.gain["false negative"] == 1
    assert got.counts["missed"].tolist() == [2, 0]


def test_crowds_and_difficult_objects_make_no_errors() -> None:
    got = breakdown(
        items([*FULL, (0, FAR, None)], difficult=[False, False, True]), items([(0, A, 0.9), (0, B, 0.8), (0, FAR, 0.7)])
    )
    assert sum(values.sum() for values in got.counts.values()) == 0
    assert got.ap == pytest.approx(1)


def test_sizes_are_those_of_the_true_object() -> None:
    truth = Instances(labels=np.zeros(1), boxes=np.array([[0, 0, 50, 50.0]]), areas=np.array([20000.0]))
    off = Instances(labels=np.zeros(2), boxes=np.array([[0, 0, 50, 20], [150, 150, 183, 183.0]]), scores=np.array([0.9, 0.8]))
    got = error_types(evidence([truth], [off], 1))
    assert got.sizes["localisation"] == {"small": 0, "medium": 0, "large": 1}
    assert got.sizes["background"] == {"small": 0, "medium": 1, "large": 0}


def test_text_and_json() -> None:
    got = breakdown(items(FULL), items([(0, A, 0.9), (1, B, 0.5)]))
    values = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert values["counts"]["classification"] == [0, 1]
    assert values["class_gain"]["missed"] == [0, None]
    assert values["sizes"]["classification"] == {"small": 1, "medium": 0, "large": 0}
    header, rows = got.rows()
    assert [row[0] for row in rows] == [*ERROR_TYPES, "false positive", "false negative"]
    assert all(len(row) == len(header) for row in rows)
    assert f"{1 - HALF:.3f}" in "\n".join(got.lines())


def test_levels_that_cannot_be_used_are_refused() -> None:
    some = evidence([items(FULL)], [items([(0, A, 0.9)])], 2, iou_thresholds=(0.5, 0.75))
    assert error_types(some, foreground=0.75).ap == pytest.approx(HALF)
    for levels in ({"foreground": 0.6}, {"background": 0.5}, {"background": 0.0}):
        with pytest.raises(OptionError, match=r"error types need an IoU of .* among the thresholds \(0.5, 0.75\)"):
            error_types(some, **levels)


# ---------------------------------------------------------------------------------------------- images


def crowded() -> tuple[list[Instances], list[Instances], Evidence]:
    truths, predictions = draw(np.random.default_rng(3), images=8, classes=2, objects=6, found=12)
    return truths, predictions, evidence(truths, predictions, 2)


@pytest.mark.parametrize("thresholds", [0.5, 0, {"taxon 0": 0.3, "taxon 1": 0.6}, {"taxon 1": 0.6}, {"taxon 0": math.nan}, None])
def test_worst_images_equal_counting(thresholds: Any) -> None:
    truths, predictions, some = crowded()
    table = thresholds if isinstance(thresholds, dict) else dict.fromkeys(("taxon 0", "taxon 1"), thresholds)
    if thresholds is None:
        table = some.result().thresholds
    verdicts = judge(truths, predictions, 0.5, box_overlap)
    levels = [table.get(item.name, math.nan) for item in categories(2)]
    expected = []
    for image, truth in enumerate(truths):
        kept = [v for v in verdicts if v.image == image and v.right is not None and v.score >= levels[v.label]]
        correct = sum(v.right is True for v in kept)
        total = sum(not unscored(truth, j) for j in range(len(truth)))
        expected.append(ImageErrors(image, correct, len(kept) - correct, total - correct))
    expected = [item for item in expected if item.false + item.missed]
    assert expected
    assert worst_images(some, thresholds) == sorted(expected, key=lambda item: -(item.false + item.missed))


def test_f1_of_an_image() -> None:
    assert ImageErrors(0, 2, 1, 1).f1 == pytest.approx(4 / 6)
    assert math.isnan(ImageErrors(0, 0, 0, 0).f1)
