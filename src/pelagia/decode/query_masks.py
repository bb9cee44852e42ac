"""Decoding of networks that predict a set of masks with classes: Cheng et al., "Masked-attention Mask Transformer for Universal
Image Segmentation", CVPR 2022, arXiv:2112.01527; the rules of merging are those of "MaskFormer", NeurIPS 2021, arXiv:2107.06278,
section 3.4.

Raw outputs:

    logits  [B, Q, C + 1]   of the classes, the last of "no object"
    masks   [B, Q, h, w]    logit of each cell of a grid over the input: part of the query's mask or not

Logits of masks are resampled once, bilinearly, from the grid to the pixels of the original, continued beyond the outermost cells.
Only queries that pass their threshold are, one by one within their own window (`instance`) or in bands of rows (`panoptic`), so
that an original of any size needs no more than a few of its planes. For `semantic` the queries are summed on the grid, and the C
sums are resampled instead, plane after plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.masks import bounds, crop_from_bitmap
from pelagia.core.types import Float, Instances, Int, MaskCrop, PanopticMap, Prediction, Segment, SemanticMap
from pelagia.decode.options import DecodeOptions
from pelagia.decode.outputs import finite_output
from pelagia.decode.resample import bilinear
from pelagia.errors import ModelError

__all__ = ["KEPT_SHARE", "decode_masks"]

#: A segment of which the others leave less than this share goes (MaskFormer, section 3.4).
KEPT_SHARE = 0.8
#: Values that a band of rows holds over all queries.
_BAND = 4_000_000


def decode_masks(
    outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
) -> list[Prediction]:
    """What the card's task asks for, for each image of a batch, in pixels of the originals; p are softmax probabilities.

    `semantic`: the class c with the largest sum over queries of p(c) sigmoid(mask), the lower of equal ones. With
    `options.scores` also the share of each class in the sums.

    `instance`: a query is an object of its best class (of every class with `multi_label`, at most Q pairs of query and class, the
    most probable); its pixels are those of at least `options.mask`, its score is p(c) times their mean probability, its box is
    tight around them. Strongest first.

    `panoptic`: queries whose best class, "no object" included, passes that class's threshold. A pixel goes to the query with the
    largest p(c) sigmoid(mask), if sigmoid(mask) is at least `options.mask` there. A query that gets less than 0.8 of what its
    mask covers goes, and its pixels stay void. Queries of one stuff class are one segment. Strongest first.

    Raises:
        ModelError: an output is missing, has another shape than the card asks for, or holds NaN.
    """
    logits, masks = _checked(outputs, len(frames), card)
    thresholds = np.array([options.class_scores.get(name, options.score) for name in card.class_names])
    found: list[Prediction] = []
    for scores, grid, frame in zip(logits, masks, frames, strict=True):
        places = _places(frame, card, grid.shape[1:])
        chances = _softmax(scores)
        if card.task == "semantic":
            found.append(_semantic(chances, grid, places, options))
        elif card.task == "instance":
            found.append(_instances(chances, grid, places, thresholds, options))
        else:
            found.append(_panoptic(chances, grid, places, thresholds, (card, options)))
    return found


def _checked(outputs: Mapping[str, NDArray[Any]], batch: int, card: ModelCard) -> tuple[NDArray[Any], NDArray[Any]]:
    logits, masks = (finite_output(outputs, name, card) for name in ("logits", "masks"))
    classes = len(card.categories)
    if logits.ndim != 3 or logits.shape[::2] != (batch, classes + 1):
        raise ModelError(f"'logits' has shape {list(logits.shape)}, expected [{batch}, Q, {classes + 1}]", where=card.name)
    if masks.ndim != 4 or masks.shape[:2] != logits.shape[:2] or 0 in masks.shape[2:]:
        raise ModelError(f"'masks' has shape {list(masks.shape)}, expected [{batch}, {logits.shape[1]}, h, w]", where=card.name)
    return logits, masks


def _places(frame: Frame, card: ModelCard, size: tuple[int, ...]) -> tuple[Float, Float]:
    """Rows [H] and columns [W] of the grid at the centres of the original's pixels, 0 at the centre of the first cell."""
    back = frame.inverse  # frames have no rotation
    rows = ((np.arange(frame.height) + 0.5) * back[1, 1] + back[1, 2]) * size[0] / card.input_size[0] - 0.5
    columns = ((np.arange(frame.width) + 0.5) * back[0, 0] + back[0, 2]) * size[1] / card.input_size[1] - 0.5
    return rows, columns


def _softmax(logits: NDArray[Any]) -> Float:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    chances: Float = powers / powers.sum(axis=-1, keepdims=True)
    return chances


def _sigmoid(logits: NDArray[Any]) -> NDArray[np.float32]:
    # exp(-log(1 + exp(-x))) never overflows.
    return np.asarray(np.exp(-np.logaddexp(np.float32(0), -logits.astype(np.float32, copy=False))))


def _semantic(chances: Float, grid: NDArray[Any], places: tuple[Float, Float], options: DecodeOptions) -> SemanticMap:
    classes = chances.shape[1] - 1
    # Query after query: all of their probabilities at once would be a second copy of the network's output.
    sums = np.zeros((classes, *grid.shape[1:]), dtype=np.float32)
    for chance, plane in zip(chances[:, :-1].astype(np.float32), grid, strict=True):
        sums += chance[:, None, None] * _sigmoid(plane)
    best = bilinear(sums[0], *places)
    labels = np.zeros(best.shape, dtype=np.uint8)
    for label in range(1, classes):
        plane = bilinear(sums[label], *places)
        labels[plane > best] = label
        np.maximum(best, plane, out=best)
    if not options.scores:
        return SemanticMap(labels)
    planes = np.stack([bilinear(plane, *places) for plane in sums])  # [C, H, W]
    return SemanticMap(labels, planes / np.maximum(planes.sum(axis=0), np.finfo(np.float32).tiny))


def _instances(
    chances: Float, grid: NDArray[Any], places: tuple[Float, Float], thresholds: Float, options: DecodeOptions
) -> Instances:
    real = chances[:, :-1]  # [Q, C]
    possible = real >= thresholds  # a mean probability of pixels is at most 1
    if not options.multi_label:
        possible &= np.arange(real.shape[1]) == real.argmax(axis=1)[:, None]
    queries, labels = np.nonzero(possible)
    order = np.argsort(-real[queries, labels], kind="stable")[: len(chances)]
    queries, labels = queries[order], labels[order]
    drawn = {int(query): _crop(grid[query], places, options.mask) for query in np.unique(queries)}
    scores = real[queries, labels] * np.array([drawn[int(query)][1] for query in queries])
    kept = np.flatnonzero((scores >= thresholds[labels]) & np.array([drawn[int(q)][0].area > 0 for q in queries], dtype=np.bool_))
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    kept = kept[: options.most] if options.most else kept
    crops = tuple(drawn[int(query)][0] for query in queries[kept])
    boxes = np.array([bounds(crop) for crop in crops]).reshape(-1, 4)
    return Instances(labels=labels[kept].astype(np.int64), boxes=boxes, scores=scores[kept], masks=crops)


def _crop(plane: NDArray[Any], places: tuple[Float, Float], mask: float) -> tuple[MaskCrop, float]:
    """The pixels of at least probability `mask` of one query, and their mean probability; 0 x 0 and 0 where there is none."""
    with np.errstate(divide="ignore"):
        limit = np.log(mask) - np.log1p(-mask)
    inside = plane >= limit
    windows = []
    for position, cells in zip(places, (inside.any(axis=1), inside.any(axis=0)), strict=True):
        used = np.flatnonzero(cells)
        if not len(used):
            return MaskCrop(0, 0, np.zeros((0, 0), dtype=np.bool_)), 0.0
        # Between a cell inside and its neighbours outside the limit is crossed; beyond the grid its border goes on.
        low = 0 if used[0] == 0 else int(np.searchsorted(position, used[0] - 1))
        high = len(position) if used[-1] == len(cells) - 1 else int(np.searchsorted(position, used[-1] + 1))
        windows.append(slice(low, max(high, low)))
    values = bilinear(plane, places[0][windows[0]], places[1][windows[1]])
    bitmap = values >= limit
    tight = crop_from_bitmap(bitmap)
    score = float(_sigmoid(values[bitmap]).mean(dtype=np.float64)) if tight.area else 0.0
    return MaskCrop(tight.x + windows[1].start, tight.y + windows[0].start, tight.bitmap), score


def _panoptic(
    chances: Float,
    grid: NDArray[Any],
    places: tuple[Float, Float],
    thresholds: Float,
    how: tuple[ModelCard, DecodeOptions],
) -> PanopticMap:
    card, options = how
    labels = chances.argmax(axis=1)
    scores = chances[np.arange(len(labels)), labels]
    limits = np.append(thresholds, np.inf)  # "no object" is never kept
    kept = np.flatnonzero(scores >= limits[labels])
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    kept = kept[: options.most] if options.most else kept
    labels, scores = labels[kept], scores[kept]
    owner, won, covered = _compete(grid[kept], scores, places, options.mask)
    left = np.bincount(owner[owner >= 0], minlength=len(kept))
    lasting = (left > 0) & (won >= KEPT_SHARE * covered)
    ids = np.zeros(len(kept) + 1, dtype=np.int32)  # the last for pixels without owner
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    for row in np.flatnonzero(lasting):
        label = int(labels[row])
        if label in stuff:
            ids[row] = stuff[label]
            continue
        ids[row] = len(segments) + 1
        segments.append(Segment(int(ids[row]), label, float(scores[row])))
        if not card.categories[label].is_thing:
            stuff[label] = int(ids[row])
    return PanopticMap(ids[owner], tuple(segments))


def _compete(grid: NDArray[Any], scores: Float, places: tuple[Float, Float], mask: float) -> tuple[NDArray[np.int16], Int, Int]:
    """Which of K queries owns each pixel [H, W], -1 where none; how many pixels each wins, and how many its mask covers [K].

    The largest weighted probability wins a pixel, and owns it where its mask covers it (is at least `mask`).
    """
    count, (rows, columns) = len(grid), places
    owner = np.full((len(rows), len(columns)), -1, dtype=np.int16)
    won, covered = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    if not count:
        return owner, won, covered
    step = max(_BAND // (count * max(len(columns), 1)), 1)
    for start in range(0, len(rows), step):
        band = np.stack([bilinear(plane, rows[start : start + step], columns) for plane in grid])  # [K, step, W]
        chance = _sigmoid(band)
        covers = chance >= mask
        covered += np.count_nonzero(covers, axis=(1, 2))
        best = (chance * scores[:, None, None].astype(np.float32)).argmax(axis=0)
        won += np.bincount(best.ravel(), minlength=count)
        sure = np.take_along_axis(covers, best[None], axis=0)[0]
        owner[start : start + step] = np.where(sure, best, -1)
    return owner, won, covered
