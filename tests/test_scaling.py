"""Fitted score maps against scikit-learn, conditions of the optimum and known distortions; their dictionary; the card."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from pelagia.core.card import ModelCard
from pelagia.core.types import Category
from pelagia.errors import CheckpointError, EvaluationError, OptionError
from pelagia.metrics.reliability import reliability
from pelagia.metrics.scaling import MAP_KINDS, MapKind, ScoreMap, fit_score_map, temperature_for_logits

NAMES = ("centric", "pennate", "bubble")


def distorted(seed: int, count: int, slope: float = 1.0, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores s, and outcomes that are right with probability sigmoid(slope logit(s) + offset)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(scale=2.0, size=count)
    return expit(z), rng.random(count) < expit(slope * z + offset)


def both_outcomes(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Few distinct scores, 0 and 1 among them, in no relation to the outcomes, of which both occur."""
    rng = np.random.default_rng(seed)
    correct = rng.random(count) < 0.5
    correct[:2] = True, False
    return rng.integers(0, 257, count) / 256, correct


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_distorted_is_found(temperature: float) -> None:
    score, correct = distorted(1, 20_000, 1 / temperature)
    fitted = fit_score_map(score, correct, "temperature")
    assert fitted.common["temperature"] == pytest.approx(temperature, rel=0.05)
    assert reliability(fitted.apply(score), correct).ece < 0.015


def test_the_temperature_minimises_the_likelihood_loss() -> None:
    score, correct = distorted(2, 300, 0.5, 0.3)
    z = logit(score)

    def loss(temperature: float) -> float:
        return float(np.mean(np.logaddexp(0, z / temperature) - correct * z / temperature))

    best = fit_score_map(score, correct, "temperature").common["temperature"]
    assert loss(best) <= min(loss(value) for value in np.geomspace(0.05, 20, 2000))
    assert abs(loss(best * 1.0001) - loss(best / 1.0001)) < 1e-9


@pytest.mark.parametrize("temperature", [0.5, 2.5])
def test_the_temperature_of_a_softmax_is_found(temperature: float) -> None:
    rng = np.random.default_rng(3)
    true = 2 * rng.normal(size=(8000, 5))
    share = np.cumsum(np.exp(log_softmax(true, axis=1)), axis=1)
    labels = (rng.random((8000, 1)) > share[:, :4]).sum(axis=1)
    assert temperature_for_logits(true * temperature + 7, labels) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_of_a_softmax_minimises_the_likelihood_loss() -> None:
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    logits[np.arange(200), labels] += 0.8
    best = temperature_for_logits(logits, labels)
    grid = np.geomspace(0.05, 20, 1000)
    losses = [-log_softmax(logits / value, axis=1)[np.arange(200), labels].mean() for value in grid]
    assert best == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)


def test_a_temperature_stays_between_its_limits() -> None:
    logits = np.array([[4.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
    assert temperature_for_logits(logits, np.array([0, 1, 0])) == 0.05
    assert temperature_for_logits(logits, np.array([1, 0, 1])) == 20
    score = np.array([0.1, 0.2, 0.8, 0.9])
    assert fit_score_map(score, score > 0.5, "temperature").common == {"temperature": 0.05}
    assert fit_score_map(score, score < 0.5, "temperature").common == {"temperature": 20.0}


@pytest.mark.parametrize(("slope", "offset", "count"), [(0.5, -1.0, 400), (2.0, 0.5, 400), (1.0, 0.0, 12)])
def test_platt_is_logistic_regression_on_smoothed_targets(slope: float, offset: float, count: int) -> None:
    score, correct = distorted(5, count, slope, offset)
    right = int(correct.sum())
    target = np.where(correct, (right + 1) / (right + 2), 1 / (count - right + 2))
    # A sample with target t is one right sample of weight t and one wrong sample of weight 1 - t.
    z = np.tile(logit(score), 2)[:, None]
    outcomes = np.repeat([1, 0], count)
    oracle = LogisticRegression(C=1e12, tol=1e-10, solver="newton-cholesky")
    oracle.fit(z, outcomes, sample_weight=np.concatenate([target, 1 - target]))
    fitted = fit_score_map(score, correct, "platt")
    assert fitted.common["slope"] == pytest.approx(oracle.coef_[0, 0], rel=1e-4)
    assert fitted.common["offset"] == pytest.approx(oracle.intercept_[0], rel=1e-4, abs=1e-4)
    u = fitted.common["slope"] * logit(score) + fitted.common["offset"]
    assert (expit(u) - target).mean() == pytest.approx(0, abs=1e-7)
    assert ((expit(u) - target) * logit(score)).mean() == pytest.approx(0, abs=1e-7)
    assert fitted.apply(score) == pytest.approx(expit(u))


def test_platt_finds_slope_and_offset_that_distorted() -> None:
    score, correct = distorted(6, 20_000, 0.6, -0.8)
    fitted = fit_score_map(score, correct, "platt")
    assert fitted.common["slope"] == pytest.approx(0.6, rel=0.05)
    assert fitted.common["offset"] == pytest.approx(-0.8, rel=0.05)
    assert reliability(score, correct).ece > 0.1
    assert reliability(fitted.apply(score), correct).ece < 0.015


def test_platt_keeps_the_order_where_the_scores_rank_the_wrong_way() -> None:
    score, correct = distorted(7, 500, -1.0, 0.4)
    fitted = fit_score_map(score, correct, "platt")
    assert fitted.common["slope"] == pytest.approx(0.05)
    # The offset is the best for that slope: the mean is right.
    assert fitted.apply(score).mean() == pytest.approx(correct.mean(), abs=0.005)
    assert (np.diff(fitted.apply(np.sort(score))) > 0).all()


def test_platt_of_one_distinct_score_is_the_share_that_is_right() -> None:
    fitted = fit_score_map(np.full(10, 0.9), np.arange(10) < 3, "platt")
    assert fitted.apply(np.array([0.9]))[0] == pytest.approx((3 * 4 / 5 + 7 * 1 / 9) / 10)
    assert fitted.common["slope"] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 80))
def test_isotonic_is_that_of_scikit_learn(seed: int, count: int) -> None:
    score, correct = both_outcomes(seed, count)
    fitted = fit_score_map(score, correct, "isotonic")
    oracle = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(score, correct.astype(np.float64))
    anywhere = np.linspace(0, 1, 301)
    assert fitted.apply(anywhere) == pytest.approx(oracle.predict(anywhere), abs=1e-9)


def test_isotonic_repairs_any_monotone_distortion() -> None:
    rng = np.random.default_rng(8)
    score = rng.random(20_000)
    correct = rng.random(20_000) < 0.2 + 0.6 * score**4
    fitted = fit_score_map(score[:10_000], correct[:10_000], "isotonic")
    assert reliability(fitted.apply(score[10_000:]), correct[10_000:]).ece < 0.04
    assert reliability(score, correct).ece > 0.1


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(MAP_KINDS), st.integers(0, 2**32 - 1), st.integers(2, 60), st.booleans())
def test_the_ranking_inside_a_class_never_reverses(kind: MapKind, seed: int, count: int, by_class: bool) -> None:
    score, correct = both_outcomes(seed, count)
    rng = np.random.default_rng(seed + 1)
    labels = rng.integers(0, 3, count)
    given = {"labels": labels, "classes": NAMES, "least": 3} if by_class else {}
    fitted = fit_score_map(score, correct, kind, **given)  # type: ignore[arg-type]
    fresh = np.concatenate([rng.random(50), np.arange(257) / 256])
    for label in range(3):
        mapped = fitted.apply(fresh, np.full(len(fresh), label))
        assert ((mapped >= 0) & (mapped <= 1)).all()
        assert (np.diff(mapped[np.argsort(fresh)]) >= -1e-12).all()


@pytest.mark.parametrize("parameters", [("temperature", {"temperature": 3.0}), ("platt", {"slope": 0.4, "offset": -2.0})])
def test_a_parametric_map_keeps_distinct_scores_distinct(parameters: tuple[MapKind, dict[str, float]]) -> None:
    grid = np.arange(1, 1024) / 1024
    assert (np.diff(ScoreMap(*parameters).apply(grid)) > 0).all()


def test_maps_of_extreme_scores_stay_finite() -> None:
    ends = np.array([0.0, 1e-300, 1e-12, 1 - 1e-16, 1.0])
    for item in (ScoreMap("temperature", {"temperature": 0.05}), ScoreMap("platt", {"slope": 20.0, "offset": -300.0})):
        mapped = item.apply(ends)
        assert np.isfinite(mapped).all()
        assert (np.diff(mapped) >= 0).all()
    assert ScoreMap("temperature", {"temperature": 1.0}).apply(np.array([0.25, 0.5])) == pytest.approx([0.25, 0.5])
    assert ScoreMap("temperature", {"temperature": 1}).apply(np.array([0.25], dtype=np.float32)).dtype == np.float64


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_each_class_gets_its_own_map_or_that_of_all(kind: MapKind) -> None:
    score, correct = distorted(9, 600, 0.5, -0.5)
    labels = np.repeat([0, 1, 2], [300, 280, 20])
    correct[300:580] = np.random.default_rng(10).random(280) < score[300:580] ** 2
    order = np.random.default_rng(11).permutation(600)
    score, correct, labels = score[order], correct[order], labels[order]
    fitted = fit_score_map(score, correct, kind, labels=labels, classes=NAMES, least=50)
    assert fitted.fallback == ("bubble",)
    assert fitted.common == fit_score_map(score, correct, kind).common
    for label, name in enumerate(NAMES[:2]):
        alone = fit_score_map(score[labels == label], correct[labels == label], kind)
        assert fitted.per_class[name] == alone.common
        assert fitted.apply(score, labels)[labels == label] == pytest.approx(alone.apply(score[labels == label]), abs=0)
    rest = labels == 2
    assert fitted.apply(score, labels)[rest] == pytest.approx(fit_score_map(score, correct, kind).apply(score[rest]), abs=0)


def test_a_class_of_one_outcome_or_without_sample_uses_the_map_of_all() -> None:
    score, correct = distorted(12, 300)
    labels = np.repeat([0, 2], 150)
    correct[150:] = True
    fitted = fit_score_map(score, correct, "platt", labels=labels, classes=NAMES, least=100)
    assert set(fitted.per_class) == {"centric"}
    assert fitted.fallback == ("pennate", "bubble")


def test_a_map_follows_the_names_into_another_order() -> None:
    maps = {"centric": {"temperature": 2.0}, "bubble": {"temperature": 0.5}}
    fitted = ScoreMap("temperature", {"temperature": 1.0}, NAMES, maps)
    moved = fitted.for_classes(["bubble", "new", "centric"])
    score = np.array([0.2, 0.7, 0.9])
    assert moved.apply(score, np.array([2, 1, 0])).tolist() == fitted.apply(score, np.array([0, 1, 2])).tolist()
    assert moved.fallback == ("new",)
    assert ScoreMap("temperature", {"temperature": 2.0}).for_classes(NAMES).apply(score).tolist() == pytest.approx(
        expit(logit(score) / 2).tolist()
    )


def test_nothing_is_mapped_to_nothing() -> None:
    per_class = ScoreMap("temperature", {"temperature": 2.0}, ("a",), {"a": {"temperature": 1.0}})
    assert per_class.apply(np.zeros(0), np.zeros(0, dtype=np.int64)).shape == (0,)
    assert per_class.apply(np.full((2, 3), 0.5), np.zeros((2, 3), dtype=np.int64)).shape == (2, 3)


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_a_map_survives_json_and_the_card(kind: MapKind) -> None:
    score, correct = distorted(13, 400, 0.7)
    labels = np.random.default_rng(14).integers(0, 3, 400)
    fitted = fit_score_map(score, correct, kind, labels=labels, classes=NAMES)
    assert ScoreMap.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False))) == fitted
    card = ModelCard("m", "detect", "grids", (Category(1, "centric"),), (64, 64), calibration=fitted.to_dict())
    read = ModelCard.from_json(card.to_json())
    assert read == card
    assert ScoreMap.from_dict(read.calibration).apply(score, labels).tolist() == fitted.apply(score, labels).tolist()


def test_a_card_without_map_is_as_before() -> None:
    card = ModelCard("m", "detect", "grids", (Category(1, "centric"),), (64, 64))
    assert card.calibration == {}
    values = json.loads(card.to_json())
    del values["calibration"]
    assert ModelCard.from_json(json.dumps(values)) == card
    with pytest.raises(CheckpointError, match="calibration must be an object"):
        ModelCard.from_json(json.dumps(values | {"calibration": [1]}))


GOOD = ScoreMap("platt", {"slope": 1.0, "offset": 0.0}, ("a", "b"), {"a": {"slope": 2.0, "offset": 1.0}}).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "beta"}, "unknown kind"),
        ({"kind": ["platt"]}, "unknown kind"),
        ({"common": {"slope": 1.0}}, "slope, offset"),
        ({"common": {"slope": 1.0, "offset": 0.0, "shift": 1}}, "slope, offset"),
        ({"common": None}, "slope, offset"),
        ({"common": {"slope": "1", "offset": 0}}, "must be numbers"),
        ({"common": {"slope": True, "offset": 0}}, "must be numbers"),
        ({"common": {"slope": float("nan"), "offset": 0}}, "must be numbers"),
        ({"common": {"slope": 10**400, "offset": 0}}, "must be numbers"),
        ({"common": {"slope": -1.0, "offset": 0}}, "positive"),
        ({"common": {"slope": 0, "offset": 0}}, "positive"),
        ({"per_class": {"c": {"slope": 1.0, "offset": 0.0}}}, "none of its classes"),
        ({"per_class": {"a": {"temperature": 1.0}}}, "class 'a'"),
        ({"per_class": []}, "names to parameters"),
        ({"class_names": "ab"}, "names to parameters"),
        ({"class_names": ["a", "a"]}, "same name"),
        ({"class_names": ["a", 1]}, "must be text"),
        ({"extra": 1}, "must have the fields"),
        ({"kind": "temperature", "common": {"temperature": 0.0}, "per_class": {}}, "positive"),
        ({"kind": "isotonic", "common": {"scores": [], "values": []}, "per_class": {}}, "0 scores"),
        ({"kind": "isotonic", "common": {"scores": [0.1, 0.2], "values": [0.5]}, "per_class": {}}, "2 scores and 1 values"),
        ({"kind": "isotonic", "common": {"scores": [0.2, 0.2], "values": [0.5, 0.6]}, "per_class": {}}, "ascend"),
        ({"kind": "isotonic", "common": {"scores": [0.1, 0.2], "values": [0.6, 0.5]}, "per_class": {}}, "descend"),
        ({"kind": "isotonic", "common": {"scores": [0.1, 2], "values": [0.5, 0.6]}, "per_class": {}}, "in 0 to 1"),
        ({"kind": "isotonic", "common": {"scores": 0.1, "values": [0.5]}, "per_class": {}}, "in 0 to 1"),
    ],
)
def test_a_stored_map_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        ScoreMap.from_dict(GOOD | change, where="best.safetensors")
    assert str(caught.value).startswith("best.safetensors: ")


def test_what_is_no_stored_map_is_refused() -> None:
    for values in ({}, [], None, {"kind": "platt"}):
        with pytest.raises(CheckpointError, match="must have the fields"):
            ScoreMap.from_dict(values)
    with pytest.raises(EvaluationError, match="positive"):
        ScoreMap("temperature", {"temperature": -1.0})
    assert replace(ScoreMap.from_dict(GOOD), class_names=("b", "a")).fallback == ("b",)


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_what_cannot_be_fitted_says_why(kind: MapKind) -> None:
    with pytest.raises(EvaluationError, match="no prediction"):
        fit_score_map(np.zeros(0), np.zeros(0), kind)
    with pytest.raises(EvaluationError, match="all 3 predictions are right"):
        fit_score_map(np.full(3, 0.5), np.ones(3), kind)
    with pytest.raises(EvaluationError, match="all 3 predictions are wrong"):
        fit_score_map(np.full(3, 0.5), np.zeros(3), kind)


def test_misfits_are_named() -> None:
    score, correct = np.array([0.2, 0.8]), np.array([False, True])
    with pytest.raises(OptionError, match="unknown kind"):
        fit_score_map(score, correct, "beta")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="go together"):
        fit_score_map(score, correct, "platt", labels=np.zeros(2, dtype=np.int64))
    with pytest.raises(OptionError, match="least"):
        fit_score_map(score, correct, "platt", least=0)
    with pytest.raises(EvaluationError, match="label 2 at 1"):
        fit_score_map(score, correct, "platt", labels=np.array([0, 2]), classes=["a", "b"])
    with pytest.raises(EvaluationError, match="one for each"):
        fit_score_map(score, correct, "platt", labels=np.array([0]), classes=["a", "b"])
    fitted = ScoreMap.from_dict(GOOD)
    with pytest.raises(EvaluationError, match="give the labels"):
        fitted.apply(score)
    with pytest.raises(EvaluationError, match="one for each"):
        fitted.apply(score, np.array([0]))
    with pytest.raises(EvaluationError, match="label -1 at 0"):
        fitted.apply(score, np.array([-1, 0]))
    with pytest.raises(EvaluationError, match="outside 0 to 1"):
        fitted.apply(np.array([3.0, 0.1]), np.array([0, 0]))
    with pytest.raises(EvaluationError, match="no sample"):
        temperature_for_logits(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        temperature_for_logits(np.array([[0.0, np.inf]]), np.array([0]))
    with pytest.raises(EvaluationError, match=r"expected \[N, C\] and \[N\]"):
        temperature_for_logits(np.zeros(3), np.zeros(3, dtype=np.int64))
