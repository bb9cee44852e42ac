"""Scores of whole-image answers read from files: label images of instances, class maps, panoptic maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from pelagia.core.types import Float, SemanticMap, Task
from pelagia.data.dataset import Dataset
from pelagia.errors import EvaluationError
from pelagia.infer.map_predictions import read_label_predictions, read_semantic_predictions
from pelagia.infer.match_images import MapList
from pelagia.infer.panoptic_files import pair_panoptic, read_panoptic
from pelagia.infer.sources import MapKind
from pelagia.metrics.bootstrap import Interval, Key, intervals, share_bounds
from pelagia.metrics.label_images import LabelImageResult, evaluate_label_images
from pelagia.metrics.panoptic import PanopticResult, PanopticTally
from pelagia.metrics.semantic import tally_maps
from pelagia.metrics.semantic_result import SemanticResult

__all__ = ["MapEvaluation", "MapScores", "evaluate_maps"]

MapScores: TypeAlias = LabelImageResult | SemanticResult | PanopticResult


@dataclass(frozen=True)
class MapEvaluation:
    """A score of maps: `at(weights)` is the result when image n of `images` counts weights[n] times. `unknown` names images with
    predictions that the truth does not have."""

    at: Callable[[Float | None], MapScores]
    images: int
    unknown: tuple[str, ...] = ()

    def intervals(self, *, resamples: int, level: float, seed: int) -> dict[Key, Interval]:
        """Bootstrap intervals of the headline numbers.

        Raises:
            EvaluationError: fewer than two images.
        """

        def statistic(weights: Float) -> dict[Key, float]:
            return {("", name): value for name, value in self.at(weights).summary()}

        return intervals(statistic, self.images, resamples=resamples, level=level, seed=seed, bounds=share_bounds)


def evaluate_maps(source: Path, truth: Path, kind: MapKind, open_truth: Callable[[Task], Dataset]) -> MapEvaluation:
    """Score the maps at `source`.

    Args:
        source: a folder of label images, or a panoptic JSON.
        truth: the labels; for panoptic maps the JSON file.
        open_truth: opens them as a data set of that task, for the other kinds.

    Raises:
        EvaluationError: the truth holds nothing of this kind, or images do not fit together.
        FormatError: a file breaks its format.
    """
    if kind == "panoptic":
        real = read_panoptic(truth)
        pairs, unknown = pair_panoptic(read_panoptic(source), real)
        tally = PanopticTally(real.categories)
        for name, (true_map, predicted) in zip(real.names, pairs, strict=True):
            tally.add(true_map, predicted, where=name)
        return MapEvaluation(tally.result, len(real), tuple(unknown))
    dataset = open_truth("semantic" if kind == "semantic" else "instance")
    if len(dataset) == 0:
        raise EvaluationError("there is no image to score", where=dataset.root)
    if kind == "semantic":
        dataset = dataset.with_task("semantic")
        maps, strangers = read_semantic_predictions(source, dataset)
        real_maps: MapList[SemanticMap] = MapList(dataset.semantic, len(dataset))
        sums = tally_maps(real_maps, maps, len(dataset.categories))
        return MapEvaluation(partial(sums.result, categories=dataset.categories), len(dataset), tuple(strangers))
    if dataset.task == "semantic":
        raise EvaluationError(
            "the labels hold classes of pixels, not objects; use --compare semantic, or --task instance if they number objects",
            where=dataset.root,
        )
    found, labels, strangers = read_label_predictions(source, dataset)
    result = evaluate_label_images(labels, found)
    return MapEvaluation(lambda weights: result if weights is None else result.at(weights), len(dataset), tuple(strangers))
