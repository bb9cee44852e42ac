"""Numbers of weighted images: an image that counts n times is the same as a data set that holds it n times."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn import different_scores, draw, draw_masks, draw_poses, evidence, repeated, rotated
from pelagia.core.types import Instances
from pelagia.metrics.detection import Evidence
from pelagia.metrics.objects import Kind


def data(rng: np.random.Generator, kind: Kind, images: int) -> tuple[list[Instances], list[Instances]]:
    size = {"images": images, "classes": 2, "objects": 6, "found": 14}
    if kind == "keypoints":
        return draw_poses(rng, **size, points=3)
    truths, predictions = draw(rng, **size)
    truths = [item.replace(difficult=rng.random(len(item)) < 0.1) for item in truths]
    if kind == "masks":
        return draw_masks(rng, truths), draw_masks(rng, predictions)
    return (rotated(rng, truths), rotated(rng, predictions)) if kind == "oriented" else (truths, predictions)


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(got[name], value)
        else:
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-12, err_msg=name)


KINDS: list[Kind] = ["boxes", "masks", "oriented", "keypoints"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_weights_equal_repeated_images(kind: Kind, seed: int, times: list[int]) -> None:
    """Scores differ inside an image: repeated, equal ones would alternate, where weighted ones stay together."""
    rng, weights = np.random.default_rng(seed), np.array(times, dtype=float)
    truths, predictions = data(rng, kind, len(times))
    predictions = different_scores(rng, predictions)
    cuts = {"max_dets": (1, 4, 0)}
    got = evidence(truths, predictions, 2, kind, **cuts).numbers(weights)
    assert_same(got, evidence(repeated(truths, weights), repeated(predictions, weights), 2, kind, **cuts).numbers())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.booleans(), min_size=1, max_size=5))
def test_zero_weights_equal_leaving_images_out(kind: Kind, seed: int, kept: list[bool]) -> None:
    rng, weights = np.random.default_rng(seed), np.array(kept, dtype=float)
    truths, predictions = data(rng, kind, len(kept))
    got = evidence(truths, predictions, 2, kind).numbers(weights)
    assert_same(got, evidence(repeated(truths, weights), repeated(predictions, weights), 2, kind).numbers())


def crowded(seed: int, classes: int = 2) -> Evidence:
    truths, predictions = draw(np.random.default_rng(seed), images=4, classes=2, objects=20, found=130)
    return evidence(truths, predictions, classes, max_dets=(1, 10, 30, 0))


def test_no_weights_are_weights_of_one_and_only_their_ratios_matter() -> None:
    some = crowded(0)
    assert_same(some.numbers(np.ones(4)), some.numbers())
    weights = np.array([1.0, 0.0, 2.0, 5.0])
    assert_same(some.numbers(weights * 8), some.numbers(weights))
    assert some.numbers(weights)["ap"] != some.numbers()["ap"]


def test_numbers_are_those_of_the_result() -> None:
    some = crowded(1, classes=3)
    result, values = some.result(), some.numbers()
    assert result.ap != result.ap_all
    for name, value in values.items():
        if name != "classes":
            assert getattr(result, name) == value
    for place, name in enumerate(("ap", "ap50", "ap_all", "ap50_all", "recall")):
        np.testing.assert_array_equal(values["classes"][place], [getattr(item, name) for item in result.classes])


def test_curves_have_an_axis_for_class_area_threshold_and_recall_or_cut() -> None:
    cut, uncut = crowded(2, classes=3).curves()
    assert cut.precision.shape == uncut.precision.shape == (3, 4, 10, 101)
    assert cut.recall.shape == (3, 4, 10, 3)
    assert uncut.recall.shape == (3, 4, 10, 1)
    assert np.isnan(cut.precision[2]).all()
    assert np.isnan(cut.recall[2]).all()
    precision, recall = cut.precision[:2, 0], cut.recall[:2, 0]
    assert (np.diff(precision, axis=-1) <= 0).all()
    assert (np.diff(recall, axis=-1) >= 0).all()
    assert (uncut.recall[:2, 0] >= recall[..., -1:]).all()


def test_weights_of_zero_everywhere_leave_nothing() -> None:
    values = crowded(3).numbers(np.zeros(4))
    assert math.isnan(values["ap"])
    assert all(math.isnan(value) for value in values["ar"].values())


def test_images_without_objects_do_not_matter() -> None:
    truths, predictions = draw(np.random.default_rng(4), images=3, classes=2, objects=10, found=20)
    some = evidence(truths, predictions, 2)
    more = evidence([*truths, Instances.empty()], [*predictions, Instances.empty(scores=True)], 2)
    assert_same(more.numbers(np.array([1.0, 2, 3, 4])), some.numbers(np.array([1.0, 2, 3])))
