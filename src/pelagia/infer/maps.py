"""Scores of whole-image answers read from files: label images of instances, class maps, panoptic maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pelagia.core.types import SemanticMap, Task
from pelagia.data.dataset import Dataset
from pelagia.errors import EvaluationError
from pelagia.infer.map_predictions import read_label_predictions, read_semantic_predictions
from pelagia.infer.match_images import MapList
from pelagia.infer.panoptic_files import pair_panoptic, read_panoptic
from pelagia.infer.sources import MapKind, maps_of
from pelagia.metrics.bootstrap import Statistic
from pelagia.metrics.label_images import LabelImageResult, evaluate_label_images
from pelagia.metrics.panoptic import PanopticResult, PanopticTally
from pelagia.metrics.semantic import tally_maps
from pelagia.metrics.semantic_result import SemanticResult
from pelagia.metrics.statistics import label_image_statistic, panoptic_statistic, semantic_statistic

__all__ = ["MapEvaluation", "MapScores", "evaluate_maps"]

MapScores: TypeAlias = LabelImageResult | SemanticResult | PanopticResult


@dataclass(frozen=True)
class MapEvaluation:
    """A score of maps, and every number of it as a function of how often each of `images` counts. `unknown` names images with
    predictions that the truth does not have."""

    result: MapScores
    statistic: Statistic
    images: int
    unknown: tuple[str, ...] = ()


def evaluate_maps(
    sources: Sequence[Path], truth: Path, kind: MapKind, open_truth: Callable[[Task], Dataset]
) -> list[MapEvaluation]:
    """Score the maps at each of `sources` against the same truth.

    Args:
        sources: folders of label images, panoptic JSON files, or what `pelagia predict` wrote.
        truth: the labels; for panoptic maps the JSON file.
        open_truth: opens them as a data set of that task, for the other kinds.

    Raises:
        EvaluationError: the truth holds nothing of this kind, or images do not fit together.
        FormatError: a file breaks its format.
    """
    sources = [maps_of(source, kind) for source in sources]
    if kind == "panoptic":
        return [_panoptic(source, truth) for source in sources]
    dataset = open_truth("semantic" if kind == "semantic" else "instance")
    if len(dataset) == 0:
        raise EvaluationError("there is no image to score", where=dataset.root)
    if kind == "semantic":
        dataset = dataset.with_task("semantic")
        return [_semantic(source, dataset) for source in sources]
    if dataset.task == "semantic":
        raise EvaluationError(
            "the labels hold classes of pixels, not objects; use --compare semantic, or --task instance if they number objects",
            where=dataset.root,
        )
    return [_label_images(source, dataset) for source in sources]


def _panoptic(source: Path, truth: Path) -> MapEvaluation:
    real = read_panoptic(truth)
    pairs, unknown = pair_panoptic(read_panoptic(source), real)
    tally = PanopticTally(real.categories)
    for name, (true_map, predicted) in zip(real.names, pairs, strict=True):
        tally.add(true_map, predicted, where=name)
    return MapEvaluation(tally.result(), panoptic_statistic(tally), len(real), tuple(unknown))


def _semantic(source: Path, dataset: Dataset) -> MapEvaluation:
    maps, unknown = read_semantic_predictions(source, dataset)
    real: MapList[SemanticMap] = MapList(dataset.semantic, len(dataset))
    tally = tally_maps(real, maps, len(dataset.categories))
    statistic = semantic_statistic(tally, dataset.categories)
    return MapEvaluation(tally.result(categories=dataset.categories), statistic, len(dataset), tuple(unknown))


def _label_images(source: Path, dataset: Dataset) -> MapEvaluation:
    found, labels, unknown = read_label_predictions(source, dataset)
    result = evaluate_label_images(labels, found)
    return MapEvaluation(result, label_image_statistic(result), len(dataset), tuple(unknown))
