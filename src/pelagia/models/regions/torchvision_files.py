"""Checkpoints of torchvision's detectors as the models of this wing (torchvision is BSD-3-Clause).

A state dictionary of `fasterrcnn_resnet50_fpn`, `maskrcnn_resnet50_fpn`, their second versions or `keypointrcnn_resnet50_fpn`,
plain or under `model`, with trainable or frozen batch norms, with the names of today or those of the first published files.
Class 0 there is background; class i becomes label i - 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import detection

from pelagia.core.card import Normalisation
from pelagia.core.types import Category
from pelagia.errors import CheckpointError
from pelagia.models import weights
from pelagia.models.checkpoint import build
from pelagia.models.model import Model
from pelagia.models.registry import create

__all__ = ["foreign_name", "load", "recognises"]

#: Beginnings of names here -> there.
_PARTS = {
    "backbone.network.": "backbone.body.",
    "neck.lateral.": "backbone.fpn.inner_blocks.",
    "neck.smooth.": "backbone.fpn.layer_blocks.",
    "rpn.convs.": "rpn.head.conv.",
    "rpn.objectness.": "rpn.head.cls_logits.",
    "rpn.offsets.": "rpn.head.bbox_pred.",
    "box_head.convs.": "roi_heads.box_head.",
    "box_head.classes.logits.": "roi_heads.box_predictor.cls_score.",
    "box_head.classes.offsets.": "roi_heads.box_predictor.bbox_pred.",
    "mask_head.convs.": "roi_heads.mask_head.",
    "mask_head.enlarge.": "roi_heads.mask_predictor.conv5_mask.",
    "mask_head.classes.": "roi_heads.mask_predictor.mask_fcn_logits.",
    "keypoint_head.points.": "roi_heads.keypoint_predictor.kps_score_lowres.",
}
#: Names before torchvision 0.13 -> those since.
_FORMER = (
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
)
_FORMER_MASK = re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)$")
_LOGITS = "roi_heads.box_predictor.cls_score.bias"
_COCO_CLASSES = 91
#: Side of the input: a photo of 640 x 480 pixels is then enlarged about as torchvision does, whose shorter side is 800.
_SIDE = 1088
_NORMALISATION = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def recognises(content: Any) -> bool:
    """Whether the content of a file is a state dictionary of one of torchvision's two-stage detectors."""
    return _LOGITS in _state(content)


def _state(content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        return {}
    inner = content.get("model")
    return inner if isinstance(inner, Mapping) else content


def load(content: Mapping[Any, Any], path: Path) -> Model:
    """The detector in the `content` of a file, in evaluation mode, float32.

    Batch norms are frozen where the file does not count their batches. Their epsilon is 0 in the first published files, known by
    their digest, and 1e-5 in all others: it is not written in a file. Class ids are torchvision's class numbers.

    Raises:
        CheckpointError: the weights fit none of the models.
    """
    tensors = {_current(str(name)): value for name, value in _state(content).items() if isinstance(value, Tensor)}
    published = weights.known_file(path)
    options: dict[str, Any] = {"norm": "batch" if "backbone.body.bn1.num_batches_tracked" in tensors else "frozen"}
    options |= published.options if published is not None else {}
    name, task = "faster-rcnn", "detect"
    points = tensors.get("roi_heads.keypoint_predictor.kps_score_lowres.weight")
    if points is not None:
        name, task = "keypoint-rcnn", "keypoints"
    elif "roi_heads.mask_predictor.mask_fcn_logits.weight" in tensors:
        name, task = "mask-rcnn", "instance"
    if "backbone.fpn.inner_blocks.0.1.weight" in tensors and points is None:
        name += "-v2"
    categories = _categories(len(tensors[_LOGITS]), 0 if points is None else points.shape[1])
    with torch.device("meta"):
        model = create(name, categories, task, input_size=_SIDE, options=options)  # type: ignore[arg-type]
    names = {own: foreign_name(own, convolutions=name.endswith("-v2")) for own in model.state_dict()}
    missing = sorted(set(names.values()) - tensors.keys())
    surplus = sorted(tensors.keys() - set(names.values()))
    if missing or surplus:
        few = ", ".join((missing or surplus)[:3])
        raise CheckpointError(
            f"the weights look like torchvision's, but do not fit {name} over ResNet-50: {len(missing)} tensors are missing and "
            f"{len(surplus)} unknown ({few}, ...)",
            where=path,
        )
    card = replace(
        model.card,
        normalisation=_NORMALISATION,
        licence=published.licence if published is not None else "unknown",
        source=published.source if published is not None else f"torchvision checkpoint {path.name}",
    )
    return build({own: tensors[there] for own, there in names.items()}, card, where=path)


def foreign_name(name: str, *, convolutions: bool = False) -> str:
    """Name of a tensor here -> its name in torchvision's state dictionary; `convolutions`: of a box head that has such."""
    if name.startswith("box_head.layers."):
        _, _, number, last = name.split(".")
        return f"roi_heads.box_head.{'5' if convolutions else _LAYERS[number]}.{last}"
    if name.startswith("keypoint_head.convs."):
        _, _, number, _, last = name.split(".")
        return f"roi_heads.keypoint_head.{2 * int(number)}.{last}"
    own = next(part for part in _PARTS if name.startswith(part))
    return _PARTS[own] + name.removeprefix(own)


#: The fully connected layers of the first version.
_LAYERS = {"0": "fc6", "1": "fc7"}


def _current(name: str) -> str:
    for pattern, new in _FORMER:
        name = pattern.sub(new, name)
    return _FORMER_MASK.sub(lambda found: f"roi_heads.mask_head.{int(found[1]) - 1}.0.{found[2]}", name)


def _categories(outputs: int, points: int) -> tuple[Category, ...]:
    """Classes 1 to `outputs` - 1, named as torchvision's COCO weights name them where they are as many."""
    if points:
        meta = detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta
        known = meta["keypoint_names"] if points == len(meta["keypoint_names"]) else [f"point {i + 1}" for i in range(points)]
        named = meta["categories"] if outputs == len(meta["categories"]) else [f"class {i}" for i in range(outputs)]
        return tuple(
            Category(number, named[number], keypoints=tuple(known), flip=_partners(known)) for number in range(1, outputs)
        )
    if outputs != _COCO_CLASSES:
        return tuple(Category(number, f"class {number}") for number in range(1, outputs))
    named = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    # Eleven numbers of COCO have no class; the weights answer for them nonetheless, and names must differ.
    return tuple(
        Category(number, f"unused {number}" if named[number] == "N/A" else named[number]) for number in range(1, outputs)
    )


def _partners(names: list[str]) -> tuple[int, ...]:
    """For each keypoint the one that it becomes in a mirror, by `left` and `right` in the names."""
    swapped = [name.replace("left", "\0").replace("right", "left").replace("\0", "right") for name in names]
    return tuple(names.index(other) if other in names else i for i, other in enumerate(swapped))
