"""Scoring the averaged weights after an epoch, with the function that `pelagia evaluate` uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np

from pelagia.core.types import Instances, Prediction, Task
from pelagia.data.dataset import Dataset
from pelagia.infer.evaluate import (
    EvaluateOptions,
    Scores,
    choose_thresholds,
    predict_dataset,
    predictions,
    score,
    tally_maps,
)
from pelagia.infer.objects import KINDS
from pelagia.metrics.result import DetectionResult
from pelagia.metrics.semantic import SemanticTally
from pelagia.models import checkpoint
from pelagia.models.runtime import TorchRuntime
from pelagia.train.run import RunFolder
from pelagia.train.step import Engine

__all__ = ["TITLES", "score_names", "validate"]

#: Pairs of pictures that are drawn, and the score from which an object is drawn where its class has no best threshold.
_PICTURED, _PICTURED_SCORE = 8, 0.25


#: Task -> the scores of an epoch by name; the first one decides which epoch is the best.
_SCORES: dict[str, dict[str, str]] = {
    "semantic": {"miou": "mean_iou", "dice": "mean_dice", "pixel_accuracy": "pixel_accuracy"},
    "panoptic": {"pq": "all.pq", "sq": "all.sq", "rq": "all.rq", "pq_things": "things.pq", "pq_stuff": "stuff.pq"},
}
_OBJECT_SCORES = {"ap": "ap", "ap50": "ap50", "ap75": "ap75", "f1": "f1"}


#: How people write the scores.
TITLES = {
    **{"ap": "AP", "ap50": "AP50", "ap75": "AP75", "f1": "F1"},
    **{"miou": "mIoU", "dice": "Dice", "pixel_accuracy": "pixel accuracy"},
    **{"pq": "PQ", "sq": "SQ", "rq": "RQ", "pq_things": "PQ things", "pq_stuff": "PQ stuff"},
}


def score_names(task: Task) -> dict[str, str]:
    """Names of the scores of an epoch -> the attributes of a result that they are; the first decides which epoch is the best."""
    return _SCORES.get(task, _OBJECT_SCORES)


def validate(engine: Engine, val: Dataset, folder: RunFolder, epoch: int) -> dict[str, Any]:
    """Scores of the averaged weights on `val` after epoch `epoch` (from 0); None stands for a score that does not exist.

    The first process works, all learn the result. A new best is written to `best.safetensors`, for objects with the best
    threshold of each class, and drawn.
    """
    progress, card = engine.progress, engine.average.model.card
    scores: dict[str, Any] = {}
    names = score_names(card.task)
    chief = next(iter(names))
    if engine.group.first:
        options = EvaluateOptions(batch=min(progress.settings.batch, 16))
        runtime, show = TorchRuntime(engine.average.model), False if folder.quiet else None
        thresholds: dict[str, float] = {}
        found: list[Instances] = []
        if card.task in KINDS:
            found = predict_dataset(runtime, val, options, show=show)
            result: Scores = score(val, found, card.task)
        else:
            tally = tally_maps(runtime, val, options, show=show, boundary=None)
            result = tally.result(categories=val.categories) if isinstance(tally, SemanticTally) else tally.result()
        scores = {name: _number(attrgetter(path)(result)) for name, path in names.items()}
        if scores[chief] is not None and (progress.best is None or scores[chief] > progress.best):
            manifest = {**card.manifest, "epoch": epoch + 1, "metrics": scores}
            if isinstance(result, DetectionResult):
                thresholds = choose_thresholds(val, found, card.task)
            best = replace(card, thresholds=thresholds, manifest=manifest)
            checkpoint.save(folder.best, engine.average.model, best)
            folder.predictions(val, _pictured(runtime, val, found, result))
    scores = engine.group.share(scores)
    if scores[chief] is not None and (progress.best is None or scores[chief] > progress.best):
        progress.best, progress.best_epoch = scores[chief], epoch + 1
    return scores


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _pictured(runtime: TorchRuntime, val: Dataset, found: Sequence[Instances], result: Scores) -> list[Prediction]:
    """What is drawn of the first images: objects at or above their class's best threshold, or maps."""
    if not isinstance(result, DetectionResult):
        return list(predictions(runtime, val.subset(range(min(_PICTURED, len(val)))), show=False))
    limits = np.array([result.thresholds.get(name, _PICTURED_SCORE) for name in val.class_names])
    return [item.select(item.scores >= limits[item.labels]) for item in found[:_PICTURED] if item.scores is not None]
