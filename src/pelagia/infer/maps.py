"""Scores of whole-image answers, of a model or read from files: label images of instances, class maps, panoptic maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Category, Float, Int, PanopticMap, Segment, SemanticMap, Task
from pelagia.data.dataset import Dataset
from pelagia.data.open import open_dataset
from pelagia.errors import EvaluationError, OptionError
from pelagia.infer.evaluate import EvaluateOptions, noted, predictions, tally_maps
from pelagia.infer.map_predictions import read_label_predictions, read_semantic_predictions
from pelagia.infer.match_images import MapList
from pelagia.infer.panoptic_files import PanopticFile, TrueMaps, pair_panoptic, read_panoptic
from pelagia.infer.runtimes import Runtime
from pelagia.infer.sources import MapKind, maps_of
from pelagia.metrics import semantic
from pelagia.metrics.bootstrap import Statistic
from pelagia.metrics.label_images import LabelImageResult, evaluate_label_images
from pelagia.metrics.panoptic import PanopticResult, PanopticTally
from pelagia.metrics.reliability import CalibrationTally, Reliability
from pelagia.metrics.result import number
from pelagia.metrics.semantic import SemanticTally
from pelagia.metrics.semantic_result import SemanticResult
from pelagia.metrics.statistics import (
    joined,
    label_image_statistic,
    panoptic_statistic,
    pixel_calibration_statistic,
    semantic_statistic,
)

__all__ = ["AnyMap", "MapEvaluation", "MapImages", "MapOptions", "MapScores", "evaluate_map_files", "evaluate_maps"]

MapScores: TypeAlias = LabelImageResult | SemanticResult | PanopticResult
AnyMap: TypeAlias = SemanticMap | PanopticMap

#: So many of the worst images are named.
_LISTED = 40


@dataclass(frozen=True)
class MapOptions:
    """How models answer, and what is told beside the scores.

    Args:
        predicting: how a model predicts.
        calibration: whether to ask how far the probabilities of pixels can be believed.
        show: a progress bar; None for one where standard error is a terminal.
        tell: called with a sentence on intensities beyond what a model was made for, when they are met.
    """

    predicting: EvaluateOptions = field(default_factory=EvaluateOptions)
    calibration: bool = False
    show: bool | None = None
    tell: Callable[[str], None] | None = None


@dataclass(frozen=True)
class MapImages:
    """The images behind a score of maps, to be listed and drawn.

    Args:
        names: [N].
        score: [N] of each image alone, by which the worst are told: mean IoU, PQ over all classes, accuracy at IoU 0.5 of label
            images; NaN for an image where there is nothing to score.
        maps: index -> truth and prediction.
        pixels: index -> the image; None where the labels do not tell where images are.
        categories: of the maps.
    """

    names: Sequence[str]
    score: Float
    maps: Callable[[int], tuple[AnyMap, AnyMap]]
    pixels: Callable[[int], NDArray[Any]] | None
    categories: tuple[Category, ...]

    def worst(self, most: int) -> Int:
        """The images of lowest score, lowest first, of those that are not perfect."""
        order = np.argsort(self.score, kind="stable")  # NaN comes last
        return order[self.score[order] < 1][:most]


@dataclass(frozen=True)
class MapEvaluation:
    """A score of maps, and every number of it as a function of how often each image counts.

    Args:
        unknown: names of images with predictions that the truth does not have.
        calibration: of the largest probability of each pixel, where it was asked for and the model gives probabilities.
    """

    result: MapScores
    statistic: Statistic
    images: MapImages
    unknown: tuple[str, ...] = ()
    calibration: Reliability | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the result, the worst images, and the calibration if there is one."""
        names, score = self.images.names, self.images.score
        worst = [{"image": names[index], "score": float(score[index])} for index in self.images.worst(_LISTED).tolist()]
        calibration = {} if self.calibration is None else {"calibration": self.calibration.to_dict()}
        return {**self.result.to_dict(), "worst_images": worst, **calibration}

    def lines(self) -> list[str]:
        """The evaluation as text."""
        lines = self.result.lines()
        if self.calibration is not None:
            gap = self.calibration.overconfidence
            tendency = "too sure" if gap > 0 else "not sure enough"
            lines += ["", f"Pixels: ECE {number(self.calibration.ece)}; on average {number(abs(gap))} {tendency}"]
        return lines


def evaluate_maps(
    sources: Sequence[Path | Runtime],
    truth: Path | None,
    kind: MapKind,
    open_truth: Callable[[Task], Dataset],
    options: MapOptions | None = None,
) -> list[MapEvaluation]:
    """Score the maps of each of `sources` against the same truth.

    Args:
        sources: models that answer with maps of this kind, folders of label images, panoptic JSON files, or what
            `pelagia predict` wrote.
        truth: the panoptic JSON file that panoptic files alone are compared with; None to compare them, as models are, with a
            data set.
        open_truth: opens the labels as a data set of that task.

    Raises:
        EvaluationError: the truth holds nothing of this kind, or images do not fit together.
        OptionError: a model answers with something else.
        FormatError: a file breaks its format.
    """
    options = options or MapOptions()
    sources = [maps_of(source, kind) if isinstance(source, Path) else source for source in sources]
    for source in sources:
        if not isinstance(source, Path) and source.card.task != kind:
            task = source.card.task
            raise OptionError(f"the model answers the task {task!r}, which cannot be compared as {kind}", where=source.card.name)
    if kind == "panoptic" and truth is not None and all(isinstance(source, Path) for source in sources):
        return [_panoptic_file(source, read_panoptic(truth), None) for source in sources if isinstance(source, Path)]
    tasks: dict[MapKind, Task] = {"semantic": "semantic", "panoptic": "panoptic", "label-images": "instance"}
    dataset = open_truth(tasks[kind])
    if len(dataset) == 0:
        raise EvaluationError("there is no image to score", where=dataset.root)
    if kind == "label-images" and dataset.task == "semantic":
        raise EvaluationError(
            "the labels hold classes of pixels, not objects; use --compare semantic, or --task instance if they number objects",
            where=dataset.root,
        )
    if kind != "label-images":
        dataset = dataset.with_task(tasks[kind])
    found = []
    for source in sources:
        if not isinstance(source, Path):
            found.append(_model(source, dataset, options))
        elif kind == "panoptic":
            found.append(_panoptic_file(source, TrueMaps.of(dataset), dataset))
        else:
            found.append(_semantic_files(source, dataset) if kind == "semantic" else _label_images(source, dataset))
    return found


def evaluate_map_files(source: str | Path, truth: str | Path | Dataset, kind: MapKind) -> MapScores:
    """The score of maps in files; see `evaluate_maps`. Predictions for images that `truth` does not have give a warning."""

    def open_truth(task: Task) -> Dataset:
        return truth if isinstance(truth, Dataset) else open_dataset(truth, task=task)

    path = None if isinstance(truth, Dataset) else Path(truth)
    (found,) = evaluate_maps([Path(source)], path, kind, open_truth)
    if found.unknown:
        text = f"left out: predictions for {len(found.unknown)} images that the truth does not have, such as {found.unknown[0]}"
        warnings.warn(text, stacklevel=3)
    return found.result


def _model(runtime: Runtime, dataset: Dataset, options: MapOptions) -> MapEvaluation:
    believed = CalibrationTally() if options.calibration and runtime.card.task == "semantic" else None
    notes, watch = noted(runtime.card, dataset, options.predicting, options.tell)
    tally = tally_maps(runtime, dataset, options.predicting, show=options.show, calibration=believed, watch=watch)
    truth: Callable[[int], AnyMap] = dataset.semantic if isinstance(tally, SemanticTally) else dataset.panoptic

    def maps(index: int) -> tuple[AnyMap, AnyMap]:
        """Predicted once more: a survey's maps would not fit into memory."""
        (found,) = predictions(runtime, dataset.subset([index]), options.predicting, show=False)
        assert isinstance(found, SemanticMap | PanopticMap)
        return truth(index), found

    if believed is not None and not believed.sums.any():
        believed = None
    if isinstance(tally, SemanticTally):
        found = _semantic(tally, maps, dataset, (), believed)
    else:
        found = _panoptic(tally, maps, TrueMaps.of(dataset), dataset, ())
    assert not isinstance(found.result, LabelImageResult)
    return replace(found, result=replace(found.result, notes=tuple(notes)))


def _semantic_files(source: Path, dataset: Dataset) -> MapEvaluation:
    found, unknown = read_semantic_predictions(source, dataset)
    real: MapList[SemanticMap] = MapList(dataset.semantic, len(dataset))
    tally = semantic.tally_maps(real, found, len(dataset.categories))
    return _semantic(tally, lambda index: (real[index], found[index]), dataset, tuple(unknown), None)


def _semantic(
    tally: SemanticTally,
    maps: Callable[[int], tuple[AnyMap, AnyMap]],
    dataset: Dataset,
    unknown: tuple[str, ...],
    believed: CalibrationTally | None,
) -> MapEvaluation:
    single = np.array([tally.from_sums(sums).mean_iou for sums in tally.image_sums()], dtype=np.float64)
    images = MapImages(dataset.names, single, maps, dataset.image, dataset.categories)
    result, statistic = tally.result(categories=dataset.categories), semantic_statistic(tally, dataset.categories)
    if believed is None:
        return MapEvaluation(result, statistic, images, unknown)
    statistic = joined(statistic, pixel_calibration_statistic(believed, len(dataset)))
    return MapEvaluation(result, statistic, images, unknown, believed.result())


def _panoptic_file(source: Path, truth: PanopticFile | TrueMaps, dataset: Dataset | None) -> MapEvaluation:
    pairs, unknown = pair_panoptic(read_panoptic(source), truth)
    tally = PanopticTally(truth.categories)
    for name, (true_map, predicted) in zip(truth.names, pairs, strict=True):
        tally.add(true_map, predicted, where=name)
    return _panoptic(tally, pairs.__getitem__, truth, dataset, tuple(unknown))


def _panoptic(
    tally: PanopticTally,
    maps: Callable[[int], tuple[AnyMap, AnyMap]],
    truth: PanopticFile | TrueMaps,
    dataset: Dataset | None,
    unknown: tuple[str, ...],
) -> MapEvaluation:
    iou, tp, fp, fn = tally.counts.sum(axis=1).T
    whole = tp + (fp + fn) / 2
    single: Float = np.divide(iou, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    images = MapImages(truth.names, single, maps, None if dataset is None else dataset.image, truth.categories)
    return MapEvaluation(tally.result(), panoptic_statistic(tally), images, unknown)


def _label_images(source: Path, dataset: Dataset) -> MapEvaluation:
    found, labels, unknown = read_label_predictions(source, dataset)
    result = evaluate_label_images(labels, found)
    main = int(np.argmin(np.abs(result.thresholds - 0.5)))
    right, wrong = result.counts[:, main, 0], result.counts[:, main].sum(axis=1)
    single: Float = np.divide(right, wrong, out=np.full(len(wrong), np.nan), where=wrong > 0)
    maps = partial(_numbered, labels, found)
    images = MapImages(dataset.names, single, maps, dataset.image, (Category(1, "object"),))
    return MapEvaluation(result, label_image_statistic(result), images, tuple(unknown))


def _numbered(labels: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]], index: int) -> tuple[PanopticMap, PanopticMap]:
    """Label images as segments of one class."""
    pair = []
    for pixels in (labels[index], found[index]):
        values, place = np.unique(pixels, return_inverse=True)
        ids = np.cumsum(values != 0)  # 0 stays 0, the others 1 to n: wide values need not fit
        segments = tuple(Segment(number, 0) for number in range(1, int(ids.max(initial=0)) + 1))
        pair.append(PanopticMap(ids[place].reshape(pixels.shape).astype(np.int32), segments))
    return pair[0], pair[1]
