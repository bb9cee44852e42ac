"""Decoding of one-stage detectors that answer at every cell of three grids (the YOLO family since v8).

A cell predicts class logits and, for each side of a box, a discrete distribution over distances (Li et al., "Generalized Focal
Loss", NeurIPS 2020, eq. 6: distribution focal loss; the distance is its expectation). Oriented boxes add one angle per cell.

Raw outputs, A cells over all grids, row by row, finest grid first:

    boxes   [B, 4 R, A]   logits of the distances left, top, right, bottom, R bins each, in units of the cell's stride
    scores  [B, C, A]     class logits
    angles  [B, 1, A]     oriented only: angle = (sigmoid(logit) - 1/4) pi, clockwise on the screen
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.nms import nms, nms_oriented
from pelagia.core.oriented import canonical
from pelagia.core.types import Float, Instances, Int
from pelagia.decode.options import DecodeOptions
from pelagia.errors import ModelError

__all__ = ["CANDIDATES", "STRIDES", "anchors", "decode_grids"]

#: Input pixels per cell of each grid, finest first.
STRIDES = (8, 16, 32)

#: At most so many candidates per image enter non-maximum suppression, the strongest first: an untrained network calls every
#: cell an object of every class, and suppression would then cost minutes to no use.
CANDIDATES = 30_000


def anchors(input_size: tuple[int, int], strides: Sequence[int] = STRIDES) -> tuple[Float, Float]:
    """Centres of all cells of an input of height and width `input_size`: x, y in input pixels [A, 2], and strides [A].

    Grids follow each other finest first, cells row by row; cell (column i, row j) of stride s has its centre at
    ((i + 1/2) s, (j + 1/2) s).

    Raises:
        ModelError: a side of the input is not a multiple of the coarsest stride.
    """
    height, width = input_size
    if height % max(strides) or width % max(strides):
        raise ModelError(f"the input size {height} x {width} must be a multiple of {max(strides)} on both sides")
    centres, sizes = [], []
    for stride in strides:
        y, x = np.meshgrid(np.arange(height // stride) + 0.5, np.arange(width // stride) + 0.5, indexing="ij")
        centres.append(np.stack([x.ravel(), y.ravel()], axis=1) * stride)
        sizes.append(np.full(x.size, float(stride)))
    return np.concatenate(centres), np.concatenate(sizes)


def decode_grids(
    outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
) -> list[Instances]:
    """Objects of each image of a batch, strongest first, in pixels of the originals.

    A cell is a candidate for its best class (for every class with `multi_label`) where sigmoid(logit) is at least that class's
    threshold. Only candidates are decoded, then non-maximum suppression (exact oriented IoU for the oriented task) runs in
    network pixels, per class unless `agnostic`. Boxes are cut at the border of the original; what lies wholly outside goes.

    Raises:
        ModelError: an output is missing, has another shape than the card asks for, or holds NaN.
    """
    oriented = card.task == "oriented"
    boxes, scores = _expect(outputs, "boxes", card), _expect(outputs, "scores", card)
    angles = _expect(outputs, "angles", card) if oriented else None
    centres, strides = anchors(card.input_size)
    _check_shapes(boxes, scores, angles, (len(frames), len(card.categories), len(centres)), card)
    thresholds = _logit(np.array([options.class_scores.get(name, options.score) for name in card.class_names]))
    found = []
    for image, frame in enumerate(frames):
        cells, labels, logits = _candidates(scores[image], thresholds, options.multi_label, card)
        distances = _distances(boxes[image][:, cells]) * strides[cells, None]
        if angles is None:
            values = _upright(centres[cells], distances)
        else:
            values = _rotated(centres[cells], distances, angles[image, 0, cells])
        found.append(_finish(values, labels, _sigmoid(logits), frame, options, oriented=oriented))
    return found


def _expect(outputs: Mapping[str, NDArray[Any]], name: str, card: ModelCard) -> NDArray[Any]:
    if name not in outputs:
        raise ModelError(f"the model has no output {name!r}, only {', '.join(outputs) or 'none'}", where=card.name)
    return outputs[name]


def _check_shapes(
    boxes: NDArray[Any], scores: NDArray[Any], angles: NDArray[Any] | None, expected: tuple[int, int, int], card: ModelCard
) -> None:
    batch, classes, cells = expected
    size = f"a batch of {batch}, {classes} classes and an input of {card.input_size[0]} x {card.input_size[1]}"
    if scores.shape != expected:
        raise ModelError(f"'scores' has shape {list(scores.shape)}, expected {list(expected)} for {size}", where=card.name)
    if boxes.ndim != 3 or boxes.shape[::2] != (batch, cells) or boxes.shape[1] % 4 or boxes.shape[1] == 0:
        raise ModelError(f"'boxes' has shape {list(boxes.shape)}, expected [{batch}, 4 R, {cells}] for {size}", where=card.name)
    if angles is not None and angles.shape != (batch, 1, cells):
        raise ModelError(f"'angles' has shape {list(angles.shape)}, expected [{batch}, 1, {cells}] for {size}", where=card.name)


def _candidates(scores: NDArray[Any], thresholds: Float, multi_label: bool, card: ModelCard) -> tuple[Int, Int, Float]:
    """Cells, labels and logits of what passes its class's threshold, strongest first, at most `CANDIDATES`."""
    best = scores.max(axis=0, initial=-np.inf)  # [A]
    if np.isnan(best).any():
        raise ModelError("the network's scores hold NaN; its weights or its input are broken", where=card.name)
    cells = np.flatnonzero(best >= thresholds.min(initial=np.inf))
    logits = scores[:, cells].astype(np.float64)  # [C, n]
    if multi_label:
        labels, columns = np.nonzero(logits >= thresholds[:, None])
    else:
        labels, columns = logits.argmax(axis=0), np.arange(len(cells))
        kept = logits[labels, columns] >= thresholds[labels]
        labels, columns = labels[kept], columns[kept]
    values = logits[labels, columns]
    order = np.argsort(-values, kind="stable")[:CANDIDATES]
    return cells[columns[order]], labels[order].astype(np.int64), values[order]


def _distances(logits: NDArray[Any]) -> Float:
    """[4 R, n] logits -> [n, 4] expected distances in strides: sum over bins k of k softmax(logits)_k."""
    bins = logits.reshape(4, logits.shape[0] // 4, logits.shape[1]).astype(np.float64)
    weights = np.exp(bins - bins.max(axis=1, keepdims=True))
    expected: Float = np.einsum("k,skn->ns", np.arange(bins.shape[1], dtype=np.float64), weights) / weights.sum(axis=1).T
    return expected


def _upright(centres: Float, distances: Float) -> Float:
    return np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], axis=1)


def _rotated(centres: Float, distances: Float, logits: NDArray[Any]) -> Float:
    """[n, 5]; the offset from cell to centre is given in the axes of the box, so it turns with the box."""
    angle = (_sigmoid(logits.astype(np.float64)) - 0.25) * np.pi
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = (distances[:, 2:] - distances[:, :2]).T / 2
    offset = np.stack([x * cos - y * sin, x * sin + y * cos], axis=1)
    return canonical(np.concatenate([centres + offset, distances[:, :2] + distances[:, 2:], angle[:, None]], axis=1))


def _finish(values: Float, labels: Int, scores: Float, frame: Frame, options: DecodeOptions, *, oriented: bool) -> Instances:
    suppress = nms_oriented if oriented else nms
    kept = suppress(values, scores, options.nms_iou, None if options.agnostic else labels)
    values, labels, scores = values[kept], labels[kept], scores[kept]
    if oriented:
        found = Instances(labels=labels, oriented=frame.oriented(values), scores=scores)
    else:
        found = Instances(labels=labels, boxes=frame.boxes(values), scores=scores)
    x1, y1, x2, y2 = found.box_array.T
    inside = np.flatnonzero(
        (np.minimum(x2, frame.width) > np.maximum(x1, 0)) & (np.minimum(y2, frame.height) > np.maximum(y1, 0))
    )
    return found.select(inside[: options.most] if options.most else inside)


def _sigmoid(logits: Float) -> Float:
    # exp(-log(1 + exp(-x))) never overflows.
    result: Float = np.exp(-np.logaddexp(0.0, -logits))
    return result


def _logit(probabilities: Float) -> Float:
    with np.errstate(divide="ignore"):
        result: Float = np.log(probabilities) - np.log1p(-probabilities)
    return result
