"""Scores that know how classes are related: a copepod called by its family is less wrong than one called a bubble.

Two views of the same predictions: the usual AP with the labels replaced by their ancestors, level by level down to one class for
everything; and hierarchical precision and recall (Kiritchenko, Matwin, Nock and Famili 2006), where a prediction is right in so
far as its chain of ancestors is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pelagia.core.types import Category, Float, Int, Mask
from pelagia.errors import OptionError
from pelagia.metrics.confusion import match_across
from pelagia.metrics.curves import rank_predictions
from pelagia.metrics.detection import Evidence
from pelagia.metrics.objects import Objects
from pelagia.metrics.result import json_value, number, text_table

__all__ = ["HierarchicalEvidence", "HierarchicalResult", "Level", "Taxonomy", "gather_hierarchy", "hierarchical_scores"]

#: Name of the one class of the last level.
ANYTHING = "anything"


@dataclass(frozen=True)
class Taxonomy:
    """A tree of names: `parents` gives the parent of a name; a name without one is a root."""

    parents: Mapping[str, str]

    def __post_init__(self) -> None:
        for name in self.parents:
            self.lineage(name)

    @classmethod
    def of(cls, categories: Sequence[Category]) -> Taxonomy:
        """The tree of one step that `Category.supercategory` gives."""
        return cls({c.name: c.supercategory for c in categories if c.supercategory and c.supercategory != c.name})

    def lineage(self, name: str) -> tuple[str, ...]:
        """From the root down to `name`, both included.

        Raises:
            OptionError: the parents run in a circle.
        """
        chain = [name]
        while chain[-1] in self.parents:
            parent = self.parents[chain[-1]]
            if parent in chain:
                raise OptionError(f"the taxonomy runs in a circle: {' < '.join([*chain, parent])}; give each name one parent")
            chain.append(parent)
        return tuple(reversed(chain))


@dataclass(frozen=True)
class Level:
    """AP and AP50, at the cut and without it, with every label replaced by its ancestor at `depth` (0 = one class for everything,
    1 = the roots), and the names that remain."""

    depth: int
    names: tuple[str, ...]
    ap: float
    ap50: float
    ap_all: float
    ap50_all: float

    @property
    def title(self) -> str:
        """How it is called in tables."""
        return ANYTHING if self.depth == 0 else f"level {self.depth}"


@dataclass(frozen=True)
class HierarchicalResult:
    """AP level by level, finest first, and hierarchical precision, recall and their harmonic mean at IoU 0.5."""

    levels: tuple[Level, ...]
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """2 P R / (P + R)."""
        whole = self.precision + self.recall
        return 2 * self.precision * self.recall / whole if whole > 0 else float("nan") if np.isnan(whole) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN becomes None."""
        levels = [
            {"depth": level.depth, "names": list(level.names), **{k: json_value(getattr(level, k)) for k in _NUMBERS}}
            for level in self.levels
        ]
        return {"levels": levels, **{name: json_value(getattr(self, name)) for name in ("precision", "recall", "f1")}}

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table of levels, as text."""
        header = ["level", "classes", "AP", "AP50", "AP@all", "AP50@all"]
        rows = [
            [level.title, str(len(level.names)), *(number(getattr(level, name)) for name in _NUMBERS)] for level in self.levels
        ]
        return header, rows

    def lines(self) -> list[str]:
        """The result as text."""
        header, rows = self.rows()
        last = f"hierarchical precision {number(self.precision)}, recall {number(self.recall)}, F1 {number(self.f1)}"
        return [*text_table([header, *rows]), last]


_NUMBERS = ("ap", "ap50", "ap_all", "ap50_all")


@dataclass(frozen=True, eq=False)
class HierarchicalEvidence:
    """What hierarchical scores rest on; they are read from it for any weighting of images.

    Args:
        levels: (depth, the evidence with every label replaced by its ancestor there), finest first; the finest is what was given.
        shared, predicted, real: [N] by image: names shared by matched pairs, names of the predictions that count, of the objects.
    """

    levels: tuple[tuple[int, Evidence], ...]
    shared: Float
    predicted: Float
    real: Float

    def result(self, weights: Float | None = None, *, first: int = 0) -> HierarchicalResult:
        """The scores when image n counts weights[n] times, by default once; of the levels from number `first` on."""
        levels = []
        for depth, evidence in self.levels[first:]:
            values = evidence.numbers(weights)
            names = tuple(category.name for category in evidence.categories)
            levels.append(Level(depth, names, *(values[name] for name in _NUMBERS)))
        heavy = np.ones(len(self.shared)) if weights is None else weights
        return HierarchicalResult(tuple(levels), *self.shares(heavy))

    def shares(self, weights: Float) -> tuple[float, float]:
        """Hierarchical precision and recall; NaN without predictions, without objects."""
        shared, predicted, real = (float(weights @ values) for values in (self.shared, self.predicted, self.real))
        nan = float("nan")
        return shared / predicted if predicted else nan, shared / real if real else nan


def hierarchical_scores(
    evidence: Evidence, taxonomy: Taxonomy, thresholds: Mapping[str, float] | None = None
) -> HierarchicalResult:
    """Score `evidence` by `taxonomy`: see `gather_hierarchy`."""
    return gather_hierarchy(evidence, taxonomy, thresholds).result()


def gather_hierarchy(
    evidence: Evidence, taxonomy: Taxonomy, thresholds: Mapping[str, float] | None = None
) -> HierarchicalEvidence:
    """Match along `taxonomy`.

    With A(c) the names from the root down to class c, a prediction of class p that found (across classes, at IoU 0.5, best scores
    first) an object of class t shares |A(p) n A(t)| names with it. Hierarchical precision is their sum over all predictions at
    their `thresholds`, over the sum of |A(p)|; recall is that sum over the sum of |A(t)| of all objects.

    Two predictions of one object by sibling classes become duplicates at their parent's level; suppress them across classes to
    see what the classes alone cost.

    Args:
        thresholds: class name -> score; by default each class's best F1.
    """
    names = [category.name for category in evidence.categories]
    chains = [taxonomy.lineage(name) for name in names]
    deepest = max((len(chain) for chain in chains), default=1)
    levels = tuple((depth, _level(evidence, chains, depth)) for depth in range(deepest, -1, -1))
    if thresholds is None:
        thresholds = {name: point.threshold for name, point in evidence.points().items()}
    least = np.array([thresholds.get(name, np.nan) for name in names], dtype=np.float64)
    common = np.array([[len(set(a) & set(b)) for b in chains] for a in chains], dtype=np.float64).reshape(len(names), len(names))
    lengths = np.array([len(chain) for chain in chains], dtype=np.float64)
    return HierarchicalEvidence(levels, *_shared(evidence, least, common, lengths))


def _level(evidence: Evidence, chains: Sequence[tuple[str, ...]], depth: int) -> Evidence:
    ancestors = [chain[: min(depth, len(chain))][-1] if depth else ANYTHING for chain in chains]
    names = tuple(dict.fromkeys(ancestors))
    position = {name: index for index, name in enumerate(names)}
    replaced = np.array([position[name] for name in ancestors], dtype=np.int64)

    def relabel(objects: Objects) -> Objects:
        return objects.replace(label=replaced[objects.label])

    if list(names) == [category.name for category in evidence.categories]:
        return evidence
    old = evidence.comparison
    comparison = replace(old, truth=relabel(old.truth), predictions=relabel(old.predictions))
    ranking = rank_predictions(comparison, len(names), evidence.rules)
    categories = tuple(Category(index + 1, name) for index, name in enumerate(names))
    return replace(evidence, categories=categories, comparison=comparison, ranking=ranking)


def _shared(evidence: Evidence, least: Float, common: Float, lengths: Float) -> tuple[Float, Float, Float]:
    """[N] each, by image: names shared by matched pairs, names of all predictions that count, names of all objects."""
    comparison = evidence.comparison
    predictions, truth = comparison.predictions, comparison.truth
    used: Int = np.flatnonzero(comparison.score >= least[predictions.label])
    scored: Mask = ~comparison.unscored
    taken = match_across(comparison, used, np.arange(len(truth)), evidence.curve_iou)
    found = taken >= 0
    real = found & np.append(scored, False)[taken]
    counted = used[~(found & ~real) & (real | ~comparison.excluded[used])]

    def by_image(image: Int, names: Float) -> Float:
        return np.bincount(image, names, evidence.images).astype(np.float64)  # of nothing bincount makes integers

    pairs = common[predictions.label[used[real]], truth.label[taken[real]]]
    return (
        by_image(predictions.image[used[real]], pairs),
        by_image(predictions.image[counted], lengths[predictions.label[counted]]),
        by_image(truth.image[scored], lengths[truth.label[scored]]),
    )
