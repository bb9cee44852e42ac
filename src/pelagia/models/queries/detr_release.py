"""DETR in the files that its authors published, such as `detr-r50-e632da11.pth`: a dictionary whose `model` is the state.

They publish under Apache-2.0. Whether the last stage is dilated is not written in a file; those published are known by their
digest (`models.weights`), others are taken for not dilated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pelagia.errors import CheckpointError
from pelagia.models import weights
from pelagia.models.model import Model
from pelagia.models.queries.configuration import renamed
from pelagia.models.queries.detr_weights import BACKBONE, assemble

__all__ = ["load", "recognises"]

#: Theirs -> ours, applied in turn.
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.0\.body\.", BACKBONE),
        (r"^query_embed\.", "queries."),
        (r"^input_proj\.", "project."),
        (r"^class_embed\.", "classes."),
        (r"^bbox_embed\.", "boxes."),
        (r"^transformer\.", ""),
        (r"\.self_attn\.", ".attention."),
        (r"\.multihead_attn\.", ".cross."),
        (r"\.out_proj\.", ".join."),
        (r"\.linear1\.", ".feed.enter."),
        (r"\.linear2\.", ".feed.leave."),
        (r"^((?:en|de)coder\.layers\.\d+)\.norm1\.", r"\1.attention_norm."),
        (r"^(decoder\.layers\.\d+)\.norm2\.", r"\1.cross_norm."),
        (r"^(encoder\.layers\.\d+)\.norm2\.", r"\1.feed_norm."),
        (r"^(decoder\.layers\.\d+)\.norm3\.", r"\1.feed_norm."),
    )
)
#: What they keep as one matrix.
_JOINED = re.compile(r"\.in_proj_(weight|bias)$")


def recognises(content: Any) -> bool:
    """Whether the content of a file is a state of the authors' DETR for detection."""
    needed = {"transformer.decoder.layers.0.multihead_attn.in_proj_weight", "query_embed.weight", "input_proj.weight"}
    return needed | {"class_embed.weight", "bbox_embed.layers.2.weight"} <= {str(name) for name in _state(content)}


def load(content: Mapping[Any, Any], path: Path) -> Model:
    """The DETR in the `content` of a file, in evaluation mode, float32. Class ids are COCO's.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    tensors = {str(name): value for name, value in _state(content).items() if isinstance(value, Tensor)}
    published = weights.known_file(path)
    options = {} if published is None else published.options
    return assemble(
        dict(_own(tensors, path)),
        {"dilation": options.get("dilated", False)},
        path,
        source=f"the authors' {path.name}" if published is None else published.source,
        licence="unknown" if published is None else published.licence,
    )


def _state(content: Any) -> Mapping[Any, Any]:
    state = content.get("model", content) if isinstance(content, Mapping) else {}
    return state if isinstance(state, Mapping) else {}


def _own(tensors: Mapping[str, Tensor], path: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names of DETR here, joined matrices taken apart."""
    for name, value in tensors.items():
        own = renamed(name, _RULES)
        joined = _JOINED.search(own)
        if joined is None:
            yield own, value
            continue
        if len(value) % 3:
            raise CheckpointError(f"{name} joins three matrices, but has {len(value)} rows", where=path)
        for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
            yield f"{own[: joined.start()]}.{part}.{joined[1]}", third
