"""Decoding of one-stage detectors that answer at every cell of three grids (the YOLO family since v8).

A cell predicts class logits and, for each side of a box, a discrete distribution over distances (Li et al., "Generalized Focal
Loss", NeurIPS 2020, eq. 6: distribution focal loss; the distance is its expectation). Oriented boxes add one angle per cell,
masks the coefficients of a sum of prototypes that the whole image shares (Bolya et al., "YOLACT", ICCV 2019), keypoints three
numbers each (Maji et al., "YOLO-Pose", CVPRW 2022).

Raw outputs, A cells over all grids, row by row, finest grid first:

    boxes   [B, 4 R, A]   logits of the distances left, top, right, bottom, R bins each, in units of the cell's stride
    scores  [B, C, A]     class logits
    angles  [B, 1, A]     oriented only: angle = (sigmoid(logit) - 1/4) pi, clockwise on the screen
    coefficients [B, K, A] and prototypes [B, K, H/4, W/4]
                          instance only: logits of the mask = the sum over k of coefficient k times prototype k
    keypoints [B, 3 P, A] keypoints only, for each point p the rows 3 p to 3 p + 2: x = (2 a + column) stride,
                          y = (2 b + row) stride, score = sigmoid(c), in the column and row of the cell within its grid
    cells [B, A]          optional: then the other outputs hold, in their columns, these cells only
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.keypoints import point_count
from pelagia.core.lazy import resolve
from pelagia.core.nms import nms, nms_oriented
from pelagia.core.oriented import canonical
from pelagia.core.types import Float, Instances, Int, MaskCrop
from pelagia.decode.options import DecodeOptions
from pelagia.decode.outputs import check_shapes
from pelagia.decode.resample import bilinear
from pelagia.errors import ModelError

__all__ = [
    "CANDIDATES",
    "PROTOTYPE_STRIDE",
    "STRIDES",
    "anchors",
    "candidates",
    "cut_masks",
    "decode_grids",
    "select",
    "thresholds",
]

#: Input pixels per cell of the prototypes of masks.
PROTOTYPE_STRIDE = 4

#: Input pixels per cell of each grid, finest first.
STRIDES = (8, 16, 32)

#: More masks than this are assembled by a compiled loop, whose import would cost a few more than it saves.
_FEW_MASKS = 50

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


#: The last few sizes are remembered: laying the cells out takes as long as the rest of decoding an image with few objects.
_anchors = lru_cache(maxsize=8)(anchors)


def decode_grids(
    outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
) -> list[Instances]:
    """Objects of each image of a batch, strongest first, in pixels of the originals.

    A cell is a candidate for its best class (for every class with `multi_label`) where sigmoid(logit) is at least that class's
    threshold. Only candidates are decoded, then non-maximum suppression (exact oriented IoU for the oriented task) runs over
    boxes in network pixels, per class unless `agnostic`. Boxes are cut at the border of the original; what lies wholly outside
    goes. A mask is the pixels of the original whose centre lies in the box and where the probability is at least
    `options.mask`: logits are interpolated bilinearly from the prototypes to the pixels of the original in one step, then
    sigmoid. Keypoints may lie outside the image.

    Raises:
        ModelError: an output is missing, has another shape than the card asks for, or holds NaN.
    """
    centres, strides = _anchors(card.input_size)
    given = outputs.get("cells")
    _check(outputs, len(frames), len(centres) if given is None else given.shape[1], card)
    boxes, scores = outputs["boxes"], outputs["scores"]
    lowest = thresholds(card, options)
    found = []
    for image, frame in enumerate(frames):
        columns, labels, logits = candidates(scores[image], lowest, options.multi_label, card)
        cells = columns if given is None else given[image, columns]
        distances = _distances(boxes[image][:, columns]) * strides[cells, None]
        if card.task == "oriented":
            values = _rotated(centres[cells], distances, outputs["angles"][image, 0, columns])
        else:
            values = _upright(centres[cells], distances)
        objects, kept = select(values, labels, _sigmoid(logits), frame, options, oriented=card.task == "oriented")
        columns, cells = columns[kept], cells[kept]
        if card.task == "instance":
            coefficients = outputs["coefficients"][image][:, columns].T
            objects = objects.replace(
                masks=cut_masks(coefficients, outputs["prototypes"][image], objects.box_array, frame, options.mask)
            )
        if card.task == "keypoints":
            points = _points(outputs["keypoints"][image][:, columns], centres[cells], strides[cells])
            points[..., :2] = frame.points(points[..., :2])
            objects = objects.replace(keypoints=points)
        found.append(objects)
    return found


def thresholds(card: ModelCard, options: DecodeOptions) -> Float:
    """[C] logits from which a cell is a candidate for each class."""
    return _logit(np.array([options.class_scores.get(name, options.score) for name in card.class_names]))


def _check(outputs: Mapping[str, NDArray[Any]], batch: int, cells: int, card: ModelCard) -> None:
    """Every output that the task needs is there, with the shape that the card asks for."""
    height, width = card.input_size
    classes = len(card.categories)
    expected: dict[str, tuple[str | int, ...]] = {"boxes": ("4 R", cells), "scores": (classes, cells)}
    if card.task == "oriented":
        expected["angles"] = (1, cells)
    if card.task == "instance":
        expected["coefficients"] = ("K", cells)
        expected["prototypes"] = ("K", height // PROTOTYPE_STRIDE, width // PROTOTYPE_STRIDE)
    if card.task == "keypoints":
        expected["keypoints"] = (3 * point_count(card.categories, where=card.name), cells)
    check_shapes(outputs, batch, expected, card)
    if outputs["boxes"].shape[1] % 4 or outputs["boxes"].shape[1] == 0:
        raise ModelError(f"'boxes' has shape {list(outputs['boxes'].shape)}, expected 4 R rows", where=card.name)


def candidates(scores: NDArray[Any], thresholds: Float, multi_label: bool, card: ModelCard) -> tuple[Int, Int, Float]:
    """Cells, labels and scores of what passes its class's threshold, strongest first, at most `CANDIDATES`.

    Scores [C, A] and thresholds [C] are both logits or both probabilities.

    Raises:
        ModelError: the scores hold NaN.
    """
    if np.isnan(scores.max(initial=-np.inf)):
        raise ModelError("the network's scores hold NaN; its weights or its input are broken", where=card.name)
    cells = _reached(scores, float(thresholds.min(initial=np.inf)))
    found = scores[:, cells].astype(np.float64)  # [C, n]
    if multi_label:
        labels, columns = np.nonzero(found >= thresholds[:, None])
    else:
        labels, columns = found.argmax(axis=0), np.arange(len(cells))
        kept = found[labels, columns] >= thresholds[labels]
        labels, columns = labels[kept], columns[kept]
    values = found[labels, columns]
    order = np.argsort(-values, kind="stable")[:CANDIDATES]
    return cells[columns[order]], labels[order].astype(np.int64), values[order]


def _reached(scores: NDArray[Any], lowest: float) -> Int:
    """Columns of [C, A] in which a score is at least `lowest`, or less by the rounding of the scores' type."""
    passing = scores >= np.nextafter(scores.dtype.type(lowest), scores.dtype.type(-np.inf))
    if scores.strides[0] >= scores.strides[1]:
        return np.flatnonzero(passing.any(axis=0))
    # The classes of a cell lie side by side: NumPy would go through them one by one.
    cells = np.logical_or.reduceat(passing.T.ravel(), np.arange(0, scores.size, len(scores)))
    return np.flatnonzero(cells)


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


def select(
    values: Float, labels: Int, scores: Float, frame: Frame, options: DecodeOptions, *, oriented: bool
) -> tuple[Instances, Int]:
    """The candidates that survive suppression and lie in the original, as objects in its pixels, and their positions."""
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
    inside = inside[: options.most] if options.most else inside
    return found.select(inside), kept[inside]


def cut_masks(
    coefficients: NDArray[Any], prototypes: NDArray[Any], boxes: Float, frame: Frame, threshold: float
) -> tuple[MaskCrop, ...]:
    """Coefficients [n, K] and prototypes [K, h, w] -> the masks within `boxes` [n, 4] of the original.

    Only the cells that a box needs are multiplied, so the cost is that of the masks and not of n whole images.
    """
    _, rows, columns = prototypes.shape
    level = float(_logit(np.array(threshold)))
    # A box may reach beyond the tile that the network saw; a mask may not.
    seen = frame.boxes(np.array([[0.0, 0.0, columns, rows]]) * PROTOTYPE_STRIDE)
    low, high = (np.clip(corner, seen[0, :2], seen[0, 2:]) for corner in (boxes[:, :2], boxes[:, 2:]))
    # A pixel belongs to a box that holds its centre.
    first, last = (np.ceil(corner - 0.5).astype(np.int64) for corner in (low, high))
    inverse = frame.inverse / PROTOTYPE_STRIDE
    if len(boxes) > _FEW_MASKS:
        pixels = np.concatenate([first, last], axis=1)
        affine = np.array([inverse[0, 0], inverse[0, 2], inverse[1, 1], inverse[1, 2]])
        arrays = (np.ascontiguousarray(part, dtype=np.float32) for part in (coefficients, prototypes))
        kernels = resolve("pelagia.decode.kernels", purpose="assemble masks")
        bits, starts = kernels.assemble_masks(*arrays, pixels, affine, level)
        sizes = np.maximum(last - first, 0).tolist()
        parts = zip(pixels.tolist(), sizes, starts.tolist()[:-1], starts.tolist()[1:], strict=True)
        return tuple(MaskCrop(box[0], box[1], bits[low:high].reshape(size[1], size[0])) for box, size, low, high in parts)
    found = []
    for weights, (left, top), (right, bottom) in zip(coefficients, first.tolist(), last.tolist(), strict=True):
        # Positions of pixel centres in the prototypes, whose cell (i, j) has its centre at (i, j).
        x = (np.arange(left, right) + 0.5) * inverse[0, 0] + inverse[0, 2] - 0.5
        y = (np.arange(top, bottom) + 0.5) * inverse[1, 1] + inverse[1, 2] - 0.5
        if not len(x) or not len(y):
            found.append(MaskCrop(left, top, np.zeros((0, 0), dtype=np.bool_)))
            continue
        x1, y1 = max(int(x[0]), 0), max(int(y[0]), 0)
        part = prototypes[:, y1 : min(int(y[-1]) + 2, rows), x1 : min(int(x[-1]) + 2, columns)]
        logits = np.tensordot(weights, part, axes=1)
        found.append(MaskCrop(left, top, bilinear(logits, y - y1, x - x1) >= level))
    return tuple(found)


def _points(raw: NDArray[Any], centres: Float, strides: Float) -> Float:
    """[3 P, n] -> [n, P, 3], x, y in network pixels and score."""
    values = raw.reshape(raw.shape[0] // 3, 3, raw.shape[1]).astype(np.float64).transpose(2, 0, 1)  # [n, P, 3]
    found = np.empty(values.shape)
    found[..., :2] = (2 * values[..., :2] - 0.5) * strides[:, None, None] + centres[:, None]
    found[..., 2] = _sigmoid(values[..., 2])
    return found


def _sigmoid(logits: Float) -> Float:
    # exp(-log(1 + exp(-x))) never overflows.
    result: Float = np.exp(-np.logaddexp(0.0, -logits))
    return result


def _logit(probabilities: Float) -> Float:
    with np.errstate(divide="ignore"):
        result: Float = np.log(probabilities) - np.log1p(-probabilities)
    return result
