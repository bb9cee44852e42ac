"""Decoding of networks that predict a set: each of Q queries answers with one object or with none.

Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, section 3. The classes and "no object" exclude each
other, so a query has one answer, and training has taught the queries not to answer twice: nothing is suppressed.

Raw outputs:

    logits  [B, Q, C + 1]   of the classes, the last of "no object"
    boxes   [B, Q, 4]       cx, cy, w, h as shares of the valid image's width and height
    valid   [B, 2]          height and width of the valid image in input pixels; absent where all of the input is valid
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core import boxes as upright
from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.types import Float, Instances, Int
from pelagia.decode.options import DecodeOptions
from pelagia.decode.outputs import finite_output
from pelagia.errors import ModelError

__all__ = ["decode_queries"]


def decode_queries(
    outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
) -> list[Instances]:
    """Objects of each image of a batch, strongest first, in pixels of the originals.

    A query is an object of its most probable class, "no object" left out of the choice, where the probability of that class is at
    least the class's threshold. Boxes are cut at the border of the original; what lies wholly outside goes. `nms_iou`, `agnostic`
    and `multi_label` have nothing to act on.

    Raises:
        ModelError: an output is missing, has another shape than the card asks for, or holds NaN.
    """
    logits, boxes = finite_output(outputs, "logits", card), finite_output(outputs, "boxes", card)
    _check_shapes(logits, boxes, len(frames), card)
    sizes = outputs.get("valid", np.broadcast_to(card.input_size, (len(frames), 2)))
    thresholds = np.array([options.class_scores.get(name, options.score) for name in card.class_names])
    found = []
    for image, frame in enumerate(frames):
        labels, scores = best_classes(logits[image])
        kept = np.flatnonzero(scores >= thresholds[labels])
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        shares = upright.convert(boxes[image][kept].astype(np.float64), "cxcywh", "xyxy")
        height, width = sizes[image]
        values = frame.boxes(upright.denormalise(shares, float(width), float(height)))
        seen = np.flatnonzero(upright.area(values) > 0)
        seen = seen[: options.most] if options.most else seen
        found.append(Instances(labels=labels[kept][seen], boxes=values[seen], scores=scores[kept][seen]))
    return found


def best_classes(logits: NDArray[Any]) -> tuple[Int, Float]:
    """Logits [Q, C + 1] -> the most probable class of each query other than the last, [Q], and its softmax probability [Q]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    chance = shifted[:, :-1] / shifted.sum(axis=1, keepdims=True)
    labels = chance.argmax(axis=1).astype(np.int64)
    return labels, chance[np.arange(len(labels)), labels]


def _check_shapes(logits: NDArray[Any], boxes: NDArray[Any], batch: int, card: ModelCard) -> None:
    size = f"a batch of {batch} and {len(card.categories)} classes"
    if logits.ndim != 3 or logits.shape[::2] != (batch, len(card.categories) + 1):
        wanted = f"[{batch}, Q, {len(card.categories) + 1}]"
        raise ModelError(f"'logits' has shape {list(logits.shape)}, expected {wanted} for {size}", where=card.name)
    if boxes.shape != (batch, logits.shape[1], 4):
        raise ModelError(f"'boxes' has shape {list(boxes.shape)}, expected [{batch}, {logits.shape[1]}, 4]", where=card.name)
