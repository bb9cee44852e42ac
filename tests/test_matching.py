"""The matcher against loops written from the rules of COCO and VOC, its similarities against pycocotools and shapely."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from shapely.geometry import Polygon

from drawn import SIDE, draw_poses, whole
from oracles import pose_overlap
from pelagia.core.masks import encode
from pelagia.core.oriented import to_corners
from pelagia.core.types import Instances, MaskCrop
from pelagia.errors import EvaluationError
from pelagia.metrics.kernels import shared_pixels
from pelagia.metrics.matching import Pairs, compare, find_pairs, match, ranks, similarity
from pelagia.metrics.objects import Objects, Runs, flatten, tallest


def boxes(rng: np.random.Generator, images: int, most: int, side: int = 60) -> list[Instances]:
    items = []
    for _ in range(images):
        count = int(rng.integers(0, most + 1))
        corner, size = rng.integers(0, side, (count, 2)), rng.integers(0, 25, (count, 2))
        items.append(Instances(labels=rng.integers(0, 3, count), boxes=np.concatenate([corner, corner + size], axis=1)))
    return items


def all_pairs(a: Objects, b: Objects, keys: tuple[np.ndarray, np.ndarray], crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(keys[0][:, None] == keys[1][None, :])
    return np.stack([rows, columns], axis=1), similarity(a, b, (rows, columns), crowd[columns])


# ---------------------------------------------------------------------------------------------- pairs


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([3, 20, 150]), st.sampled_from([1, 10**12, -7]), st.booleans()
)
def test_find_pairs_finds_every_pair_and_only_those(seed: int, images: int, most: int, apart: int, ordered: bool) -> None:
    rng = np.random.default_rng(seed)
    found, truth = (flatten(boxes(rng, images, most), "boxes", what="test") for _ in range(2))
    crowd = rng.random(len(truth)) < 0.2
    keys = (found.image * 3 + found.label) * apart, (truth.image * 3 + truth.label) * apart
    order = rng.permutation(len(found))
    pairs = find_pairs(found, truth, keys, crowd, 0.3, order=order if ordered else None)
    expected, value = all_pairs(found, truth, keys, crowd)
    wanted = {(int(i), int(j)): float(v) for (i, j), v in zip(expected, value, strict=True) if v >= 0.3}
    got = {(int(i), int(j)): float(v) for i, j, v in zip(pairs.prediction, pairs.truth, pairs.value, strict=True)}
    assert got == wanted
    assert len(pairs) == len(wanted)
    turn = np.argsort(order) if ordered else np.arange(len(found))
    assert list(got) == sorted(got, key=lambda pair: (turn[pair[0]], pair[1]))


def test_more_pairs_than_objects() -> None:
    places = np.tile([0, 0, 10, 10.0], (70, 1)) + np.arange(70)[:, None] * 0.01
    objects = flatten([Instances(labels=np.zeros(70), boxes=places)], "boxes", what="test")
    nothing = np.zeros(70, dtype=bool)
    pairs = find_pairs(objects, objects, (objects.image, objects.image), nothing, 0.3)
    rows, columns = (part.ravel() for part in np.indices((70, 70)))
    assert pairs.prediction.tolist() == rows.tolist()
    assert pairs.truth.tolist() == columns.tolist()
    np.testing.assert_array_equal(pairs.value, similarity(objects, objects, (rows, columns), nothing[columns]))


def test_a_wide_object_among_many_narrow_ones_is_found() -> None:
    left = np.arange(0.0, 4000, 4)
    narrow = np.stack([left, np.zeros(1000), left + 2, np.full(1000, 10.0)], axis=1)
    truth = Instances(labels=np.zeros(1001), boxes=np.concatenate([[[0, 0, 4000, 10.0]], narrow]))
    found = Instances(labels=np.zeros(1), boxes=np.array([[10, 0, 3990, 10.0]]), scores=np.ones(1))
    objects, one = flatten([truth], "boxes", what="truth"), flatten([found], "boxes", what="predictions")
    pairs = find_pairs(one, objects, (one.image, objects.image), np.zeros(1001, dtype=bool), 0.3)
    assert pairs.truth.tolist() == [0]
    assert pairs.value[0] == pytest.approx(0.995)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 7))
def test_pairs_of_poses_equal_the_formula(seed: int, images: int, points: int) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw_poses(
        rng, images=images, classes=2, objects=4, found=6, points=points, areas=bool(rng.random() < 0.5)
    )
    sigmas = rng.uniform(0.02, 0.2, points)
    truth, found = (flatten(items, "keypoints", what="test") for items in (truths, predictions))
    pairs = find_pairs(found, truth, (found.image, truth.image), truth.crowd, 0.2, sigmas=sigmas)
    got = {(int(i), int(j)): float(v) for i, j, v in zip(pairs.prediction, pairs.truth, pairs.value, strict=True)}
    formula = pose_overlap(sigmas.tolist())
    wanted, row, first = {}, 0, 0
    for real, some in zip(truths, predictions, strict=True):
        values = {(row + i, first + j): formula(some, i, real, j, False) for i in range(len(some)) for j in range(len(real))}
        wanted |= {pair: value for pair, value in values.items() if value >= 0.2}
        row, first = row + len(some), first + len(real)
    assert got == pytest.approx(wanted, abs=1e-12)


def test_poses_that_do_not_touch_can_be_alike() -> None:
    truth = Instances(
        labels=np.zeros(1), boxes=np.array([[0, 0, 10, 10.0]]), keypoints=np.array([[[5, 5, 2.0]]]), areas=np.array([1e4])
    )
    found = Instances(
        labels=np.zeros(1), boxes=np.array([[20, 5, 20, 5.0]]), keypoints=np.array([[[20, 5, 1.0]]]), scores=np.ones(1)
    )
    real, some = flatten([truth], "keypoints", what="truth"), flatten([found], "keypoints", what="predictions")
    pairs = find_pairs(some, real, (some.image, real.image), real.crowd, 0.1, sigmas=np.array([0.1]))
    assert pairs.value == pytest.approx([np.exp(-(15**2) / (2 * 1e4 * 0.2**2))])


# ---------------------------------------------------------------------------------------------- matching


def naive_match(pairs: Pairs, order: np.ndarray, thresholds: np.ndarray, ignored: np.ndarray, again: np.ndarray) -> np.ndarray:
    """pycocotools' loop: truth with the ignored last, stop at the first ignored one when a scored one is held."""
    result = np.full((len(ignored), len(thresholds), len(order)), -1)
    values = {(int(i), int(j)): float(v) for i, j, v in zip(pairs.prediction, pairs.truth, pairs.value, strict=True)}
    for area, ignore in enumerate(ignored):
        for row, threshold in enumerate(thresholds):
            used: set[int] = set()
            for prediction in order.tolist():
                best, reach = -1, float(threshold)
                for truth in np.argsort(ignore, kind="stable").tolist():
                    if truth in used and not again[truth]:
                        continue
                    if best > -1 and not ignore[best] and ignore[truth]:
                        break
                    if values.get((prediction, truth), 0.0) >= reach:
                        best, reach = truth, values[prediction, truth]
                if best > -1:
                    used.add(best)
                    result[area, row, prediction] = best
    return result


def naive_settled(pairs: Pairs, order: np.ndarray, thresholds: np.ndarray, ignored: np.ndarray, again: np.ndarray) -> np.ndarray:
    """VOC's rule: only the object of largest similarity (of equals the first) is asked, ignored or not."""
    result = np.full((len(ignored), len(thresholds), len(order)), -1)
    for row, threshold in enumerate(thresholds):
        used: set[int] = set()
        for prediction in order.tolist():
            mine = np.flatnonzero(pairs.prediction == prediction)
            mine = mine[np.argsort(pairs.truth[mine])]
            if not len(mine) or pairs.value[mine].max() < threshold:
                continue
            best = int(pairs.truth[mine[np.argmax(pairs.value[mine])]])
            if best not in used or again[best]:
                result[:, row, prediction] = best
                used.add(best)
    return result


@pytest.mark.parametrize(("rule", "settled"), [(naive_match, False), (naive_settled, True)])
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 25), st.integers(1, 12), st.sampled_from([0.1, 0.5, 1.0]))
def test_match_equals_the_loop(
    rule: Callable[..., np.ndarray], settled: bool, seed: int, found: int, real: int, density: float
) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = np.nonzero(rng.random((found, real)) < density)
    order, thresholds = rng.permutation(found), np.array([0.5, 0.7, 0.9])
    arranged = np.lexsort((columns, np.argsort(order)[rows]))
    pairs = Pairs(rows[arranged], columns[arranged], rng.choice([0.5, 0.6, 0.7, 0.7, 0.8, 0.9], len(rows)))
    again = rng.random(real) < 0.2
    ignored = again | (rng.random((3, real)) < 0.3)
    matches = match(pairs, rng.permutation(found), thresholds, ignored, again, settled=settled)
    expected = rule(pairs, order, thresholds, ignored, again)
    for area in range(3):
        got = [matches.taken(area, place) for place in range(len(thresholds))]
        np.testing.assert_array_equal(got, expected[area])


def test_settled_predictions_do_not_take_the_second_best() -> None:
    pairs = Pairs(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([0.9, 0.8, 0.7]))
    nothing = np.zeros(2, dtype=bool)
    for settled, expected in ((False, [0, 1]), (True, [0, -1])):
        matches = match(pairs, np.arange(2), np.array([0.5]), nothing[None], nothing, settled=settled)
        assert matches.taken(0, 0).tolist() == expected


@pytest.mark.parametrize("apart", [1, 10**12, -1])
def test_ranks_are_stable(apart: int) -> None:
    key = np.array([1, 0, 1, 1, 0]) * apart
    order, rank = ranks(key, np.array([0.5, 0.1, 0.9, 0.5, 0.1]))
    assert order.tolist() == ([1, 4, 2, 0, 3] if apart > 0 else [2, 0, 3, 1, 4])
    assert rank.tolist() == [1, 0, 0, 2, 1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=30))
def test_ranks_equal_sorting(drawn: list[tuple[int, int]]) -> None:
    key, score = np.array([k for k, _ in drawn], dtype=int), np.array([s / 4 for _, s in drawn])
    order, rank = ranks(key, score)
    assert order.tolist() == sorted(range(len(drawn)), key=lambda i: (key[i], -score[i]))
    for i in range(len(drawn)):
        better = [j for j in range(len(drawn)) if key[j] == key[i] and (score[j] > score[i] or (score[j] == score[i] and j < i))]
        assert rank[i] == len(better)


def test_compare_sets_the_rules() -> None:
    places = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 60, 10], [80, 0, 90, 10.0]])
    real = Instances(labels=np.array([0, 1, 0, 1]), boxes=places, crowd=[1, 0, 0, 0], difficult=[0, 1, 0, 0], ignore=[0, 0, 1, 0])
    inside = np.array([[40, 0, 50, 10], [30, 0, 50, 10], [31, 0, 50, 10.0]])  # shares 1, 1/2 and 10/19 of themselves
    some = Instances(labels=np.array([1, 1, 1]), boxes=inside, scores=np.ones(3))
    comparison = compare(flatten([real], "boxes", what="truth"), flatten([some], "boxes", what="predictions"), 2)
    assert comparison.truth.bounds.tolist() == places[[0, 1, 3]].tolist()
    assert comparison.crowd.tolist() == [True, False, False]
    assert comparison.again.tolist() == comparison.unscored.tolist() == [True, True, False]
    assert comparison.excluded.tolist() == [True, False, True]


# ---------------------------------------------------------------------------------------------- masks as runs


def draw_crops(rng: np.random.Generator, count: int) -> list[MaskCrop]:
    """Empty, full, one pixel wide, at the borders, whole columns: what run lengths trip over."""
    crops = []
    for _ in range(count):
        height, width = (int(rng.choice([1, 2, 17, 60, SIDE])) for _ in range(2))
        x, y = (int(rng.choice([0, (SIDE - side) // 2, SIDE - side])) for side in (width, height))
        crops.append(MaskCrop(x, y, rng.random((height, width)) < rng.choice([0.0, 0.02, 0.6, 1.0])))
    return crops


def runs_of(crops: list[MaskCrop], height: int = SIDE) -> Runs:
    item = Instances(labels=np.zeros(len(crops)), boxes=np.zeros((len(crops), 4)), masks=tuple(crops))
    runs = flatten([item], "masks", what="test", heights=np.array([height])).runs
    assert runs is not None
    return runs


def bitmap(runs: Runs, index: int) -> np.ndarray:
    """Run lengths painted pixel by pixel, down the columns."""
    flat, at = np.zeros(SIDE * SIDE, dtype=np.uint8), 0
    for place, length in enumerate(runs.counts[runs.starts[index] : runs.starts[index + 1]].tolist()):
        flat[at : at + length] = place % 2
        at += length
    return flat.reshape(SIDE, SIDE).T


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_runs_equal_bitmaps_and_pycocotools(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    crops = draw_crops(rng, count)
    runs = runs_of(crops)
    full = [whole(crop) for crop in crops]
    encoded = [coco_mask.encode(np.asfortranarray(image)) for image in full]
    assert len(runs) == count
    assert runs.areas_and_bounds()[0].tolist() == [int(image.sum()) for image in full]
    for index, image in enumerate(full):
        np.testing.assert_array_equal(bitmap(runs, index), image)
        rows, columns = np.nonzero(image)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert runs.areas_and_bounds()[1][index].tolist() == tight
    chosen = rng.integers(0, count, 5) if count else np.zeros(0, dtype=np.int64)
    part = runs.select(chosen)
    assert part.heights.tolist() == [SIDE] * len(chosen)
    for index, source in enumerate(chosen):
        np.testing.assert_array_equal(bitmap(part, index), full[source])
    rows, columns = (side.ravel() for side in np.indices((len(chosen), count)))
    shared = shared_pixels(part.counts, part.starts, runs.counts, runs.starts, rows, columns)
    assert shared.tolist() == [int((full[chosen[i]] & full[j]).sum()) for i, j in zip(rows, columns, strict=True)]
    if count:
        area = coco_mask.area(encoded)[chosen]
        inside = np.asarray(coco_mask.iou([encoded[i] for i in chosen], encoded, [1] * count)) * area[:, None]
        np.testing.assert_allclose(shared.reshape(inside.shape), inside, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_runs_over_the_end_of_a_column_equal_bitmaps(seed: int, height: int, width: int) -> None:
    """Run lengths of whole images, in which a run goes on at the top of the next column."""
    rng = np.random.default_rng(seed)
    full = [rng.random((height, width)) < chance for chance in (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)]
    runs = Runs.of([encode(image).counts for image in full], np.full(6, height))
    assert runs.areas_and_bounds()[0].tolist() == [image.sum() for image in full]
    for image, bounds in zip(full, runs.areas_and_bounds()[1], strict=True):
        rows, columns = np.nonzero(image)
        assert bounds.tolist() == ([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0])
    rows, columns = (side.ravel() for side in np.indices((6, 6)))
    shared = shared_pixels(runs.counts, runs.starts, runs.counts, runs.starts, rows, columns)
    assert shared.tolist() == [(full[i] & full[j]).sum() for i, j in zip(rows, columns, strict=True)]


def test_what_lies_left_of_or_above_the_image_is_cut() -> None:
    crops = [MaskCrop(-2, -3, np.ones((5, 6), dtype=bool)), MaskCrop(-9, 2, np.ones((5, 6), dtype=bool))]
    runs = runs_of(crops)
    assert runs.areas_and_bounds()[1].tolist() == [[0, 0, 4, 2], [0, 0, 0, 0]]
    assert runs.areas_and_bounds()[0].tolist() == [8, 0]


def test_the_heights_hold_the_masks_of_both_sides() -> None:
    low = Instances(labels=np.zeros(1), boxes=np.zeros((1, 4)), masks=(MaskCrop(0, 5, np.ones((2, 2), dtype=bool)),))
    high = Instances(labels=np.zeros(1), boxes=np.zeros((1, 4)), masks=(MaskCrop(0, 1, np.ones((2, 2), dtype=bool)),))
    heights = tallest([low, high, Instances.empty()], [high, high, Instances.empty()])
    assert heights.tolist() == [7, 3, 1]
    a, b = (flatten(items, "masks", what="test") for items in ([low], [high]))
    zero = np.zeros(1, dtype=np.int64)
    with pytest.raises(EvaluationError, match="7 pixels high, the true one for 3"):
        similarity(a, b, (zero, zero), np.zeros(1, dtype=bool))


def test_mask_similarity_equals_pycocotools() -> None:
    rng = np.random.default_rng(0)
    crops = [
        MaskCrop(int(x), int(y), rng.random((int(h), int(w))) < 0.7)
        for x, y, w, h in zip(
            *(rng.integers(0, 20, 16) for _ in range(2)), *(rng.integers(1, 20, 16) for _ in range(2)), strict=True
        )
    ]
    encoded = [coco_mask.encode(np.asfortranarray(whole(crop))) for crop in crops]
    item = Instances(labels=np.zeros(16), boxes=np.zeros((16, 4)), masks=tuple(crops))
    objects = flatten([item], "masks", what="test")
    rows, columns = (part.ravel() for part in np.indices((16, 16)))
    for flag in (False, True):
        value = similarity(objects, objects, (rows, columns), np.full(256, flag)).reshape(16, 16)
        np.testing.assert_array_equal(value, coco_mask.iou(encoded, encoded, [int(flag)] * 16))


# ---------------------------------------------------------------------------------------------- oriented boxes, flat arrays


def test_oriented_similarity_equals_shapely() -> None:
    rng = np.random.default_rng(1)
    values = np.column_stack(
        [rng.uniform(0, 30, (12, 2)), rng.uniform(15, 30, 12), rng.uniform(5, 15, 12), rng.uniform(-1.5, 1.5, 12)]
    )
    objects = flatten([Instances(labels=np.zeros(12), oriented=values)], "oriented", what="test")
    polygons = [Polygon(corners) for corners in to_corners(values)]
    rows, columns = (part.ravel() for part in np.indices((12, 12)))
    crowd = rng.random(144) < 0.5
    value = similarity(objects, objects, (rows, columns), crowd)
    for got, i, j, flag in zip(value, rows, columns, crowd, strict=True):
        shared = polygons[i].intersection(polygons[j]).area
        covered = polygons[i].area if flag else polygons[i].union(polygons[j]).area
        assert got == pytest.approx(shared / covered, abs=1e-9)


def test_flatten_keeps_images_and_order() -> None:
    items = [
        Instances(labels=np.array([2, 1]), boxes=np.array([[0, 0, 2, 3], [1, 1, 5, 5.0]]), areas=np.array([5.0, np.nan])),
        Instances.empty(),
        Instances(labels=np.array([0]), boxes=np.array([[4, 4, 4, 9.0]])),
    ]
    objects = flatten(items, "boxes", what="test")
    assert objects.image.tolist() == [0, 0, 2]
    assert objects.label.tolist() == [2, 1, 0]
    assert objects.area.tolist() == [6, 16, 0]
    assert objects.size.tolist() == [5, 16, 0]
    part = objects.select(np.array([2, 0]))
    assert part.label.tolist() == [0, 2]
    assert part.bounds.tolist() == [[4, 4, 4, 9], [0, 0, 2, 3]]
