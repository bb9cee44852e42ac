"""Metrics: detection by COCO's rules, confusion, thresholds. Predictions made by anything can be scored."""

from __future__ import annotations

from pelagia.metrics.confusion import ConfusionMatrix
from pelagia.metrics.detection import COCO_IOU_THRESHOLDS, evaluate_detection
from pelagia.metrics.result import ClassResult, DetectionResult

__all__ = ["COCO_IOU_THRESHOLDS", "ClassResult", "ConfusionMatrix", "DetectionResult", "evaluate_detection"]
