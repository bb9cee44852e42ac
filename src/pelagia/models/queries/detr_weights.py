"""DETR in files of Hugging Face transformers (`DetrForObjectDetection`), of any of its versions and both of its ResNets.

The sizes of the network follow from the shapes of its tensors. What no shape tells (class names, number of heads, dilation) is
read from `config.json` in the same folder; without that file there are 8 heads, as published, and no dilation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from pelagia.core.card import ModelCard
from pelagia.errors import CheckpointError, OptionError
from pelagia.models.checkpoint import build
from pelagia.models.model import Model
from pelagia.models.queries.configuration import categories_of, read_configuration, renamed, resnet_of, timm_resnet_name
from pelagia.models.queries.detr import NORMALISATION, Options
from pelagia.models.registry import entries

__all__ = ["BACKBONE", "assemble", "load", "our_name", "recognises"]

_THEIR_BACKBONE = re.compile(r"^model\.backbone\.(?:conv_encoder\.)?model\.")
#: Beginning of the names of the backbone's tensors here.
BACKBONE: Final = "backbone.network."

#: Theirs -> ours, applied in turn.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model\.query_position_embeddings\.", "queries."),
        (r"^model\.input_projection\.", "project."),
        (r"^class_labels_classifier\.", "classes."),
        (r"^bbox_predictor\.", "boxes."),
        (r"^model\.", ""),
        (r"\.self_attn\.", ".attention."),
        (r"\.encoder_attn\.", ".cross."),
        (r"\.q_proj\.", ".query."),
        (r"\.k_proj\.", ".key."),
        (r"\.v_proj\.", ".value."),
        (r"\.(?:out_proj|o_proj)\.", ".join."),
        (r"\.self_attn_layer_norm\.", ".attention_norm."),
        (r"\.encoder_attn_layer_norm\.", ".cross_norm."),
        (r"\.final_layer_norm\.", ".feed_norm."),
        (r"\.(?:mlp\.)?fc1\.", ".feed.enter."),
        (r"\.(?:mlp\.)?fc2\.", ".feed.leave."),
        (r"^decoder\.layernorm\.", "decoder.norm."),
    )
)
#: Their published weights read images of which the shorter side is 800 pixels.
_INPUT_SIZE: Final = (800, 800)
_HEADS: Final = 8


def recognises(names: set[str]) -> bool:
    """Whether tensors of these names are a DETR for detection."""
    needed = {"class_labels_classifier.weight", "model.query_position_embeddings.weight", "model.input_projection.weight"}
    return needed <= names and "model.encoder.layers.0.self_attn.q_proj.weight" in names


def our_name(name: str) -> str:
    """Name of a tensor in their state dictionary -> its name in DETR here."""
    found = _THEIR_BACKBONE.match(name)
    return BACKBONE + timm_resnet_name(name[found.end() :]) if found else renamed(name, _RULES)


def load(tensors: Mapping[str, Tensor], path: Path) -> Model:
    """The DETR in `tensors`, in evaluation mode, float32. Class ids are the places in their list of labels.

    Raises:
        CheckpointError: the configuration asks for what DETR here does not have, or names or shapes do not fit.
    """
    # A frozen norm counts no batches.
    own = {our_name(name): value for name, value in tensors.items() if not name.endswith(".num_batches_tracked")}
    return assemble(own, read_configuration(path), path, source=f"Hugging Face checkpoint {path.name}")


def assemble(
    own: Mapping[str, Tensor], configuration: Mapping[str, Any], path: Path, *, source: str, licence: str = "unknown"
) -> Model:
    """The DETR with the tensors `own`, under the names of DETR here; `configuration` has the words of transformers.

    Raises:
        CheckpointError: as `load`.
    """
    options = _options(own, configuration, path)
    card = ModelCard(
        name=_model(options),
        task="detect",
        decoder="queries",
        categories=categories_of(configuration, len(own["classes.weight"]) - 1),
        input_size=_INPUT_SIZE,
        masks_padding=True,
        options=asdict(options),
        normalisation=NORMALISATION,
        licence=licence,
        source=source,
    )
    return build(own, card, where=path)


def _options(own: Mapping[str, Tensor], configuration: Mapping[str, Any], path: Path) -> Options:
    """What the shapes say, and the configuration where shapes cannot."""
    for name, wanted in (("activation_function", "relu"), ("position_embedding_type", "sine"), ("num_channels", 3)):
        if configuration.get(name, wanted) != wanted:
            raise CheckpointError(f"{name} is {configuration[name]!r}; DETR here has {wanted!r}", where=path)
    inner = configuration.get("backbone_config")
    named = configuration.get("backbone") or (inner.get("backbone") if isinstance(inner, Mapping) else None)
    backbone = resnet_of(name.removeprefix(BACKBONE) for name in own if name.startswith(BACKBONE)) or named
    if not isinstance(backbone, str):
        raise CheckpointError("the backbone is no ResNet and no config.json beside the weights names it", where=path)
    heads = {configuration.get(f"{part}_attention_heads", _HEADS) for part in ("encoder", "decoder")}
    hidden = {len(value) for name, value in own.items() if name.endswith(".feed.enter.weight")}
    if len(heads) != 1 or len(hidden) != 1:
        raise CheckpointError("encoder and decoder differ in their heads or feed-forward parts; here they do not", where=path)
    try:
        return Options(
            width=len(own["project.weight"]),
            heads=heads.pop(),
            encoder_layers=_layers(own, "encoder"),
            decoder_layers=_layers(own, "decoder"),
            hidden=hidden.pop(),
            queries=len(own["queries.weight"]),
            dropout=configuration.get("dropout", 0.1),
            backbone=f"timm:{backbone}",
            dilated=bool(configuration.get("dilation", False)),
        )
    except (OptionError, TypeError) as error:
        raise CheckpointError(f"its configuration cannot be used ({error})", where=path) from error


def _layers(own: Mapping[str, Tensor], part: str) -> int:
    return sum(name.startswith(f"{part}.layers.") and name.endswith(".attention_norm.weight") for name in own)


def _model(options: Options) -> str:
    """Name of the registered DETR with this backbone, else of the first."""
    known = [item for item in entries("detect") if item.builder.endswith(":DETR")]
    for item in known:
        default = Options(**item.defaults)
        if (default.backbone, default.dilated) == (options.backbone, options.dilated):
            return item.name
    return known[0].name
