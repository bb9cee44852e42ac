"""Raw outputs of the two-stage detectors -> objects in pixels of the original image.

The network has already suppressed and sorted its detections; D of them per image leave it, padded with score 0:

    boxes      [B, D, 4]           in pixels of the network's input
    scores     [B, D]              probability of the class
    labels     [B, D]
    masks      [B, D, m, m]        logits over the box, for the task `instance`
    heatmaps   [B, D, K, m, m]     logits over the box, for the task `keypoints`

A mask's cell (i, j) is centred at ((j + 0.5) / m, (i + 0.5) / m) of the box. Its probabilities are interpolated bilinearly at the
centres of the original's pixels, with zero beyond the outermost cells (as `paste_masks_in_image` of Detectron2; torchvision
rounds the box to whole pixels first), and only the crop of the box is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.nms import nms
from pelagia.core.types import Float, Instances, Int, MaskCrop
from pelagia.decode.options import DecodeOptions
from pelagia.decode.outputs import finite_output
from pelagia.errors import ModelError

__all__ = ["decode_regions", "heatmap_points", "mask_crop", "point_scores"]

#: Coefficient of cubic interpolation (Keys 1981): that of PyTorch, OpenCV and with them of the published models.
_CUBIC = -0.75

#: A keypoint counts as found where it is said to be within this share of the sides of its box.
_NEAR = 0.1


def decode_regions(
    outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
) -> list[Instances]:
    """Objects of each image of a batch, strongest first, in pixels of the originals.

    What passes its class's threshold is suppressed again at `nms_iou` (per class unless `agnostic`), which matters where that is
    less than the model's own. Boxes are cut at the border of the original; what lies wholly outside goes. The model has chosen
    among the classes of a position, so `multi_label` has nothing left to choose.

    Raises:
        ModelError: an output is missing, has another shape than the others, or holds NaN.
    """
    boxes, scores, labels = (finite_output(outputs, name, card) for name in ("boxes", "scores", "labels"))
    extra = {"instance": "masks", "keypoints": "heatmaps"}.get(card.task)
    maps = None if extra is None else finite_output(outputs, extra, card)
    _check(boxes, scores, labels, maps, len(frames), card)
    floors = np.array([options.class_scores.get(name, options.score) for name in card.class_names])
    found = []
    for image, frame in enumerate(frames):
        classes = labels[image].astype(np.int64)
        kept = np.flatnonzero((scores[image] > 0) & (scores[image] >= floors[classes]))
        inside = frame.boxes(boxes[image, kept].astype(np.float64))
        kept = kept[(inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])]
        values, strength = boxes[image, kept].astype(np.float64), scores[image, kept].astype(np.float64)
        order = nms(values, strength, options.nms_iou, None if options.agnostic else classes[kept])
        order = order[: options.most] if options.most else order
        chosen = None if maps is None else maps[image, kept[order]]
        found.append(_finish(values[order], classes[kept[order]], strength[order], chosen, frame, card, options))
    return found


def _check(
    boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], maps: NDArray[Any] | None, batch: int, card: ModelCard
) -> None:
    rows = scores.shape
    if scores.ndim != 2 or len(scores) != batch:
        raise ModelError(f"'scores' has shape {list(rows)}, expected [{batch}, D]", where=card.name)
    if boxes.shape != (*rows, 4) or labels.shape != rows:
        raise ModelError(
            f"'boxes' {list(boxes.shape)} and 'labels' {list(labels.shape)} do not fit 'scores' {list(rows)}", where=card.name
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < len(card.categories):
        raise ModelError(f"labels reach from {labels.min()} to {labels.max()}, the classes are {len(card.categories)}")
    if maps is not None:
        lead = (*rows, len(card.categories[0].keypoints)) if card.task == "keypoints" else rows
        if maps.shape[:-2] != lead:
            raise ModelError(f"the maps have shape {list(maps.shape)}, expected {[*lead, 'm', 'm']}", where=card.name)


def _finish(
    boxes: Float,
    labels: Int,
    scores: Float,
    maps: NDArray[Any] | None,
    frame: Frame,
    card: ModelCard,
    options: DecodeOptions,
) -> Instances:
    found = Instances(labels=labels, boxes=frame.boxes(boxes), scores=scores)
    if maps is None:
        return found
    if card.task == "keypoints":
        points, _ = heatmap_points(maps, boxes)
        scores = point_scores(maps, boxes, points)
        found.keypoints = np.concatenate([frame.points(points), scores[..., None]], axis=2)
    else:
        whole = frame.boxes(boxes, clip=False)
        chances = np.exp(-np.logaddexp(0.0, -maps.astype(np.float64)))
        size = (frame.width, frame.height)
        found.masks = tuple(mask_crop(*pair, *size, options.mask) for pair in zip(chances, whole, strict=True))
    return found


def mask_crop(chances: Float, box: Float, width: int, height: int, threshold: float) -> MaskCrop:
    """Pixels of an image of `width` x `height` with their centre in `box` [4] and an interpolated chance of at least `threshold`.

    `chances` [m, m] are spread over the box as the module says. The crop is that of the box, 0 x 0 where it holds no centre.
    """
    x1, y1, x2, y2 = box
    left, right = max(math.ceil(x1 - 0.5), 0), min(math.ceil(x2 - 0.5), width)
    top, bottom = max(math.ceil(y1 - 0.5), 0), min(math.ceil(y2 - 0.5), height)
    if right <= left or bottom <= top:
        return MaskCrop(0, 0, np.zeros((0, 0), dtype=np.bool_))
    rows, columns = chances.shape
    across = _linear((np.arange(left, right) + 0.5 - x1) / (x2 - x1) * columns - 0.5, columns)
    down = _linear((np.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * rows - 0.5, rows)
    return MaskCrop(left, top, down @ chances @ across.T >= threshold)


def _linear(positions: Float, count: int) -> Float:
    """[N, count] weights of bilinear interpolation along one axis, in units of cells; beyond the cells lies zero."""
    weights: Float = np.clip(1 - np.abs(positions[:, None] - np.arange(count)), 0, None)
    return weights


def heatmap_points(heatmaps: NDArray[Any], boxes: Float) -> tuple[Float, Float]:
    """Heatmaps [N, K, m, m] over boxes [N, 4] -> points [N, K, 2] in the frame of the boxes, and the maps' heights [N, K] there.

    The rule of the published models: a map is enlarged to the whole pixels that cover its box (bicubic, edge cells repeated), the
    highest pixel is taken, and its centre is scaled back to the box. Boxes count as at least a pixel wide and high.
    """
    count, points = heatmaps.shape[:2]
    places, heights = np.zeros((count, points, 2)), np.zeros((count, points))
    for number, (maps, box) in enumerate(zip(heatmaps, boxes, strict=True)):
        size = np.maximum(box[2:] - box[:2], 1)
        columns, rows = (math.ceil(side) for side in size)
        across, down = _cubic(columns, maps.shape[2]), _cubic(rows, maps.shape[1])
        for point, values in enumerate(maps.astype(np.float64)):
            large = down @ values @ across.T
            y, x = np.unravel_index(int(large.argmax()), large.shape)
            places[number, point] = box[:2] + (np.array([x, y]) + 0.5) * size / (columns, rows)
            heights[number, point] = large[y, x]
    return places, heights


def _cubic(length: int, count: int) -> Float:
    """[length, count] weights that resample `count` cells to `length` by cubic convolution, the edge cells repeated."""
    position = (np.arange(length) + 0.5) * count / length - 0.5
    first = np.floor(position).astype(np.int64)
    weights = np.zeros((length, count))
    for offset in (-1, 0, 1, 2):
        x = np.abs(position - first - offset)
        near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
        far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
        np.add.at(weights, (np.arange(length), np.clip(first + offset, 0, count - 1)), np.where(x <= 1, near, far))
    return weights


def point_scores(heatmaps: NDArray[Any], boxes: Float, points: Float) -> Float:
    """Heatmaps [N, K, m, m] over boxes [N, 4] and the points [N, K, 2] read from them -> how sure each is [N, K], 0 to 1.

    Of the map's softmax over all cells, by which it was learnt, the share in cells whose centre is within a tenth of the box's
    width and height of the point: the probability that a person would have put it there. The largest probability of a cell would
    not tell: the network's last step enlarges bilinearly by two, so that a lone peak spreads over four cells of a quarter each,
    and labels scatter by some cells more. A tenth is 2 sigma of OKS for points that have no sigma of their own, 0.05.
    """
    rows, columns = heatmaps.shape[2:]
    place = (points - boxes[:, None, :2]) / np.maximum(boxes[:, None, 2:] - boxes[:, None, :2], 1)  # [N, K, 2], shares of the box
    values = heatmaps.astype(np.float64)
    chances = np.exp(values - values.max(axis=(2, 3), keepdims=True))
    near = _near(place[..., None, 1:], rows) @ chances @ _near(place[..., :1], columns)[..., None]  # [N, K, 1, 1]
    scores: Float = near[..., 0, 0] / chances.sum(axis=(2, 3))
    return scores


def _near(place: Float, cells: int) -> Float:
    """[..., 1] -> [..., cells], 1 for cells whose centre is near."""
    result: Float = (np.abs((np.arange(cells) + 0.5) / cells - place) <= _NEAR).astype(np.float64)
    return result
