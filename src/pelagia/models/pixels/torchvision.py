"""Checkpoints of torchvision's FCN and DeepLabV3 over a ResNet (torchvision and the weights that it publishes are BSD-3-Clause).

A state dictionary of `torchvision.models.segmentation` is renamed tensor by tensor. Its class 0 is the ground. The weights that
torchvision publishes were trained on the images of COCO that hold the classes of Pascal VOC, with the normalisation of ImageNet,
short side 520 pixels. They are known by their digest (`models.weights`); of any other file the licence is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pelagia.core.card import ModelCard, Normalisation
from pelagia.core.types import Category
from pelagia.errors import CheckpointError
from pelagia.models import weights
from pelagia.models.checkpoint import build
from pelagia.models.model import Model
from pelagia.models.registry import create

__all__ = ["VOC_CLASSES", "foreign_name", "load", "recognises"]

#: Classes of Pascal VOC in the order of the published weights.
VOC_CLASSES: Final = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_FCN = {"head.mix": "classifier", "head.classes": "classifier.4"}
_DEEPLAB = {
    "pyramid.branches": "classifier.0.convs",
    "pyramid.pooled.0": "classifier.0.convs.4.1",
    "pyramid.pooled.1": "classifier.0.convs.4.2",
    "pyramid.project": "classifier.0.project",
    "mix.0": "classifier.1",
    "mix.1": "classifier.2",
    "classes": "classifier.4",
}
_BOTH = {"backbone.network": "backbone", "aux.mix": "aux_classifier", "aux.classes": "aux_classifier.4"}
#: Blocks of stage 3 -> the network.
_DEPTHS = {6: "timm:resnet50", 23: "timm:resnet101"}
_NORMALISATION = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_SIDE = 520


def recognises(content: Any) -> bool:
    """Whether the content of a file is a state dictionary of FCN or DeepLabV3 over a ResNet."""
    return isinstance(content, Mapping) and {"backbone.layer4.0.conv2.weight", "classifier.0.weight"} <= _names(content)


def _names(content: Mapping[Any, Any]) -> set[str]:
    names = {str(name) for name in content}
    # DeepLabV3 begins with its pyramid instead of a convolution.
    return names | ({"classifier.0.weight"} if "classifier.0.convs.0.0.weight" in names else set())


def load(content: Mapping[Any, Any], path: Path) -> Model:
    """The FCN or DeepLabV3 in the `content` of a file, in evaluation mode, float32.

    Raises:
        CheckpointError: the weights fit neither.
    """
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    deep = "classifier.0.convs.0.0.weight" in tensors
    classes = len(tensors["classifier.4.weight"]) if "classifier.4.weight" in tensors else 0
    stage = {name.split(".")[2] for name in tensors if name.startswith("backbone.layer3.")}
    backbone = _DEPTHS.get(len(stage))
    if backbone is None or "backbone.layer1.0.conv3.weight" not in tensors or classes < 2:
        raise CheckpointError("expected FCN or DeepLabV3 over ResNet-50 or ResNet-101 with at least two classes", where=path)
    auxiliary = "aux_classifier.4.weight" in tensors
    options: dict[str, Any] = {"backbone": backbone} | ({} if auxiliary else {"aux_weight": 0.0})
    named = VOC_CLASSES if classes == len(VOC_CLASSES) else [f"class {index}" for index in range(classes)]
    categories = tuple(Category(index, name) for index, name in enumerate(named))
    card = _card("deeplabv3" if deep else "fcn", categories, options, path)
    with torch.device("meta"):
        names = list(create(card.name, categories, "semantic", options=options, input_size=card.input_size).state_dict())
    renamed = {name: tensors[foreign] for name in names if (foreign := foreign_name(name, deep=deep)) in tensors}
    surplus = tensors.keys() - {foreign_name(name, deep=deep) for name in names}
    if surplus:
        raise CheckpointError(f"{len(surplus)} tensors have no place in {card.name}, such as {min(surplus)}", where=path)
    return build(renamed, card, where=path)


def foreign_name(name: str, *, deep: bool) -> str:
    """Name of a tensor here -> its name in torchvision's state dictionary, of DeepLabV3 if `deep`, else of FCN."""
    for own, foreign in {**(_DEEPLAB if deep else _FCN), **_BOTH}.items():
        if name.startswith(own + "."):
            return foreign + name[len(own) :]
    return name


def _card(name: str, categories: tuple[Category, ...], options: dict[str, Any], path: Path) -> ModelCard:
    size = -(-_SIDE // 32) * 32
    with torch.device("meta"):
        model = create(name, categories, "semantic", options=options, input_size=size)
    published = weights.known_file(path)
    return replace(
        model.card,
        normalisation=_NORMALISATION,
        licence=published.licence if published is not None else "unknown",
        source=published.source if published is not None else f"torchvision checkpoint {path.name}",
    )
