"""Semantic scores against scikit-learn, and windows, workers and bootstraps against the whole."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from pelagia.core.types import Category, SemanticMap
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.bootstrap import image_weights
from pelagia.metrics.boundary import BoundaryOptions, halo
from pelagia.metrics.semantic import SemanticTally, evaluate_semantic, tally_scan
from pelagia.metrics.statistics import semantic_statistic

Labels = NDArray[Any]
SEEDS, SIDES = st.integers(0, 2**32 - 1), st.integers(1, 24)
WIDTHS = st.builds(BoundaryOptions, st.sampled_from([None, 0.0, 1.0, 2.5, 5.0]), st.sampled_from([None, 1, 2, 5]))


def maps(seed: int, height: int, width: int, classes: int, dtype: type = np.uint8) -> tuple[Labels, Labels]:
    """Blocks of classes with ignored specks, and the same moved, with wrong specks, some of them 255 (no class)."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, classes, (height // 3 + 2, width // 3 + 2)), np.ones((3, 3), dtype=np.int64))
    down, right = rng.integers(0, 3, 2)
    truth, predicted = blocks[:height, :width].astype(dtype), blocks[down : down + height, right : right + width].astype(dtype)
    specks = rng.random((height, width)) < 0.15
    predicted[specks] = rng.choice([*range(classes), 255], int(specks.sum()))
    truth[rng.random((height, width)) < 0.1] = 255
    return truth, predicted


def sums(tally: SemanticTally) -> list[Any]:
    result = tally.result()
    assert result.boundary is not None
    return [result.images, result.confusion.tolist(), result.boundary.tolist()]


def whole(truth: Labels, predicted: Labels, classes: int, options: BoundaryOptions) -> list[Any]:
    tally = SemanticTally(classes, boundary=options)
    tally.add(truth, predicted)
    return sums(tally)


def test_counts_and_scores_by_hand() -> None:
    truth = np.array([[0, 0, 0, 0], [1, 1, 1, 255]], dtype=np.uint8)
    predicted = np.array([[0, 0, 0, 1], [1, 255, 0, 2]], dtype=np.uint8)
    tally = SemanticTally(4, boundary=None)
    tally.add(truth, predicted)
    result = tally.result()
    assert result.confusion.tolist() == [[3, 1, 0, 0, 0], [1, 1, 0, 0, 1], [0] * 5, [0] * 5]
    assert result.pixels == 7
    assert result.pixel_accuracy == pytest.approx(4 / 7)
    assert result.none_share == pytest.approx(1 / 7)
    np.testing.assert_allclose(result.class_accuracy, [3 / 4, 1 / 3, np.nan, np.nan])
    np.testing.assert_allclose(result.iou, [3 / 5, 1 / 4, np.nan, np.nan])
    np.testing.assert_allclose(result.dice, [6 / 8, 2 / 5, np.nan, np.nan])
    assert result.mean_class_accuracy == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert result.mean_iou == pytest.approx((3 / 5 + 1 / 4) / 2)
    assert result.mean_dice == pytest.approx((6 / 8 + 2 / 5) / 2)
    assert result.frequency_weighted_iou == pytest.approx((4 * 3 / 5 + 3 / 4) / 7)


@settings(max_examples=40, deadline=None)
@given(SEEDS, SIDES, SIDES, st.integers(1, 6), st.sampled_from([np.uint8, np.uint16, np.int64]))
def test_scores_are_those_of_scikit_learn(seed: int, height: int, width: int, classes: int, dtype: type) -> None:
    truth, predicted = maps(seed, height, width, classes, dtype)
    truth[0, 0] = 0
    tally = SemanticTally(classes, boundary=None)
    tally.add(truth, predicted)
    result = tally.result()

    true, found = truth.ravel().astype(int), np.where(predicted == 255, classes, predicted).ravel().astype(int)
    counted = (true != 255).astype(int)
    expected = confusion_matrix(true, found, labels=[*range(classes + 1)], sample_weight=counted)
    assert np.array_equal(result.confusion, expected[:classes])
    common: dict[str, Any] = {"labels": [*range(classes)], "average": None, "sample_weight": counted, "zero_division": 0}
    for score, ours in (
        (jaccard_score, result.iou),
        (f1_score, result.dice),
        (recall_score, result.class_accuracy),
        (precision_score, result.class_precision),
    ):
        np.testing.assert_allclose(np.nan_to_num(ours), score(true, found, **common))
    there = expected[:classes].sum(axis=1) + expected[:classes, :classes].sum(axis=0) > 0
    assert np.isnan(result.iou).tolist() == (~there).tolist() == np.isnan(result.dice).tolist()
    assert result.pixel_accuracy == pytest.approx(np.average(true == found, weights=counted))
    assert result.frequency_weighted_iou == pytest.approx(
        jaccard_score(true, found, **{**common, "average": "weighted"}), abs=1e-12
    )


@settings(max_examples=40, deadline=None)
@given(SEEDS, SIDES, SIDES, st.integers(1, 4), st.integers(3, 26), WIDTHS)
def test_windows_of_a_scan_count_exactly_as_the_whole(
    seed: int, height: int, width: int, classes: int, tile: int, options: BoundaryOptions
) -> None:
    truth, predicted = maps(seed, height, width, classes)
    tally = SemanticTally(classes, boundary=options)
    tally_scan(lambda *at: cut(truth, *at), lambda *at: cut(predicted, *at), (height, width), tally, tile)
    assert sums(tally) == whole(truth, predicted, classes, options)


def cut(labels: Labels, y0: int, y1: int, x0: int, x1: int) -> Labels:
    assert 0 <= y0 < y1 <= labels.shape[0]
    assert 0 <= x0 < x1 <= labels.shape[1]
    return labels[y0:y1, x0:x1]


def test_windows_of_one_pixel_count_exactly_as_the_whole() -> None:
    truth, predicted = maps(4, 9, 11, 3)
    options = BoundaryOptions(1, 2)
    tally = SemanticTally(3, boundary=options)
    tally_scan(lambda *at: cut(truth, *at), lambda *at: cut(predicted, *at), (9, 11), tally, 1)
    expected = whole(truth, predicted, 3, options)
    assert sums(tally) == expected
    assert 0 < sum(row[1] for row in expected[2]) < sum(row[0] for row in expected[2])  # some boundary found, some not


def test_windows_of_an_image_with_default_widths_count_exactly_as_the_whole() -> None:
    truth, predicted = maps(12, 310, 420, 4)
    options = BoundaryOptions()
    assert halo(options, truth.shape) == 10
    tally = SemanticTally(4)
    tally_scan(lambda *at: cut(truth, *at), lambda *at: cut(predicted, *at), (310, 420), tally, 97)
    assert sums(tally) == whole(truth, predicted, 4, options)


@settings(max_examples=30, deadline=None)
@given(SEEDS, SIDES, SIDES, WIDTHS, st.data())
def test_windows_counted_by_several_workers_in_any_order(
    seed: int, height: int, width: int, options: BoundaryOptions, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = maps(seed, height, width, 3)
    context = halo(options, (height, width))
    cuts = [sorted({0, length, *rng.integers(0, length + 1, 2).tolist()}) for length in (height, width)]
    cores = [
        (y0, y1, x0, x1)
        for y0, y1 in zip(cuts[0][:-1], cuts[0][1:], strict=True)
        for x0, x1 in zip(cuts[1][:-1], cuts[1][1:], strict=True)
    ]
    workers = [SemanticTally(3, boundary=options) for _ in range(3)]
    for y0, y1, x0, x1 in data.draw(st.permutations(cores)):
        top, left = max(y0 - context, 0), max(x0 - context, 0)
        window = slice(top, y1 + context), slice(left, x1 + context)
        core = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        worker = workers[int(rng.integers(3))]
        worker.add(truth[window], predicted[window], core=core, origin=(top, left), shape=(height, width), image=0)
    order = data.draw(st.permutations(workers))
    total = SemanticTally(3, boundary=options)
    for worker in order:
        total.merge(worker)
    assert sums(total) == whole(truth, predicted, 3, options)


def test_merging_leaves_the_other_tally_alone() -> None:
    first, second = SemanticTally(3), SemanticTally(3)
    second.add(*maps(1, 9, 9, 3), image=2)
    before = sums(second)
    first.merge(second)
    first.add(*maps(2, 9, 9, 3), image=2)
    assert sums(second) == before
    assert first.result().images == 2


def test_pixels_outside_the_core_are_not_counted() -> None:
    truth, predicted = maps(3, 12, 12, 2)
    predicted[0, 0] = 77  # context may hold anything
    tally = SemanticTally(2, boundary=BoundaryOptions(1, 2))
    tally.add(truth, predicted, core=(slice(2, None), slice(3, -1)), origin=(5, 0), shape=(17, 12))
    result = tally.result()
    assert result.pixels == (truth[2:, 3:-1] != 255).sum()
    assert result.images == 0  # its first pixel was not counted


def test_weights_repeat_images() -> None:
    pairs = [maps(seed, 12, 10, 3) for seed in range(3)]
    tally, repeated = SemanticTally(3), SemanticTally(3)
    for image in (2, 0, 1):
        tally.add(*pairs[image], image=image)
    for image in (0, 0, 2):
        repeated.add(*pairs[image])
    assert tally.image_sums().shape == (3, 3, 11)
    drawn, expected = tally.result([2, 0, 1]), repeated.result()
    assert drawn.confusion.dtype == np.int64
    assert drawn.confusion.tolist() == expected.confusion.tolist()
    assert drawn.boundary is not None
    assert expected.boundary is not None
    assert drawn.boundary.tolist() == expected.boundary.tolist()
    half = tally.result([1.0, 0.0, 0.5])
    assert half.mean_iou == pytest.approx(expected.mean_iou)
    assert half.mean_boundary_f == pytest.approx(expected.mean_boundary_f)
    assert tally.result([1, 1, 1]).mean_iou == tally.result().mean_iou


def test_the_statistic_equals_scikit_learn_on_repeated_images() -> None:
    pairs = [maps(seed, 14, 11, 3) for seed in range(5)]
    names = [Category(label + 1, f"class {label}") for label in range(3)]
    tally = SemanticTally(3)
    for image, pair in enumerate(pairs):
        tally.add(*pair, image=image)
    statistic = semantic_statistic(tally, names)
    for resample in range(10):
        weights = image_weights(5, 2, resample)
        many = [pair for pair, times in zip(pairs, weights.astype(int), strict=True) for _ in range(times)]
        truth, predicted = (np.concatenate([pair[side].ravel() for pair in many]) for side in range(2))
        scored = truth != 255
        got, labels = statistic(weights), [0, 1, 2]
        expected = jaccard_score(truth[scored], predicted[scored], labels=labels, average=None)
        assert [got[item.name, "IoU"] for item in names] == pytest.approx(expected, abs=1e-12)
        assert got["", "mIoU"] == pytest.approx(np.mean(expected), abs=1e-12)
        expected = f1_score(truth[scored], predicted[scored], labels=labels, average=None)
        assert [got[item.name, "Dice"] for item in names] == pytest.approx(expected, abs=1e-12)
        repeated = SemanticTally(3)
        for pair in many:
            repeated.add(*pair)
        result = repeated.result(categories=names)
        assert [got["", name] for name, _ in result.summary()] == pytest.approx([v for _, v in result.summary()], abs=1e-12)
        assert [got[item.name, "boundary F"] for item in names] == pytest.approx(result.boundary_f, abs=1e-12)


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1], [[1]], [-1], [np.nan], ["a"]])
def test_weights_that_do_not_fit(weights: list[Any]) -> None:
    tally = SemanticTally(2)
    tally.add(*maps(0, 5, 5, 2), image=0)
    with pytest.raises(OptionError, match="weights must"):
        tally.result(weights)


def test_weights_need_images() -> None:
    tally = SemanticTally(2)
    tally.add(*maps(0, 5, 5, 2))
    with pytest.raises(OptionError, match="give image="):
        tally.result([1])


def test_a_perfect_prediction_scores_one_wherever_it_counts() -> None:
    truth, _ = maps(8, 30, 30, 3)
    predicted = np.where(truth == 255, 1, truth)
    tally = SemanticTally(3, boundary=BoundaryOptions(0, 3))
    tally.add(truth, predicted)
    result = tally.result()
    for values in (result.iou, result.dice, result.boundary_f, result.boundary_iou, result.boundary_recall):
        assert values.tolist() == [1, 1, 1]


def test_boundary_scores_of_a_moved_square() -> None:
    truth, predicted = np.zeros((20, 20), dtype=np.uint8), np.zeros((20, 20), dtype=np.uint8)
    truth[5:10, 5:10] = 1
    predicted[5:10, 7:12] = 1
    tally = SemanticTally(4, boundary=BoundaryOptions(1, 1))
    tally.add(truth, predicted)
    result = tally.result()
    assert result.boundary_precision[1] == result.boundary_recall[1] == result.boundary_f[1] == 10 / 16
    assert result.boundary_iou[1] == pytest.approx(6 / 26)
    assert np.isnan(result.boundary_f[2:]).all()
    assert np.isnan(result.boundary_iou[2:]).all()
    assert result.mean_boundary_iou == pytest.approx(result.boundary_iou[:2].mean())


def test_a_boundary_in_one_map_only_scores_zero_and_none_at_all_does_not_exist() -> None:
    empty, square = np.zeros((9, 9), dtype=np.uint8), np.zeros((9, 9), dtype=np.uint8)
    square[3:6, 3:6] = 1
    for truth, predicted in ((empty, square), (square, empty)):
        tally = SemanticTally(2)
        tally.add(truth, predicted)
        assert tally.result().boundary_f.tolist() == [0, 0]
    tally = SemanticTally(2)
    tally.add(empty, empty)
    assert np.isnan(tally.result().boundary_f).all()
    np.testing.assert_array_equal(tally.result().boundary_iou, [1, np.nan])


def test_nothing_counted_gives_no_number() -> None:
    result = SemanticTally(2).result()
    assert result.images == result.pixels == 0
    assert all(np.isnan(value) for _, value in result.summary())
    tally = SemanticTally(2)
    tally.add(np.full((3, 3), 255, dtype=np.uint8), np.full((3, 3), 9, dtype=np.uint8))  # anything is right where nothing counts
    assert tally.result().images == 1
    assert np.isnan(tally.result().pixel_accuracy)
    assert "mIoU" in str(tally.result())


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([[0, 2]], [[0, 0]], "image 7: the truth holds the label 2 at row 0, column 1, but there are 2 classes"),
        ([[0, 1]], [[0, 3]], "image 7: the prediction holds the label 3 at row 0, column 1"),
        ([[0, -1]], [[0, 0]], "the truth holds the label -1"),
        ([[0, 65535]], [[0, 0]], "the truth holds the label 65535"),
        ([[0, 0]], [[0], [0]], r"has 2 x 1 labels \(height x width\), the truth 1 x 2"),
        ([[0.0]], [[0]], "labels .H, W. of an integer type"),
        ([0], [0], r"got \[1\] of int64"),
        (np.zeros((0, 4), int), np.zeros((0, 4), int), "not empty"),
    ],
)
def test_maps_that_do_not_fit(truth: Any, predicted: Any, message: str) -> None:
    tally = SemanticTally(2)
    with pytest.raises(EvaluationError, match=message):
        tally.add(np.array(truth), np.array(predicted), image=7)
    assert tally.result().pixels == 0


def test_the_place_of_a_wrong_label_is_that_in_the_scan() -> None:
    truth = np.zeros((40, 50), dtype=np.uint8)
    predicted = truth.copy()
    predicted[33, 21] = 9
    tally = SemanticTally(2)
    with pytest.raises(EvaluationError, match=r"slide: the prediction holds the label 9 at row 33, column 21"):
        tally_scan(lambda *at: cut(truth, *at), lambda *at: cut(predicted, *at), (40, 50), tally, 16, where="slide")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"core": (slice(2, 7), slice(0, 10)), "origin": (5, 0), "shape": (20, 10)}, "need 3 pixels of context"),
        ({"core": (slice(0, 8), slice(0, 10)), "origin": (0, 0), "shape": (20, 10)}, "need 3 pixels of context"),
        ({"origin": (0, 3)}, "does not lie in an image of 10 x 10"),
        ({"origin": (-1, 0), "shape": (20, 20)}, "does not lie in"),
        ({"core": (slice(0, 10, 2), slice(0, 10))}, "core must be two slices"),
        ({"core": (slice(4, 4), slice(0, 10))}, "core must be two slices"),
        ({"image": -1}, "image must be an index"),
        ({"image": 1.5}, "image must be an index"),
    ],
)
def test_windows_that_cannot_be_used(keywords: dict[str, Any], message: str) -> None:
    tally = SemanticTally(2, boundary=BoundaryOptions(2, 3))
    labels = np.zeros((10, 10), dtype=np.uint8)
    with pytest.raises(OptionError, match=message):
        tally.add(labels, labels, **keywords)


def test_without_boundary_measures_a_window_needs_no_context() -> None:
    tally = SemanticTally(2, boundary=None)
    labels = np.zeros((10, 10), dtype=np.uint8)
    tally.add(labels, labels, origin=(5, 5), shape=(40, 40))
    result = tally.result()
    assert result.pixels == 100
    assert result.boundary is None
    assert np.isnan(result.mean_boundary_f)
    assert "boundary F" not in dict(result.summary())
    assert "boundary F" not in result.class_rows()[0]


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (0, {}, "classes must be"),
        (10**6, {}, "classes must be"),
        (300, {}, "ignore_index 255 is one of"),
        (2, {"ignore_index": 0}, "0 is one of"),
    ],
)
def test_tallies_that_cannot_be(classes: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SemanticTally(classes, **options)


def test_tallies_of_different_options_do_not_merge() -> None:
    for other in (SemanticTally(3), SemanticTally(2, ignore_index=9), SemanticTally(2, boundary=None)):
        with pytest.raises(EvaluationError, match="cannot be merged"):
            SemanticTally(2).merge(other)


def test_many_classes_and_another_ignore_index() -> None:
    truth, predicted = maps(6, 20, 20, 3, np.uint16)
    small = SemanticTally(3)
    small.add(truth, predicted)
    truth, predicted = (np.where(labels == 255, 999, labels + 280).astype(np.uint16) for labels in (truth, predicted))
    tally = SemanticTally(283, ignore_index=999)
    tally.add(truth, predicted)
    assert tally.result().confusion[280:, 280:].tolist() == small.result().confusion.tolist()
    assert tally.result().iou[280:].tolist() == small.result().iou.tolist()
    assert tally.result().boundary_iou[280:].tolist() == small.result().boundary_iou.tolist()
    narrow = SemanticTally(283, ignore_index=999)
    narrow.add(np.zeros((2, 2), dtype=np.uint8), np.zeros((2, 2), dtype=np.uint16))
    assert narrow.result().pixels == 4


def test_a_signed_ignore_index() -> None:
    tally = SemanticTally(2, ignore_index=-1)
    tally.add(np.array([[0, 1, -1, 1]]), np.array([[0, 1, 5, -1]]))
    assert tally.result().confusion.tolist() == [[1, 0, 0], [0, 1, 1]]


def test_bad_readers_and_tiles() -> None:
    tally = SemanticTally(2)
    with pytest.raises(OptionError, match="tile and shape"):
        tally_scan(lambda *_: np.zeros((1, 1)), lambda *_: np.zeros((1, 1)), (1, 1), tally, 0)
    with pytest.raises(EvaluationError, match=r"reader of the prediction gave 2 x 3 labels .* must give \[2, 2\]"):
        tally_scan(lambda *_: np.zeros((2, 2), int), lambda *_: np.zeros((2, 3), int), (2, 2), tally)


def test_evaluate_a_data_set() -> None:
    pairs = [maps(seed, 10 + seed, 15, 2) for seed in range(3)]
    truths, predictions = ([SemanticMap(pair[side]) for pair in pairs] for side in (0, 1))
    result = evaluate_semantic(truths, predictions, [Category(5, "sea"), Category(9, "ice")], boundary=BoundaryOptions(1, 2))
    tally = SemanticTally(2, boundary=BoundaryOptions(1, 2))
    for pair in pairs:
        tally.add(*pair)
    assert result.images == 3
    assert [result.confusion.tolist(), result.boundary.tolist() if result.boundary is not None else None] == sums(tally)[1:]

    values = json.loads(json.dumps(result.to_dict()))
    assert values["kind"] == "semantic"
    assert values["mean_iou"] == result.mean_iou
    assert values["boundary_options"] == {"theta_px": 1, "band_px": 2}
    assert [item["id"] for item in values["classes"]] == [5, 9]
    assert values["classes"][1]["boundary_iou"] == result.boundary_iou[1]
    assert values["confusion"]["class_names"] == ["sea", "ice", "none"]
    header, rows = result.class_rows()
    assert all(len(row) == len(header) for row in rows)
    assert str(result).startswith(f"3 images, {result.pixels} pixels (semantic), ")
    assert result.lines()[-1].startswith("ice ")


def test_scores_that_do_not_exist_are_null_in_json() -> None:
    values = SemanticTally(1).result().to_dict()
    assert values["mean_iou"] is values["classes"][0]["boundary_f"] is None
    json.dumps(values, allow_nan=False)


def test_data_sets_that_do_not_fit() -> None:
    one, two = SemanticMap(np.zeros((4, 4), dtype=np.uint8)), SemanticMap(np.zeros((4, 5), dtype=np.uint8))
    categories = [Category(1, "a")]
    with pytest.raises(EvaluationError, match="1 predictions for 2 images"):
        evaluate_semantic([one, one], [one], categories)
    with pytest.raises(EvaluationError, match="image 1: the prediction has 4 x 5 labels"):
        evaluate_semantic([one, one], [one, two], categories)
    with pytest.raises(OptionError, match="2 categories for a tally of 1"):
        SemanticTally(1).result(categories=categories * 2)
