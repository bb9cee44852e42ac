"""Panoptic quality against bitmaps and loops written from the paper, and on cases small enough to count by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagia.core.types import Category, PanopticMap, Segment
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.bootstrap import image_weights
from pelagia.metrics.contingency import contingency
from pelagia.metrics.panoptic import PanopticTally, evaluate_panoptic
from pelagia.metrics.statistics import panoptic_statistic

CLASSES = 4
CATEGORIES = [Category(10, "diatom"), Category(20, "copepod"), Category(7, "water", is_thing=False), Category(8, "never seen")]


def strip(*runs: tuple[int, int], **segments: tuple[int, bool]) -> PanopticMap:
    """A map of one row: (id, pixels) from left to right; `s3=(label, crowd)` describes segment 3."""
    ids = np.repeat([item for item, _ in runs], [length for _, length in runs]).astype(np.int32)[None]
    listed = tuple(Segment(int(name[1:]), label, crowd=crowd) for name, (label, crowd) in segments.items())
    return PanopticMap(ids, listed)


def counted(truth: PanopticMap, predicted: PanopticMap) -> list[list[float]]:
    tally = PanopticTally(CATEGORIES)
    tally.add(truth, predicted)
    values: list[list[float]] = tally.counts[0].tolist()
    return values


def naive(truth: PanopticMap, predicted: PanopticMap) -> list[list[float]]:
    """One bitmap a segment, all pairs; [C][sum of IoU, TP, FP, FN]."""
    void = truth.ids == 0
    counts = [[0.0, 0, 0, 0] for _ in range(CLASSES)]
    found_truth, found_predicted = set(), set()
    for g in truth.segments:
        for p in predicted.segments:
            if g.label != p.label or g.crowd:
                continue
            real, guess = truth.ids == g.id, predicted.ids == p.id
            iou = (real & guess).sum() / ((real | guess) & ~(guess & void)).sum()
            if iou > 0.5:
                assert g.id not in found_truth
                assert p.id not in found_predicted
                found_truth.add(g.id)
                found_predicted.add(p.id)
                counts[g.label][0] += iou
                counts[g.label][1] += 1
    for g in truth.segments:
        if g.id not in found_truth and not g.crowd:
            counts[g.label][3] += 1
    for p in predicted.segments:
        if p.id in found_predicted:
            continue
        excused = void.copy()
        for g in truth.segments:
            if g.crowd and g.label == p.label:
                excused |= truth.ids == g.id
        guess = predicted.ids == p.id
        if (guess & excused).sum() / guess.sum() <= 0.5:
            counts[p.label][2] += 1
    return counts


def draw_pair(rng: np.random.Generator) -> tuple[PanopticMap, PanopticMap]:
    """A small truth with void and crowds, and a disturbed copy of it under other ids."""
    cells = rng.integers(0, 6, tuple(rng.integers(1, 5, 2))).repeat(2, axis=0).repeat(3, axis=1)
    noise = rng.random(cells.shape) < rng.choice([0.0, 0.2, 0.5])
    disturbed = np.where(noise, rng.integers(0, 6, cells.shape), cells)
    label = np.append(0, rng.integers(0, CLASSES - 1, 5))
    guessed = np.where(rng.random(6) < 0.8, label, rng.integers(0, CLASSES - 1, 6))
    crowd = rng.random(6) < 0.25
    maps = []
    for grid, labels, crowds in ((cells, label, crowd), (disturbed, guessed, np.zeros(6, dtype=bool))):
        names = np.append(0, rng.permutation(1000)[:5] * 16001 + 1).astype(np.int32)
        listed = [
            Segment(int(names[i]), int(labels[i]), crowd=bool(crowds[i])) for i in rng.permutation(np.unique(grid)).tolist() if i
        ]
        maps.append(PanopticMap(names[grid], tuple(listed)))
    return maps[0], maps[1]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_counts_equal_those_of_bitmaps(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [draw_pair(rng) for _ in range(images)]
    tally = PanopticTally(CATEGORIES)
    for truth, predicted in pairs:
        tally.add(truth, predicted)
    wanted = np.array([naive(*pair) for pair in pairs])
    np.testing.assert_array_equal(tally.counts[..., 1:], wanted[..., 1:])
    np.testing.assert_allclose(tally.counts[..., 0], wanted[..., 0], rtol=1e-12)

    iou, tp, fp, fn = wanted.sum(axis=0).T
    result = tally.result()
    np.testing.assert_allclose(tally.iou, iou, rtol=1e-12)
    for name, value in (("tp", tp), ("fp", fp), ("fn", fn)):
        assert getattr(tally, name).tolist() == getattr(result, name).tolist() == value.tolist()
    some = [label for label in range(CLASSES) if tp[label] + fp[label] + fn[label] > 0]
    pq = [iou[c] / (tp[c] + fp[c] / 2 + fn[c] / 2) for c in some]
    rq = [tp[c] / (tp[c] + fp[c] / 2 + fn[c] / 2) for c in some]
    sq = [iou[c] / tp[c] if tp[c] else 0.0 for c in some]
    for name, values in (("pq", pq), ("sq", sq), ("rq", rq)):
        np.testing.assert_allclose(getattr(result, name)[some], values, rtol=1e-12)
        assert getattr(result.all, name) == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True)
        for group, kind in ((result.things, True), (result.stuff, False)):
            of_kind = [value for c, value in zip(some, values, strict=True) if CATEGORIES[c].is_thing is kind]
            assert getattr(group, name) == pytest.approx(np.mean(of_kind) if of_kind else np.nan, nan_ok=True)
            assert group.classes == len(of_kind)
    assert result.all.classes == len(some)
    np.testing.assert_allclose(result.pq, result.sq * result.rq, rtol=1e-12)
    assert np.isnan(result.pq[3])


def test_two_classes_by_hand() -> None:
    truth = strip((1, 6), (2, 4), s1=(0, False), s2=(1, False))
    found = strip((9, 5), (4, 5), s9=(0, False), s4=(1, False))
    assert counted(truth, found) == [[5 / 6, 1, 0, 0], [4 / 5, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_an_overlap_of_one_half_is_no_match() -> None:
    truth = strip((1, 4), s1=(0, False))
    assert counted(truth, strip((1, 2), (0, 2), s1=(0, False)))[0] == [0, 0, 1, 1]
    assert counted(truth, strip((1, 3), (0, 1), s1=(0, False)))[0] == [0.75, 1, 0, 0]


def test_another_class_never_matches() -> None:
    assert counted(strip((1, 4), s1=(0, False)), strip((1, 4), s1=(1, False)))[:2] == [[0, 0, 0, 1], [0, 0, 1, 0]]


def test_predicted_pixels_on_void_do_not_count() -> None:
    truth = strip((0, 4), (1, 6), s1=(0, False))
    assert counted(truth, strip((3, 10), s3=(0, False)))[0] == [1, 1, 0, 0]
    # 3 / (6 + 6 - 3 - 3) is one half, and so is the share on void.
    assert counted(truth, strip((0, 1), (3, 6), (0, 3), s3=(0, False)))[0] == [0, 0, 1, 1]


@pytest.mark.parametrize(("outside", "false"), [(1, 0), (3, 1), (2, 1)])
def test_a_prediction_mostly_on_void_is_no_error(outside: int, false: int) -> None:
    truth = strip((0, 2), (1, 8), s1=(1, False))
    found = strip((5, 2 + outside), (0, 8 - outside), s5=(0, False))
    assert counted(truth, found)[0] == [0, 0, false, 0]


def test_a_crowd_is_neither_found_nor_missed_and_excuses_its_own_class() -> None:
    truth = strip((1, 6), (2, 4), s1=(0, True), s2=(1, False))
    assert counted(truth, strip((1, 6), (2, 4), s1=(0, False), s2=(1, False)))[:2] == [[0, 0, 0, 0], [1, 1, 0, 0]]
    assert counted(truth, strip((1, 6), (0, 4), s1=(1, False)))[:2] == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert counted(truth, strip((0, 10)))[:2] == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_void_and_every_crowd_of_the_class_excuse_together() -> None:
    kinds = {"s1": (0, True), "s2": (0, True), "s3": (1, False)}
    truth = strip((0, 1), (1, 1), (2, 1), (3, 2), **kinds)
    assert counted(truth, strip((7, 5), s7=(0, False)))[0] == [0, 0, 0, 0]
    other = strip((0, 1), (1, 1), (2, 1), (3, 2), s1=(0, True), s2=(2, True), s3=(1, False))
    assert counted(other, strip((7, 5), s7=(0, False)))[0] == [0, 0, 1, 0]


def test_result_by_hand() -> None:
    truth = strip((1, 4), (2, 4), (3, 4), s1=(0, False), s2=(0, False), s3=(2, False))
    found = strip((1, 4), (2, 2), (4, 2), (3, 4), s1=(0, False), s2=(0, False), s4=(1, False), s3=(2, False))
    result = evaluate_panoptic([truth], [found], CATEGORIES)
    assert result.tp.tolist() == [1, 0, 1, 0]
    assert result.fp.tolist() == [1, 1, 0, 0]
    assert result.fn.tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(result.pq, [0.5, 0, 1, np.nan])
    np.testing.assert_allclose(result.sq, [1, 0, 1, np.nan])
    np.testing.assert_allclose(result.rq, [0.5, 0, 1, np.nan])
    assert (result.all.pq, result.all.sq, result.all.rq, result.all.classes) == (0.5, pytest.approx(2 / 3), 0.5, 3)
    assert (result.things.pq, result.things.classes) == (0.25, 2)
    assert (result.stuff.pq, result.stuff.classes) == (1, 1)


def test_no_image_and_an_image_of_void() -> None:
    for result in (evaluate_panoptic([], [], CATEGORIES), evaluate_panoptic([strip((0, 3))], [strip((0, 3))], CATEGORIES)):
        assert np.isnan(result.pq).all()
        assert np.isnan(result.all.pq)
        assert result.all.classes == 0


def test_weights_count_as_copies_and_merging_as_adding() -> None:
    rng = np.random.default_rng(5)
    pairs = [draw_pair(rng) for _ in range(8)]
    weights = np.array([0, 2, 1, 0, 3, 1, 1, 0])
    tally, repeated = PanopticTally(CATEGORIES), PanopticTally(CATEGORIES)
    parts = PanopticTally(CATEGORIES), PanopticTally(CATEGORIES)
    for position, (pair, times) in enumerate(zip(pairs, weights, strict=True)):
        tally.add(*pair)
        parts[position // 5].add(*pair)
        for _ in range(times):
            repeated.add(*pair)
    weighted, wanted = tally.result(weights), repeated.result()
    assert tally.result(weights.astype(np.float64)).to_dict() == weighted.to_dict()
    assert weighted.images == wanted.images == 8
    assert weighted.tp.tolist() == wanted.tp.tolist()
    np.testing.assert_allclose(weighted.pq, wanted.pq)
    assert weighted.all.pq == pytest.approx(wanted.all.pq)
    assert weighted.all.pq != pytest.approx(tally.result().all.pq)

    parts[0].merge(parts[1])
    assert parts[0].images == 8
    np.testing.assert_array_equal(parts[0].counts, tally.counts)
    parts[1].merge(parts[1])
    assert len(parts[1].counts) == parts[1].images == 6
    parts[1].add(*pairs[0])
    np.testing.assert_array_equal(parts[1].counts[6], tally.counts[0])


def test_the_statistic_equals_bitmaps_of_repeated_images() -> None:
    rng = np.random.default_rng(6)
    pairs, tally = [draw_pair(rng) for _ in range(6)], PanopticTally(CATEGORIES)
    for pair in pairs:
        tally.add(*pair)
    statistic, counts = panoptic_statistic(tally), np.array([naive(*pair) for pair in pairs])
    for resample in range(10):
        weights = image_weights(6, 1, resample)
        iou, tp, fp, fn = np.repeat(counts, weights.astype(int), axis=0).sum(axis=0).T
        with np.errstate(invalid="ignore"):
            rq, pq = tp / (tp + fp / 2 + fn / 2), iou / (tp + fp / 2 + fn / 2)
        got = statistic(weights)
        assert [got[item.name, "PQ"] for item in CATEGORIES] == pytest.approx(pq, abs=1e-12, nan_ok=True)
        assert [got[item.name, "RQ"] for item in CATEGORIES] == pytest.approx(rq, abs=1e-12, nan_ok=True)
        assert got["", "PQ"] == pytest.approx(np.nanmean(pq), abs=1e-12)
        assert got["", "PQ things"] == pytest.approx(np.nanmean(pq[[0, 1, 3]]), abs=1e-12)
        assert got["", "RQ stuff"] == pytest.approx(rq[2], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    "weights", [np.ones(2, dtype=int), np.array([0.5]), np.array([-1]), np.array([np.nan]), np.array([True])]
)
def test_impossible_weights_are_refused(weights: np.ndarray) -> None:
    tally = PanopticTally(CATEGORIES)
    tally.add(strip((0, 1)), strip((0, 1)))
    with pytest.raises(OptionError, match="1 whole numbers"):
        tally.result(weights)


GOOD = strip((1, 2), (2, 2), s1=(0, False), s2=(1, False))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (strip((1, 2), (2, 2), s1=(0, False)), "segment 2 of the .* not among the segments"),
        (strip((1, 4), s1=(0, False), s3=(1, False)), "segment 3 of the .* no pixels"),
        (PanopticMap(GOOD.ids, (*GOOD.segments, Segment(2, 1))), "segment 2 of the .* twice"),
        (PanopticMap(GOOD.ids, (*GOOD.segments, Segment(0, 1))), "segment 0 of the .* void"),
        (strip((1, 4), s1=(4, False)), "label 4, but there are 4 classes"),
        (strip((1, 4), s1=(-1, False)), "label -1"),
        (strip((-1, 4)), "ids from -1"),
        (PanopticMap(GOOD.ids.astype(np.float64), GOOD.segments), "float64"),  # type: ignore[arg-type]
        (PanopticMap(GOOD.ids[0], GOOD.segments), r"shape \[4\]"),
        (strip((1, 5), s1=(0, False)), r"1 x 4 \(H x W\)|1 x 5 \(H x W\)"),
    ],
)
def test_maps_that_cannot_be_scored_are_refused(wrong: PanopticMap, message: str) -> None:
    for pair in ((GOOD, wrong), (wrong, GOOD)):
        tally = PanopticTally(CATEGORIES)
        tally.add(GOOD, GOOD)
        with pytest.raises(EvaluationError, match=message) as caught:
            tally.add(*pair)
        assert caught.value.where == "image 1"
        assert tally.images == len(tally.counts) == 1
        with pytest.raises(EvaluationError, match=message) as caught:
            tally.add(*pair, where="scan.tif")
        assert caught.value.where == "scan.tif"


def test_sequences_and_classes_must_agree() -> None:
    with pytest.raises(EvaluationError, match="1 predictions for 2 images"):
        evaluate_panoptic([GOOD, GOOD], [GOOD], CATEGORIES)
    with pytest.raises(EvaluationError, match="different classes"):
        PanopticTally(CATEGORIES).merge(PanopticTally(CATEGORIES[:2]))


def test_text_and_json() -> None:
    result = evaluate_panoptic([GOOD], [strip((1, 2), (2, 1), (0, 1), s1=(0, False), s2=(1, False))], CATEGORIES)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["images"] == 1
    assert values["all"] == {"pq": 0.5, "sq": 0.5, "rq": 0.5, "classes": 2}
    assert values["stuff"]["pq"] is None
    first = values["classes"][0]
    assert (first["name"], first["id"], first["tp"], first["iou"]) == ("diatom", 10, 1, 1.0)
    assert dict(result.summary())["PQ things"] == 0.5
    header, rows = result.class_rows()
    assert rows[1] == ["copepod", "thing", "0.000", "0.000", "0.000", "0", "1", "1"]
    assert all(len(row) == len(header) for row in rows)
    assert result.lines()[0] == "1 images, 2 segments, 2 predictions (panoptic)"
    assert str(result).splitlines()[-1].split() == ["never", "seen", "thing", "-", "-", "-", "0", "0", "0"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["uint8", "uint16", "int32", "int64", "uint64"]))
def test_the_contingency_table_counts_every_pixel(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(0, 7, 2))
    truth, predicted = rng.integers(0, 4, shape).astype(dtype), np.asfortranarray(rng.integers(0, 200, shape) // 50 * 60)
    table = contingency(truth, predicted)
    counts: dict[tuple[int, int], int] = {}
    for pair in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        counts[pair] = counts.get(pair, 0) + 1
    got = zip(table.truth_ids[table.truth].tolist(), table.predicted_ids[table.predicted].tolist(), strict=True)
    assert dict(zip(got, table.pixels.tolist(), strict=True)) == counts
    assert len(table.pixels) == len(counts)
    assert table.truth_area.tolist() == [int((truth == item).sum()) for item in np.unique(truth)]
    assert table.predicted_area.tolist() == [int((predicted == item).sum()) for item in np.unique(predicted)]


def test_two_thousand_segments_shifted_by_three_pixels() -> None:
    ids = (np.arange(1000)[:, None] // 25 * 50 + np.arange(1000)[None, :] // 20 + 1).astype(np.int32)
    listed = tuple(Segment(item, item % 3) for item in range(1, 2001))
    result = evaluate_panoptic([PanopticMap(ids, listed)], [PanopticMap(np.roll(ids, 3, axis=1), listed)], CATEGORIES)
    assert result.tp.sum() == 2000
    assert result.fp.sum() == result.fn.sum() == 0
    assert result.all.pq == pytest.approx(17 / 23)
