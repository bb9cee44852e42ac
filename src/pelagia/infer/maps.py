"""Scores of whole-image answers read from files: label images of instances, class maps, panoptic maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from pelagia.core.types import SemanticMap
from pelagia.data.dataset import Dataset
from pelagia.errors import EvaluationError
from pelagia.infer.map_predictions import read_label_predictions, read_semantic_predictions
from pelagia.infer.match_images import MapList
from pelagia.infer.panoptic_files import pair_panoptic, read_panoptic
from pelagia.infer.sources import MapKind
from pelagia.metrics.label_images import LabelImageResult, evaluate_label_images
from pelagia.metrics.panoptic import PanopticResult, PanopticTally
from pelagia.metrics.semantic import evaluate_semantic
from pelagia.metrics.semantic_result import SemanticResult

__all__ = ["MapScores", "evaluate_maps"]

MapScores: TypeAlias = LabelImageResult | SemanticResult | PanopticResult


def evaluate_maps(
    source: Path, truth: Path, kind: MapKind, open_truth: Callable[[], Dataset]
) -> tuple[MapScores, tuple[str, ...]]:
    """The score, and the images with predictions that the truth does not have.

    Args:
        source: a folder of label images, or a panoptic JSON.
        truth: the labels; for panoptic maps the JSON file.
        open_truth: opens them as a data set, for the other kinds.

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
        return tally.result(), tuple(unknown)
    dataset = open_truth()
    if len(dataset) == 0:
        raise EvaluationError("there is no image to score", where=dataset.root)
    if kind == "semantic":
        dataset = dataset.with_task("semantic")
        maps, strangers = read_semantic_predictions(source, dataset)
        real_maps: MapList[SemanticMap] = MapList(dataset.semantic, len(dataset))
        return evaluate_semantic(real_maps, maps, dataset.categories), tuple(strangers)
    found, labels, strangers = read_label_predictions(source, dataset)
    return evaluate_label_images(labels, found), tuple(strangers)
