"""Decoding of detectors whose graph has already turned cells into boxes and logits into probabilities.

Other projects export their one-stage detectors so (`pelagia.infer.foreign_onnx`). What is left is what `decode.grids` does behind
that point: thresholds, non-maximum suppression, the way back to the original, and masks.

Raw outputs, A candidates in any order:

    boxes   [B, 4, A]   centre x, centre y, width, height in input pixels; oriented: before the box is turned about its centre
    scores  [B, C, A]   probabilities; below 0 where a candidate cannot be of that class
    angles  [B, 1, A]   oriented only: radians, clockwise on the screen
    coefficients [B, K, A] and prototypes [B, K, H/4, W/4]
                        instance only: as in `decode.grids`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.boxes import convert
from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.oriented import canonical
from pelagia.core.types import Instances
from pelagia.decode.grids import PROTOTYPE_STRIDE, candidates, cut_masks, select
from pelagia.decode.options import DecodeOptions
from pelagia.decode.outputs import check_shapes

__all__ = ["decode_cells"]


def decode_cells(
    outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
) -> list[Instances]:
    """Objects of each image of a batch, strongest first, in pixels of the originals, by the rules of `decode_grids`.

    Raises:
        ModelError: an output is missing, has another shape than the card asks for, or its scores hold NaN.
    """
    height, width = card.input_size
    expected: dict[str, tuple[str | int, ...]] = {"boxes": (4, "A"), "scores": (len(card.categories), "A")}
    if card.task == "oriented":
        expected["angles"] = (1, "A")
    if card.task == "instance":
        expected["coefficients"] = ("K", "A")
        expected["prototypes"] = ("K", height // PROTOTYPE_STRIDE, width // PROTOTYPE_STRIDE)
    check_shapes(outputs, len(frames), expected, card)
    thresholds = np.array([options.class_scores.get(name, options.score) for name in card.class_names])
    found = []
    for image, frame in enumerate(frames):
        cells, labels, scores = candidates(outputs["scores"][image], thresholds, options.multi_label, card)
        values = outputs["boxes"][image][:, cells].T.astype(np.float64)  # [n, 4]
        if card.task == "oriented":
            values = canonical(np.column_stack([values, outputs["angles"][image, 0, cells].astype(np.float64)]))
        else:
            values = convert(values, "cxcywh", "xyxy")
        objects, kept = select(values, labels, scores, frame, options, oriented=card.task == "oriented")
        if card.task == "instance":
            coefficients = outputs["coefficients"][image][:, cells[kept]].T
            objects = objects.replace(
                masks=cut_masks(coefficients, outputs["prototypes"][image], objects.box_array, frame, options.mask)
            )
        found.append(objects)
    return found
