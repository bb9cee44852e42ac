"""Mask2Former in files of Hugging Face transformers (`Mask2FormerForUniversalSegmentation`), with a ResNet or a Swin Transformer.

Both spellings of Swin's tensors are read: that of transformers 5 and the older one of the published files. The sizes of the
network follow from the shapes of its tensors; the classes from `config.json` in the same folder. The task stands nowhere but in
the name of the model: it is looked for in that file and in the name of the folder, and is else that of COCO's data with as many
classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pelagia.core.card import ModelCard
from pelagia.core.types import Category, Task
from pelagia.errors import CheckpointError, OptionError
from pelagia.models.checkpoint import build
from pelagia.models.model import Model
from pelagia.models.queries.configuration import categories_of, read_configuration, renamed, resnet_of, timm_resnet_name
from pelagia.models.queries.mask2former import LEVELS, NORMALISATION, POINTS, Options
from pelagia.models.registry import entries
from pelagia.nn.swin import SWINS

__all__ = ["ENCODER", "load", "our_tensors", "recognises"]

#: Beginning of the names of the backbone's tensors.
ENCODER: Final = "model.pixel_level_module.encoder."
_RESNET: Final = "backbone.network."
_SWIN = re.compile(r"^(?:model\.)?(?:swin\.)?")

#: Tensors that no output depends on: the weights of the loss, a norm at the end of Swin, tables that follow from sizes.
_UNUSED = re.compile(rf"^criterion\.|^{re.escape(ENCODER)}(?:model\.)?(?:swin\.)?layernorm\.|\.relative_position_index$")


def _rules(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


#: Theirs -> ours within a Swin Transformer, applied in turn.
_SWIN_RULES = _rules(
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:self|relative_position_bias)\.relative_position_bias_table$", ".attn.relative_position_bias_table"),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.attention\.(?:self\.)?([qkv])(?:_proj|uery|ey|alue)\.", r".attn.\1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
#: Theirs -> ours elsewhere, applied in turn.
_RULES = _rules(
    (r"^model\.pixel_level_module\.decoder\.", "pixel_decoder."),
    (r"^pixel_decoder\.input_projections\.", "pixel_decoder.enter."),
    (r"^pixel_decoder\.level_embed$", "pixel_decoder.level"),
    (r"^pixel_decoder\.encoder\.", "pixel_decoder."),
    (r"^pixel_decoder\.adapter_1\.", "pixel_decoder.lateral."),
    (r"^pixel_decoder\.layer_1\.", "pixel_decoder.smooth."),
    (r"^pixel_decoder\.mask_projection\.", "pixel_decoder.pixels."),
    (r"\.self_attn\.sampling_offsets\.", ".attention.offsets."),
    (r"\.self_attn\.attention_weights\.", ".attention.weights."),
    (r"\.self_attn\.value_proj\.", ".attention.values."),
    (r"\.self_attn\.output_proj\.", ".attention.project."),
    (r"^model\.transformer_module\.queries_features\.weight$", "decoder.queries"),
    (r"^model\.transformer_module\.queries_embedder\.weight$", "decoder.codes"),
    (r"^model\.transformer_module\.level_embed\.weight$", "decoder.level"),
    (r"^model\.transformer_module\.decoder\.", "decoder."),
    (r"^decoder\.layernorm\.", "decoder.norm."),
    (r"^decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"decoder.masks.layers.\1."),
    (r"^class_predictor\.", "decoder.classes."),
    (r"\.self_attn\.q_proj\.", ".attention.query."),
    (r"\.self_attn\.k_proj\.", ".attention.key."),
    (r"\.self_attn\.v_proj\.", ".attention.value."),
    (r"\.self_attn\.out_proj\.", ".attention.join."),
    (r"\.cross_attn\.out_proj\.", ".cross.join."),
    (r"\.self_attn_layer_norm\.", ".attention_norm."),
    (r"\.cross_attn_layer_norm\.", ".cross_norm."),
    (r"\.final_layer_norm\.", ".feed_norm."),
    (r"\.fc1\.", ".feed.enter."),
    (r"\.fc2\.", ".feed.leave."),
)
_JOINED = re.compile(r"\.cross_attn\.in_proj_(weight|bias)$")
_DOWNSAMPLE = re.compile(r"^encoder\.layers\.(\d)\.downsample\.")
_NORM = re.compile(r"^hidden_states_norms\.stage(\d)\.")
#: Their side of an input; classes of COCO's panoptic task, of which the first 80 are things, and of its objects.
_INPUT_SIZE: Final = (640, 640)
_PANOPTIC_CLASSES, _THINGS = 133, 80


def recognises(names: set[str]) -> bool:
    """Whether tensors of these names are a Mask2Former."""
    return "model.transformer_module.decoder.mask_predictor.mask_embedder.0.0.weight" in names


def our_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under the names of Mask2Former here, joined and divided as it holds them; what nothing needs is left out."""
    own: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if _UNUSED.search(name):
            continue
        joined = _JOINED.search(name)
        if joined:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                own[renamed(_JOINED.sub(f".cross.{part}.{joined[1]}", name), _RULES)] = third
        else:
            own[_our_name(name)] = value
    for name in [name for name in own if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if all(part in own for part in parts):
            own[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([own.pop(part) for part in parts])
    return own


def _our_name(name: str) -> str:
    if not name.startswith(ENCODER):
        return renamed(name, _RULES)
    inner = name.removeprefix(ENCODER)
    if inner.startswith(("embedder.", "encoder.stages.")):
        return _RESNET + timm_resnet_name(inner)
    inner = _SWIN.sub("", inner)
    # A merging of cells ends a stage there and begins the next here; norms count from 1 there.
    inner = _DOWNSAMPLE.sub(lambda found: f"layers.{int(found[1]) + 1}.downsample.", inner)
    inner = _NORM.sub(lambda found: f"norms.{int(found[1]) - 1}.", inner)
    return "backbone." + renamed(inner, _SWIN_RULES)


def load(tensors: Mapping[str, Tensor], path: Path) -> Model:
    """The Mask2Former in `tensors`, in evaluation mode, float32. Class ids are the places in their list of labels.

    Raises:
        CheckpointError: names or shapes do not fit Mask2Former here.
    """
    configuration = read_configuration(path)
    own = our_tensors(tensors)
    try:
        options = _options(own)
        count = len(own["decoder.classes.weight"]) - 1
    except (KeyError, OptionError) as error:
        raise CheckpointError(f"its tensors are not those of a Mask2Former with three levels ({error})", where=path) from error
    card = ModelCard(
        name=_model(options),
        task=_task(f"{configuration.get('_name_or_path', '')} {path.parent.name} {path.name}", count),
        decoder="masks",
        categories=_categories(configuration, count),
        input_size=_INPUT_SIZE,
        options={**asdict(options), "swin_depths": list(options.swin_depths)},
        normalisation=NORMALISATION,
        licence="other",
        source=f"Hugging Face checkpoint {path.name}",
    )
    return build(own, card, where=path)


def _options(own: Mapping[str, Tensor]) -> Options:
    """Sizes from the shapes of tensors; the weights of the loss are the published ones."""
    queries, width = own["decoder.queries"].shape
    resnet = resnet_of(name.removeprefix(_RESNET) for name in own if name.startswith(_RESNET))
    return Options(
        **(_swin(own) if resnet is None else {"backbone": f"timm:{resnet}"}),
        width=width,
        heads=len(own["pixel_decoder.layers.0.attention.offsets.bias"]) // (LEVELS * POINTS * 2),
        pixel_layers=_count(own, "pixel_decoder.layers."),
        pixel_hidden=len(own["pixel_decoder.layers.0.feed.enter.bias"]),
        layers=_count(own, "decoder.layers."),
        hidden=len(own["decoder.layers.0.feed.enter.bias"]),
        queries=queries,
    )


def _swin(own: Mapping[str, Tensor]) -> dict[str, Any]:
    """The published Swin of these sizes, or sizes of its own with the windows of a published one."""
    width = len(own["backbone.patch_embed.norm.weight"])
    depths = tuple(_count(own, f"backbone.layers.{stage}.blocks.") for stage in range(4))
    table = own["backbone.layers.0.blocks.0.attn.relative_position_bias_table"]
    window = (round(len(table) ** 0.5) + 1) // 2
    same = [name for name, sizes in SWINS.items() if sizes == (width, depths, window)]
    if same:
        return {"backbone": f"timm:{same[0]}"}
    name = next((name for name, sizes in SWINS.items() if sizes[2] == window), None)
    if name is None:
        raise OptionError(f"windows of {window} cells; known are those of {', '.join(SWINS)}")
    return {"backbone": f"timm:{name}", "swin_width": width, "swin_depths": depths}


def _count(own: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in own if name.startswith(prefix)})


def _model(options: Options) -> str:
    """Name of the registered Mask2Former with this backbone, else of the first."""
    known = [item for item in entries("panoptic") if item.builder.endswith(":Mask2Former")]
    return next((item.name for item in known if Options(**item.defaults).backbone == options.backbone), known[0].name)


def _categories(configuration: Mapping[str, Any], count: int) -> tuple[Category, ...]:
    found = categories_of(configuration, count)
    if count != _PANOPTIC_CLASSES:
        return found
    return (*found[:_THINGS], *(replace(item, is_thing=False) for item in found[_THINGS:]))


def _task(text: str, classes: int) -> Task:
    tasks: tuple[Task, ...] = ("panoptic", "instance", "semantic")
    named = [task for task in tasks if task in text]
    return named[0] if named else {_PANOPTIC_CLASSES: tasks[0], _THINGS: tasks[1]}.get(classes, tasks[2])
