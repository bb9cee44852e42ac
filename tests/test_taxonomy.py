"""Scores along a tree of classes, against relabelled data sets and loops written from the definition."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn import different_scores, draw, evidence, repeated
from oracles import box_overlap, coco_matches, in_ignored_region, unscored
from pelagia.core.types import Category, Instances
from pelagia.errors import OptionError
from pelagia.metrics import evaluate_detection
from pelagia.metrics.bootstrap import image_weights
from pelagia.metrics.statistics import hierarchy_statistic
from pelagia.metrics.taxonomy import HierarchicalResult, Level, Taxonomy, gather_hierarchy, hierarchical_scores

NAMES = ["copepod", "krill", "diatom", "bubble"]
CATEGORIES = [Category(position, name) for position, name in enumerate(NAMES)]
TREE = Taxonomy({"copepod": "crustacean", "krill": "crustacean", "crustacean": "animal", "diatom": "alga"})
#: Ancestors at depth 3, 2, 1 and 0, written down by hand.
LEVELS = [
    ["copepod", "krill", "diatom", "bubble"],
    ["crustacean", "crustacean", "diatom", "bubble"],
    ["animal", "animal", "alga", "bubble"],
    ["anything"] * 4,
]
#: How many names two classes share, and how many each has.
SHARED = [[3, 2, 0, 0], [2, 3, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]

# ---------------------------------------------------------------------------------------------- the tree


def test_lineage_goes_from_the_root_down() -> None:
    assert TREE.lineage("copepod") == ("animal", "crustacean", "copepod")
    assert TREE.lineage("animal") == ("animal",)
    assert TREE.lineage("unheard of") == ("unheard of",)


def test_supercategories_are_a_tree_of_one_step() -> None:
    tree = Taxonomy.of([Category(1, "a", "x"), Category(2, "b"), Category(3, "x", "x"), Category(4, "c", "x")])
    assert tree.parents == {"a": "x", "c": "x"}
    assert [tree.lineage(name) for name in "abx"] == [("x", "a"), ("b",), ("x",)]


@pytest.mark.parametrize("parents", [{"a": "a"}, {"a": "b", "b": "a"}, {"z": "a", "a": "b", "b": "c", "c": "a"}])
def test_circles_are_refused(parents: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=r"circle: .*a"):
        Taxonomy(parents)


# ---------------------------------------------------------------------------------------------- against loops


def naive_shares(truths: list[Instances], predictions: list[Instances], least: list[float]) -> tuple[float, float]:
    """Hierarchical precision and recall: names shared over names predicted, and over names of the truth."""
    shared = predicted = real = 0
    for truth, found in zip(truths, predictions, strict=True):
        used = [i for i in range(len(found)) if found.scores[i] >= least[found.labels[i]]]
        objects = [j for j in range(len(truth)) if not truth.ignore[j]]
        taken = coco_matches(truth, found, (used, objects), 0.5, box_overlap)
        for i in used:
            if i in taken and not unscored(truth, taken[i]):
                shared += SHARED[found.labels[i]][truth.labels[taken[i]]]
            elif i in taken or in_ignored_region(truth, found, i, box_overlap):
                continue
            predicted += SHARED[found.labels[i]][found.labels[i]]
        real += sum(SHARED[truth.labels[j]][truth.labels[j]] for j in objects if not unscored(truth, j))
    return shared / predicted if predicted else math.nan, shared / real if real else math.nan


def relabelled(items: list[Instances], names: list[str]) -> list[Instances]:
    order = list(dict.fromkeys(names))
    return [item.replace(labels=np.array([order.index(names[label]) for label in item.labels], dtype=int)) for item in items]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans())
def test_drawn_scores_equal_the_definition(seed: int, images: int, best: bool) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=images, classes=4, objects=8, found=20)
    truths = [
        item.replace(difficult=rng.random(len(item)) < 0.1, ignore=(rng.random(len(item)) < 0.1) & ~item.crowd) for item in truths
    ]
    some = evidence(truths, predictions, CATEGORIES, max_dets=(1, 3, 0))
    given_scores = None if best else {"copepod": 0.2, "diatom": 0.5, "bubble": 0.0}
    got = hierarchical_scores(some, TREE, given_scores)
    assert [level.depth for level in got.levels] == [3, 2, 1, 0]
    for level, names in zip(got.levels, LEVELS, strict=True):
        assert level.names == tuple(dict.fromkeys(names))
        categories = [Category(position, name) for position, name in enumerate(level.names)]
        result = evaluate_detection(relabelled(truths, names), relabelled(predictions, names), categories, max_dets=(1, 3, 0))
        for name in ("ap", "ap50", "ap_all", "ap50_all"):
            assert getattr(level, name) == pytest.approx(getattr(result, name), abs=1e-12, nan_ok=True)
    table = some.result().thresholds if given_scores is None else given_scores
    precision, recall = naive_shares(truths, predictions, [table.get(name, math.nan) for name in NAMES])
    assert got.precision == pytest.approx(precision, abs=1e-12, nan_ok=True)
    assert got.recall == pytest.approx(recall, abs=1e-12, nan_ok=True)
    if precision > 0 and recall > 0:
        assert got.f1 == pytest.approx(2 / (1 / precision + 1 / recall))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_weights_equal_the_definition_on_repeated_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths, predictions = draw(rng, images=4, classes=4, objects=8, found=20)
    predictions = different_scores(rng, predictions)
    least = {"copepod": 0.2, "krill": 0.4, "diatom": 0.5, "bubble": 0.0}
    statistic = hierarchy_statistic(gather_hierarchy(evidence(truths, predictions, CATEGORIES), TREE, least))
    for resample in range(3):
        weights = image_weights(4, seed, resample)
        drawn = repeated(truths, weights), repeated(predictions, weights)
        got = statistic(weights)
        for depth, names in enumerate(reversed(LEVELS[1:])):
            categories = [Category(position, name) for position, name in enumerate(dict.fromkeys(names))]
            result = evaluate_detection(*(relabelled(side, names) for side in drawn), categories)
            title = f"level {depth}" if depth else "anything"
            assert got["", f"{title} AP"] == pytest.approx(result.ap, abs=1e-12, nan_ok=True)
            assert got["", f"{title} AP50@all"] == pytest.approx(result.ap50_all, abs=1e-12, nan_ok=True)
        precision, recall = naive_shares(*drawn, list(least.values()))
        assert got["", "hierarchical precision"] == pytest.approx(precision, abs=1e-12, nan_ok=True)
        assert got["", "hierarchical recall"] == pytest.approx(recall, abs=1e-12, nan_ok=True)
        assert math.isnan(got["", "hierarchical F1"]) == math.isnan(precision + recall)
        assert ("", "level 3 AP") not in got


# ---------------------------------------------------------------------------------------------- by hand

A, B, C = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10]


def items(labels: list[int], boxes: list[list[float]], scores: list[float] | None = None) -> Instances:
    return Instances(
        labels=np.array(labels), boxes=np.array(boxes).reshape(-1, 4), scores=None if scores is None else np.array(scores)
    )


def scored(truth: Instances, found: Instances, least: float = 0.0) -> HierarchicalResult:
    return hierarchical_scores(evidence([truth], [found], CATEGORIES), TREE, dict.fromkeys(NAMES, least))


def test_a_relative_is_less_wrong_than_a_stranger() -> None:
    truth = items([0], [A])
    for label, precision, recall in ((0, 1, 1), (1, 2 / 3, 2 / 3), (2, 0, 0)):
        got = scored(truth, items([label], [A], [0.5]))
        assert (got.precision, got.recall, got.f1) == pytest.approx((precision, recall, precision))
    assert [level.ap for level in scored(truth, items([1], [A], [0.5])).levels] == pytest.approx([0, 1, 1, 1])
    assert [level.ap for level in scored(truth, items([2], [A], [0.5])).levels] == pytest.approx([0, 0, 0, 1])


def test_false_and_missed_weigh_by_their_names() -> None:
    got = scored(items([0, 3], [A, B]), items([0, 2, 3], [A, C, C], [0.9, 0.8, 0.7]))
    assert got.precision == pytest.approx(3 / (3 + 2 + 1))
    assert got.recall == pytest.approx(3 / (3 + 1))


def test_scores_below_the_threshold_are_left_out() -> None:
    got = scored(items([0, 2], [A, B]), items([0, 2], [A, B], [0.9, 0.4]), 0.5)
    assert (got.precision, got.recall) == pytest.approx((1, 3 / 5))


def test_siblings_on_one_object_are_duplicates_of_their_parent() -> None:
    got = scored(items([0, 1], [A, B]), items([0, 1, 1], [A, A, B], [0.9, 0.8, 0.7]))
    assert got.levels[0].ap == pytest.approx((1 + 0.5) / 2)
    assert got.levels[1].ap == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_nothing_predicted_and_nothing_true() -> None:
    nothing = items([], [], [])
    got = scored(items([0], [A]), nothing)
    assert math.isnan(got.precision)
    assert got.recall == 0
    assert math.isnan(got.f1)
    got = scored(items([], []), items([0], [A], [0.5]))
    assert got.precision == 0
    assert math.isnan(got.recall)
    assert HierarchicalResult((), 0.0, 0.0).f1 == 0


def test_a_flat_list_has_two_levels() -> None:
    got = hierarchical_scores(evidence([items([0], [A])], [items([0], [A], [0.5])], CATEGORIES), Taxonomy({}))
    assert [(level.depth, len(level.names)) for level in got.levels] == [(1, 4), (0, 1)]
    assert (got.precision, got.recall) == (1, 1)


def test_text_and_json() -> None:
    got = HierarchicalResult((Level(1, ("a", "b"), 0.25, 0.5, math.nan, 1.0), Level(0, ("anything",), 1, 1, 1, 1)), 0.5, 1.0)
    values = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert values["levels"][0] == {"depth": 1, "names": ["a", "b"], "ap": 0.25, "ap50": 0.5, "ap_all": None, "ap50_all": 1.0}
    assert (values["precision"], values["recall"], values["f1"]) == (0.5, 1, pytest.approx(2 / 3))
    header, rows = got.rows()
    assert all(len(row) == len(header) for row in rows)
    text = "\n".join(got.lines())
    for word in ("level 1", "anything", "0.250", "hierarchical precision 0.500", "F1 0.667"):
        assert word in text
