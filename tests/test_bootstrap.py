"""Bootstrap intervals and paired tests against resamples that are evaluated one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from drawn import different_scores, draw, evidence, one_box, repeated
from oracles import box_overlap, count_truth, judge
from pelagia.core.types import Instances
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics import DetectionResult
from pelagia.metrics.bootstrap import Key, Statistic, image_weights, intervals, paired_differences
from pelagia.metrics.detection import Evidence
from pelagia.metrics.statistics import detection_statistic, joined, share_bounds


def mean_of(values: np.ndarray) -> Statistic:
    """The weighted mean of one value per image."""
    return lambda weights: {("", "mean"): float(weights @ values / weights.sum())}


def small(seed: int = 0, images: int = 6) -> tuple[list[Instances], list[Instances]]:
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=images, classes=2, objects=8, found=16)
    return truths, different_scores(rng, predictions)


# ---------------------------------------------------------------------------------------------- resamples


def test_a_resample_draws_as_many_images_as_there_are() -> None:
    drawn = [image_weights(7, 3, resample) for resample in range(500)]
    assert all(item.sum() == 7 and item.min() >= 0 and item.shape == (7,) for item in drawn)
    assert np.mean(drawn, axis=0) == pytest.approx(np.ones(7), abs=0.2)
    assert np.mean([(item == 0).mean() for item in drawn]) == pytest.approx((1 - 1 / 7) ** 7, abs=0.03)
    assert len({item.tobytes() for item in drawn}) > 300


def test_resamples_are_fixed_by_seed_and_number() -> None:
    assert image_weights(50, 1, 2).tolist() == image_weights(50, 1, 2).tolist()
    assert image_weights(50, 1, 2).tolist() != image_weights(50, 1, 3).tolist()
    assert image_weights(50, 1, 2).tolist() != image_weights(50, 2, 2).tolist()


@pytest.mark.parametrize("threads", [1, 2, 7, None])
def test_the_number_of_threads_does_not_matter(threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = detection_statistic(evidence(*small(), 2))
    expected = intervals(statistic, 6, resamples=20, seed=5)
    monkeypatch.setattr("pelagia.metrics.bootstrap.os.cpu_count", lambda: threads)
    got = intervals(statistic, 6, resamples=20, seed=5)
    assert repr(got) == repr(expected)
    assert repr(got) != repr(intervals(statistic, 6, resamples=20, seed=6))


# ---------------------------------------------------------------------------------------------- intervals


def moved_quantiles(sample: list[float] | np.ndarray, value: float, levels: list[float]) -> tuple[float, ...]:
    """Quantiles less the bias: the median of the resamples minus the value."""
    return tuple(np.quantile(sample, levels) - (np.median(sample) - value))


def test_intervals_equal_the_quantiles_of_resampled_means() -> None:
    values = np.random.default_rng(0).normal(10, 3, 40)
    found = intervals(mean_of(values), 40, resamples=300, level=0.9, seed=1)["", "mean"]
    means = [np.repeat(values, image_weights(40, 1, n).astype(int)).mean() for n in range(300)]
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(moved_quantiles(means, values.mean(), [0.05, 0.95]), abs=1e-12)
    assert found.error == pytest.approx(np.std(means, ddof=1), abs=1e-12)
    assert found.low < found.value < found.high
    # Theory: a bootstrap of the mean has the standard deviation of the sample over the root of its size.
    assert found.error == pytest.approx(values.std() / math.sqrt(40), rel=0.1)
    assert found.high - found.low == pytest.approx(2 * 1.645 * values.std() / math.sqrt(40), rel=0.2)


def test_wider_levels_and_fewer_images_give_wider_intervals() -> None:
    values = np.random.default_rng(1).normal(0, 1, 200)

    def width(images: int, level: float) -> float:
        chosen = values[:images] / values[:images].std()
        found = intervals(mean_of(chosen), images, resamples=200, level=level)["", "mean"]
        return found.high - found.low

    assert width(200, 0.5) < width(200, 0.9) < width(200, 0.99)
    assert width(20, 0.9) > 2 * width(200, 0.9)


def plain_numbers(result: DetectionResult) -> dict[Key, float]:
    found = {("", "AP"): result.ap, ("", "AP50"): result.ap50, ("", "AR@100"): result.ar[100], ("", "AP@all"): result.ap_all}
    for item in result.classes:
        found |= {(item.name, "AP"): item.ap, (item.name, "AP50"): item.ap50, (item.name, "AR"): item.recall}
    return found


def counted_numbers(truths: list[Instances], predictions: list[Instances], thresholds: Mapping[str, float]) -> dict[Key, float]:
    """Precision, recall, F1 and the ratio of counts at fixed scores, by counting."""
    verdicts = judge(truths, predictions, 0.5, box_overlap)
    found: dict[Key, float] = {}
    for label, (name, level) in enumerate(thresholds.items()):
        kept = [v.right for v in verdicts if v.label == label and v.score >= level and v.right is not None]
        right, predicted, total = sum(kept), len(kept), count_truth(truths, label)
        found[name, "precision"] = right / predicted if predicted else math.nan
        found[name, "recall"] = right / total if total else math.nan
        found[name, "F1"] = 2 * right / (predicted + total) if predicted + total else math.nan
        found[name, "count ratio"] = predicted / total if total else math.nan
    return found


def test_intervals_of_detection_equal_evaluating_every_resample() -> None:
    truths, predictions = small()
    some = evidence(truths, predictions, 2)
    thresholds = {"taxon 0": 0.4, "taxon 1": 0.25}
    got = intervals(detection_statistic(some, thresholds), 6, resamples=40, level=0.8, seed=3)
    table: dict[Key, list[float]] = {}
    for resample in range(40):
        weights = image_weights(6, 3, resample)
        drawn = repeated(truths, weights), repeated(predictions, weights)
        for key, value in (plain_numbers(evidence(*drawn, 2).result()) | counted_numbers(*drawn, thresholds)).items():
            table.setdefault(key, []).append(value)
    whole = plain_numbers(some.result()) | counted_numbers(truths, predictions, thresholds)
    assert set(table) <= set(got)
    for key, values in table.items():
        real = np.array(values)[~np.isnan(values)]
        assert len(real) > 30
        assert got[key].value == pytest.approx(whole[key], abs=1e-12)
        assert (got[key].low, got[key].high) == pytest.approx(moved_quantiles(real, whole[key], [0.1, 0.9]), abs=1e-12)
        assert got[key].error == pytest.approx(real.std(ddof=1), abs=1e-12)
        assert got[key].low < got[key].value < got[key].high


def test_thresholds_are_those_of_best_f1_unless_given() -> None:
    some = evidence(*small(2), 2)
    result, numbers = some.result(), detection_statistic(some)(np.ones(6))
    for item in result.classes:
        for name, value in (("precision", item.best.precision), ("recall", item.best.recall), ("F1", item.best.f1)):
            assert numbers[item.name, name] == pytest.approx(value, abs=1e-12)
    partly = detection_statistic(some, {"taxon 0": 0.5})(np.ones(6))
    assert math.isnan(partly["taxon 1", "precision"])
    assert math.isnan(partly["taxon 1", "count ratio"])
    assert partly["taxon 1", "AP"] == numbers["taxon 1", "AP"]
    assert not math.isnan(partly["taxon 0", "count ratio"])


def test_resamples_without_the_number_are_not_counted() -> None:
    def only_with_the_first(weights: np.ndarray) -> dict[Key, float]:
        return {("a", "x"): weights[0] if weights[0] else math.nan, ("b", "never"): math.nan}

    found = intervals(only_with_the_first, 5, resamples=100)
    drawn = [image_weights(5, 0, n)[0] for n in range(100)]
    real = [value for value in drawn if value]
    assert len(real) < 90
    assert found["a", "x"].error == pytest.approx(np.std(real, ddof=1))
    assert found["a", "x"].low >= 1
    assert all(math.isnan(value) for value in (found["b", "never"].low, found["b", "never"].high, found["b", "never"].error))


# ---------------------------------------------------------------------------------------------- two models


def perfect(truths: list[Instances]) -> list[Instances]:
    return [item.select(~item.crowd).replace(scores=np.full((~item.crowd).sum(), 0.9)) for item in truths]


def test_equal_models_do_not_differ() -> None:
    statistic = detection_statistic(evidence(*small(), 2))
    found = paired_differences(statistic, statistic, 6, resamples=30)
    assert found["", "AP"].first == found["", "AP"].second
    for item in found.values():
        assert math.isnan(item.value) or (item.value, item.low, item.high, item.p) == (0, 0, 0, 1)


def test_a_clearly_better_model_is_significant() -> None:
    truths, predictions = small(images=12)
    noisy, exact = (detection_statistic(evidence(truths, items, 2)) for items in (predictions, perfect(truths)))
    found = paired_differences(noisy, exact, 12, resamples=99)["", "AP"]
    assert found.second == pytest.approx(1)
    assert found.value == found.second - found.first > 0.3
    assert 0 < found.low < found.value < found.high <= 1
    assert found.p == pytest.approx(2 / 100)
    back = paired_differences(exact, noisy, 12, resamples=99)["", "AP"]
    assert (back.value, back.low, back.high, back.p) == pytest.approx((-found.value, -found.high, -found.low, found.p))


def test_differences_equal_those_of_resampled_means() -> None:
    rng = np.random.default_rng(4)
    one = rng.normal(0, 1, 30)
    two = one + rng.normal(0.1, 0.4, 30)
    found = paired_differences(mean_of(one), mean_of(two), 30, resamples=200, level=0.9, seed=8)["", "mean"]
    change = [np.repeat(two - one, image_weights(30, 8, n).astype(int)).mean() for n in range(200)]
    assert (found.low, found.high) == pytest.approx(moved_quantiles(change, (two - one).mean(), [0.05, 0.95]), abs=1e-12)
    change = [value - (np.median(change) - (two - one).mean()) for value in change]
    smaller = min(sum(value <= 0 for value in change), sum(value >= 0 for value in change))
    assert 0 < smaller < 60
    assert found.p == pytest.approx(2 * (smaller + 1) / 201)
    # Paired: what the images have in common cancels.
    apart = intervals(mean_of(two), 30, resamples=200, level=0.9, seed=8)["", "mean"]
    assert found.high - found.low < 0.6 * (apart.high - apart.low)


def test_only_numbers_of_both_models_are_compared() -> None:
    found = paired_differences(lambda w: {("", "a"): 1.0, ("", "b"): 2.0}, lambda w: {("", "b"): 3.0}, 4, resamples=5)
    assert list(found) == [("", "b")]
    assert found["", "b"].value == 1
    never = paired_differences(lambda w: {("", "a"): math.nan}, lambda w: {("", "a"): 1.0}, 4, resamples=5)
    assert math.isnan(never["", "a"].p)


def test_statistics_are_joined() -> None:
    found = joined(lambda w: {("", "a"): w[0]}, lambda w: {("", "b"): w[1], ("", "a"): 9.0})(np.array([3.0, 4.0]))
    assert found == {("", "b"): 4.0, ("", "a"): 9.0}


def test_bounds_cut_what_bias_moves_too_far() -> None:
    def drawn(weights: np.ndarray) -> dict[Key, float]:
        return {("", "AP"): float((weights > 0).mean())}  # 1 on the data as they are, about 0.63 in a resample

    assert [share_bounds(("", name)) for name in ("AP", "angle error, mean", "count ratio")] == [(0, 1), (0, 90), (0, np.inf)]
    assert intervals(drawn, 10, resamples=100)["", "AP"].high > 1
    found = intervals(drawn, 10, resamples=100, bounds=share_bounds)["", "AP"]
    assert found.low < found.value == found.high == 1


# ---------------------------------------------------------------------------------------------- errors


def pair() -> Evidence:
    return evidence([one_box(1)] * 2, [one_box(1, scores=np.ones(1))] * 2, 1)


@pytest.mark.parametrize("wrong", [{"resamples": 1}, {"level": 0.0}, {"level": 1.0}, {"level": 1.5}, {"level": math.nan}])
def test_options_that_cannot_be_used_are_refused(wrong: dict[str, float]) -> None:
    statistic = detection_statistic(pair())
    with pytest.raises(OptionError, match="at least 2 resamples"):
        intervals(statistic, 2, **wrong)
    with pytest.raises(OptionError, match="at least 2 resamples"):
        paired_differences(statistic, statistic, 2, **wrong)


@pytest.mark.parametrize("images", [0, 1])
def test_one_image_has_no_spread(images: int) -> None:
    with pytest.raises(EvaluationError, match="at least 2 of them"):
        intervals(mean_of(np.zeros(images)), images)
