"""Small models with weights far from their start, and labels that they would score well on."""

from __future__ import annotations

import atexit
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from pelagia.api import Predictor, create_model
from pelagia.core.image import image_size
from pelagia.core.types import Category, Instances
from pelagia.export.onnx import ExportReport, export_onnx
from pelagia.models.model import Model
from pelagia.models.regions.faster_rcnn import TwoStage
from pelagia.models.registry import entry
from pelagia.models.runtime import TorchRuntime
from test_models_battery import make

SIZE = (64, 96)
REGIONS = ("faster-rcnn", "mask-rcnn", "keypoint-rcnn")


def scramble_norms(model: nn.Module) -> None:
    """Weights and running statistics far from their start, so that folding them wrongly shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


def scrambled(task: Any) -> Model:
    """A small model whose weights and running statistics are far from their start, so that fusing them wrongly shows."""
    torch.manual_seed(0)
    points = ("left", "right") if task == "keypoints" else ()
    classes = [Category(number, name, keypoints=points) for number, name in enumerate("abc", 1)]
    model = create_model("yolo11n", classes, task=task, input_size=SIZE, options=dict(entry("yolo11n").tiny))
    scramble_norms(model)
    model.card = replace(model.card, thresholds={"a": 0.5}, licence="CC-BY-4.0")
    return model.eval()


def label_what_is_found(model: Model, folder: Path, paths: list[Path]) -> Path:
    """COCO labels of small images that are what `model` finds in them, so that its AP is near 1 and that of another lower."""
    images, annotations = [], []
    predictor = Predictor(TorchRuntime(model))
    for number, path in enumerate(paths):
        width, height = image_size(path)
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        found = predictor.predict(path, score=0.001, nms_iou=0.7, most=40)
        assert isinstance(found, Instances)
        for (x1, y1, x2, y2), label in zip(found.box_array.tolist(), found.labels.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, **box})
    assert len(annotations) > 40
    categories = [{"id": item.id, "name": item.name} for item in model.card.categories]
    (folder / "labels.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder / "labels.json"


def two_stage(name: str, task: Any, **options: Any) -> TwoStage:
    """A tiny two-stage detector whose scores are spread, and whose norms are far from their start."""
    torch.manual_seed(0)
    points = {"keypoints": ("left", "right", "tail")} if task == "keypoints" else {}
    classes = [Category(number, str(number), **points) for number in range(1, 4)]
    model = create_model(name, classes, task=task, input_size=SIZE, options={**entry(name).tiny, **options})
    assert isinstance(model, TwoStage)
    scramble_norms(model)
    with torch.no_grad():  # or all scores are alike
        for layer in (model.rpn.objectness, model.rpn.offsets, *model.box_head.classes.values()):
            layer.weight.mul_(20)
    return model.eval()


def scrambled_entry(name: str, task: Any) -> Model:
    """The small model of an entry of the registry, with norms far from their start."""
    model = make(name, task)
    scramble_norms(model)
    return model.eval()


def _small(name: str, task: Any) -> Model:
    if name == "yolo11n":
        return scrambled(task)
    return two_stage(name, task) if name in REGIONS else scrambled_entry(name, task)


@cache
def exported_file(name: str, task: Any) -> tuple[Model, Path, ExportReport]:
    """A small model and its ONNX file, written once for all tests; neither may be changed."""
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    model = _small(name, task)
    path = Path(folder.name) / "m.onnx"
    return model, path, export_onnx(model, path)
