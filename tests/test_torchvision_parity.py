"""Faster, Mask and Keypoint R-CNN give torchvision's numbers, on its weights and its own resized images."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torchvision.models import detection

from pelagia.errors import CheckpointError
from pelagia.models.foreign import load_foreign
from pelagia.models.regions import torchvision_files


def script() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "parity_torchvision.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


parity = script()


@pytest.mark.parametrize("name", list(parity.REFERENCES))
def test_outputs_and_losses_agree(name: str) -> None:
    # A single class suppresses itself more: more proposals leave as many detections.
    limits = parity.Limits(side=128, proposals=300 if name == "keypoint-rcnn" else 100, detections=25, regions=64)
    row = parity.compare(name, limits)
    assert row.parameters == row.expected_parameters
    assert row.detections >= parity.LEAST_DETECTIONS
    assert {key for key, value in row.differences.items() if not value <= parity.TOLERANCE} == set()
    assert row.good


@pytest.fixture(scope="module")
def faster() -> Any:
    torch.manual_seed(0)
    return detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)


def _former(name: str) -> str:
    """The name before torchvision 0.13."""
    if name.startswith("rpn"):
        return name.replace("conv.0.0.", "conv.")
    return name.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if name.startswith("backbone.fpn") else name


def test_a_file_under_model_and_with_former_names(faster: Any, tmp_path: Path) -> None:
    state = faster.state_dict()
    torch.save({"model": state, "epoch": 3}, tmp_path / "now.pth")
    former = {_former(name): value for name, value in state.items()}
    assert former.keys() != state.keys()
    torch.save(former, tmp_path / "then.pth")
    now, then = load_foreign(tmp_path / "now.pth"), load_foreign(tmp_path / "then.pth")
    assert now.card.class_names == ("class 1", "class 2", "class 3")
    assert [item.id for item in now.card.categories] == [1, 2, 3]
    assert now.card.licence == "unknown"
    assert not now.training
    for (name, value), other in zip(now.state_dict().items(), then.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_coco_classes_have_different_names() -> None:
    names = [item.name for item in torchvision_files._categories(91, 0)]
    assert len(set(names)) == 90
    assert names[0] == "person"
    assert names[11] == "unused 12"
    person = torchvision_files._categories(2, 17)
    assert person[0].keypoints[:3] == ("nose", "left_eye", "right_eye")
    assert person[0].flip[:3] == (0, 2, 1)


def test_a_file_that_does_not_fit_is_refused(faster: Any, tmp_path: Path) -> None:
    state = dict(faster.state_dict())
    del state["rpn.head.cls_logits.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match="1 tensors are missing"):
        load_foreign(tmp_path / "short.pth")
