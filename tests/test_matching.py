"""The matcher against loops written from COCO's rule, and its similarities against pycocotools and shapely."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from shapely.geometry import Polygon

from pelagia.core.oriented import to_corners
from pelagia.core.types import Instances, MaskCrop
from pelagia.metrics.matching import Pairs, Shapes, find_pairs, flatten, match, ranks, similarity


def boxes(rng: np.random.Generator, images: int, most: int, side: int = 60) -> list[Instances]:
    items = []
    for _ in range(images):
        count = int(rng.integers(0, most + 1))
        corner, size = rng.integers(0, side, (count, 2)), rng.integers(0, 25, (count, 2))
        items.append(Instances(labels=rng.integers(0, 3, count), boxes=np.concatenate([corner, corner + size], axis=1)))
    return items


def all_pairs(a: Shapes, b: Shapes, keys: tuple[np.ndarray, np.ndarray], crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(keys[0][:, None] == keys[1][None, :])
    return np.stack([rows, columns], axis=1), similarity(a, b, (rows, columns), crowd[columns])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([3, 20, 150]))
def test_find_pairs_finds_every_pair_and_only_those(seed: int, images: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    found, truth = (flatten(boxes(rng, images, most), "boxes", what="test") for _ in range(2))
    crowd = rng.random(len(truth)) < 0.2
    keys = found.image * 3 + found.label, truth.image * 3 + truth.label
    pairs = find_pairs(found, truth, keys, crowd, 0.3)
    expected, value = all_pairs(found, truth, keys, crowd)
    wanted = {(int(i), int(j)): float(v) for (i, j), v in zip(expected, value, strict=True) if v >= 0.3}
    got = {(int(i), int(j)): float(v) for i, j, v in zip(pairs.prediction, pairs.truth, pairs.value, strict=True)}
    assert got == wanted
    assert len(pairs) == len(wanted)


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 25), st.integers(1, 12), st.sampled_from([0.1, 0.5, 1.0]))
def test_match_equals_the_loop(seed: int, found: int, real: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = np.nonzero(rng.random((found, real)) < density)
    shuffled = rng.permutation(len(rows))
    pairs = Pairs(rows[shuffled], columns[shuffled], rng.choice([0.5, 0.6, 0.7, 0.7, 0.8, 0.9], len(rows)))
    again = rng.random(real) < 0.2
    ignored = again | (rng.random((3, real)) < 0.3)
    order, thresholds = rng.permutation(found), np.array([0.5, 0.7, 0.9])
    matches = match(pairs, order, thresholds, ignored, again)
    expected = naive_match(pairs, order, thresholds, ignored, again)
    for area in range(3):
        np.testing.assert_array_equal(matches.of(np.arange(found), area), expected[area])


def test_match_in_parts_equals_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pelagia.metrics.matching._MATCHED_AT_ONCE", 7)
    monkeypatch.setattr("pelagia.metrics.matching._PAIRS_AT_ONCE", 5)
    test_match_equals_the_loop()
    test_find_pairs_finds_every_pair_and_only_those()


def test_ranks_are_stable() -> None:
    order, rank = ranks(np.array([1, 0, 1, 1, 0]), np.array([0.5, 0.1, 0.9, 0.5, 0.1]))
    assert order.tolist() == [1, 4, 2, 0, 3]
    assert rank.tolist() == [1, 0, 0, 2, 1]


def test_mask_similarity_equals_pycocotools() -> None:
    rng = np.random.default_rng(0)
    crops = [
        MaskCrop(int(x), int(y), rng.random((int(h), int(w))) < 0.7)
        for x, y, w, h in zip(
            *(rng.integers(0, 20, 16) for _ in range(2)), *(rng.integers(1, 20, 16) for _ in range(2)), strict=True
        )
    ]
    encoded = []
    for crop in crops:
        full = np.zeros((40, 40), dtype=np.uint8)
        full[crop.y : crop.y + crop.bitmap.shape[0], crop.x : crop.x + crop.bitmap.shape[1]] = crop.bitmap
        encoded.append(coco_mask.encode(np.asfortranarray(full)))
    item = Instances(labels=np.zeros(16), boxes=np.zeros((16, 4)), masks=tuple(crops))
    shapes = flatten([item], "masks", what="test")
    rows, columns = (part.ravel() for part in np.indices((16, 16)))
    for flag in (False, True):
        value = similarity(shapes, shapes, (rows, columns), np.full(256, flag)).reshape(16, 16)
        np.testing.assert_array_equal(value, coco_mask.iou(encoded, encoded, [int(flag)] * 16))


def test_oriented_similarity_equals_shapely() -> None:
    rng = np.random.default_rng(1)
    values = np.column_stack(
        [rng.uniform(0, 30, (12, 2)), rng.uniform(15, 30, 12), rng.uniform(5, 15, 12), rng.uniform(-1.5, 1.5, 12)]
    )
    shapes = flatten([Instances(labels=np.zeros(12), oriented=values)], "oriented", what="test")
    polygons = [Polygon(corners) for corners in to_corners(values)]
    rows, columns = (part.ravel() for part in np.indices((12, 12)))
    crowd = rng.random(144) < 0.5
    value = similarity(shapes, shapes, (rows, columns), crowd)
    for got, i, j, flag in zip(value, rows, columns, crowd, strict=True):
        shared = polygons[i].intersection(polygons[j]).area
        whole = polygons[i].area if flag else polygons[i].union(polygons[j]).area
        assert got == pytest.approx(shared / whole, abs=1e-9)


def test_flatten_keeps_images_and_order() -> None:
    items = [
        Instances(labels=np.array([2, 1]), boxes=np.array([[0, 0, 2, 3], [1, 1, 5, 5.0]])),
        Instances.empty(),
        Instances(labels=np.array([0]), boxes=np.array([[4, 4, 4, 9.0]])),
    ]
    shapes = flatten(items, "boxes", what="test")
    assert shapes.image.tolist() == [0, 0, 2]
    assert shapes.label.tolist() == [2, 1, 0]
    assert shapes.area.tolist() == [6, 16, 0]
    assert len(shapes.select(np.array([2, 0]))) == 2
