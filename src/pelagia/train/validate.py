"""Scoring the averaged weights after an epoch, with the function that `pelagia evaluate` uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pelagia.core.types import Instances
from pelagia.data.dataset import Dataset
from pelagia.infer.evaluate import EvaluateOptions, choose_thresholds, predict_dataset, score
from pelagia.metrics.result import DetectionResult
from pelagia.models import checkpoint
from pelagia.models.runtime import TorchRuntime
from pelagia.train.run import RunFolder
from pelagia.train.step import Engine

__all__ = ["validate"]

#: Pairs of pictures that are drawn, and the score from which an object is drawn where its class has no best threshold.
_PICTURED, _PICTURED_SCORE = 8, 0.25


def validate(engine: Engine, val: Dataset, folder: RunFolder, epoch: int) -> dict[str, Any]:
    """Scores of the averaged weights on `val` after epoch `epoch` (from 0); None stands for a score that does not exist.

    The first process works, all learn the result. A new best AP is written to `best.safetensors` with the best threshold of each
    class, and drawn.
    """
    progress, card = engine.progress, engine.average.model.card
    scores: dict[str, Any] = {}
    if engine.group.first:
        options = EvaluateOptions(batch=min(progress.settings.batch, 16))
        found = predict_dataset(TorchRuntime(engine.average.model), val, options, show=False if folder.quiet else None)
        result = score(val, found, card.task)
        scores = {name: _number(getattr(result, name)) for name in ("ap", "ap50", "ap75", "f1")}
        if scores["ap"] is not None and (progress.best is None or scores["ap"] > progress.best):
            manifest = {**card.manifest, "epoch": epoch + 1, "metrics": scores}
            best = replace(card, thresholds=choose_thresholds(val, found, card.task), manifest=manifest)
            checkpoint.save(folder.best, engine.average.model, best)
            folder.predictions(val, _counting(found[:_PICTURED], val, result))
    scores = engine.group.share(scores)
    if scores["ap"] is not None and (progress.best is None or scores["ap"] > progress.best):
        progress.best, progress.best_epoch = scores["ap"], epoch + 1
    return scores


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _counting(found: Sequence[Instances], val: Dataset, result: DetectionResult) -> list[Instances]:
    """The predictions that count: those at or above their class's best threshold."""
    limits = np.array([result.thresholds.get(name, _PICTURED_SCORE) for name in val.class_names])
    return [item.select(item.scores >= limits[item.labels]) for item in found if item.scores is not None]
