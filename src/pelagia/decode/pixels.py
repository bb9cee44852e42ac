"""Decoding of networks that label every pixel: a map of classes, or objects cut out of it.

Raw output, K logits per cell of a grid that covers the input without the card's margin:

    logits  [B, K, h, w]  form softmax: K classes that exclude each other; binary: K = 1, the logit of class 1 of two;
                          sigmoid: K classes that each say yes or no

Logits are resampled once, from the network's grid to the pixels of the original, bilinearly, the outermost cells continued; then
each pixel takes its best class. The task `instance` has the ground as class 0 and category c as class c + 1 (form `sigmoid`: no
channel for the ground, which is where no class says yes), and divides what is one class into objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.lazy import resolve
from pelagia.core.types import Instances, Int, Mask, MaskCrop, SemanticMap
from pelagia.decode.options import DecodeOptions
from pelagia.decode.outputs import output
from pelagia.decode.resample import bilinear
from pelagia.errors import ModelError

__all__ = ["decode_pixels", "mean_logits", "resample", "shares", "watershed"]

#: Two parts of a component are two objects when the neck between them is narrower than this share of the slimmer part.
_NECK = 0.75
#: And narrower by so many pixels of half width, since the outline is ragged by about one.
_NECK_PX = 1.0


def decode_pixels(
    outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
) -> list[SemanticMap] | list[Instances]:
    """A `SemanticMap` for each image of a batch, or for the task `instance` its objects, strongest first.

    Of equal logits the lower class wins. `options.scores` adds the probabilities of the classes to a map. An object is a
    component of pixels of one class (4 neighbours), divided by `watershed` if the card's options say so; its score is the mean
    probability of its class over its pixels. Objects of fewer pixels than the card's option `min_area` are left out.

    Raises:
        ModelError: the output is missing, has another shape than the card asks for, or holds NaN.
    """
    logits = _checked(outputs, len(frames), card)
    if card.task == "semantic":
        return [_map(item, frame, card, options) for item, frame in zip(logits, frames, strict=True)]
    return [_objects(item, frame, card, options) for item, frame in zip(logits, frames, strict=True)]


def _checked(outputs: Mapping[str, NDArray[Any]], batch: int, card: ModelCard) -> NDArray[Any]:
    logits = output(outputs, "logits", card)
    count = len(card.categories) + (card.task == "instance" and _form(card) != "sigmoid")
    count = 1 if _form(card) == "binary" else count
    if logits.ndim != 4 or logits.shape[:2] != (batch, count) or 0 in logits.shape[2:]:
        raise ModelError(f"'logits' has shape {list(logits.shape)}, expected [{batch}, {count}, h, w]", where=card.name)
    if not np.isfinite(logits).all():
        raise ModelError("the network's logits hold NaN or infinity; its weights or its input are broken", where=card.name)
    return logits


def _form(card: ModelCard) -> str:
    return str(card.options.get("form", "softmax"))


def _map(logits: NDArray[Any], frame: Frame, card: ModelCard, options: DecodeOptions) -> SemanticMap:
    labels, best = _best(_planes(logits, frame, card), card)
    if not options.scores:
        return SemanticMap(labels)
    planes = np.stack(list(_planes(logits, frame, card)))  # [K, H, W]
    return SemanticMap(labels, _probabilities(planes, best, _form(card)))


def _planes(logits: NDArray[Any], frame: Frame, card: ModelCard) -> Iterator[NDArray[np.float32]]:
    """The logits of class after class in pixels of the original: all classes at once would not fit for a scan."""
    height, width = (side - 2 * card.margin for side in card.input_size)
    return (resample(plane, (height, width), card.margin, frame) for plane in logits)


def resample(plane: NDArray[Any], covered: tuple[int, int], margin: int, frame: Frame) -> NDArray[np.float32]:
    """Values [h, w] of cells that cover `covered` (height and width) pixels of the input from (`margin`, `margin`) on.

    -> [H, W] of the original, interpolated bilinearly between the centres of the cells, continued beyond the outermost.

    Frames have no rotation, so rows and columns are interpolated one after the other.
    """
    back = frame.inverse
    rows = ((np.arange(frame.height) + 0.5) * back[1, 1] + back[1, 2] - margin) * plane.shape[0] / covered[0] - 0.5
    columns = ((np.arange(frame.width) + 0.5) * back[0, 0] + back[0, 2] - margin) * plane.shape[1] / covered[1] - 0.5
    return bilinear(plane, rows, columns)


def _best(planes: Iterator[NDArray[np.float32]], card: ModelCard) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The label of each pixel and the logit that won."""
    best = next(planes)
    if _form(card) == "binary":
        return (best > 0).astype(np.uint8), best
    labels = np.zeros(best.shape, dtype=np.uint8)
    if _form(card) == "sigmoid" and card.task == "instance":
        # The ground is no channel; it is where no class says yes.
        planes, best = _chain(best, planes), np.zeros_like(best)
    for label, plane in enumerate(planes, start=1):
        better = plane > best
        labels[better] = label
        best = np.maximum(best, plane)
    return labels, best


def _chain(first: NDArray[np.float32], rest: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    yield first
    yield from rest


def _probabilities(planes: NDArray[np.float32], best: NDArray[np.float32], form: str) -> NDArray[np.float32]:
    """[K, H, W] logits -> the probability of every class."""
    if form == "softmax":
        powers = np.exp(planes - best)
        return np.asarray(powers / powers.sum(axis=0))
    yes = _sigmoid(planes)
    return np.concatenate([1 - yes, yes]) if form == "binary" else yes


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # exp(-log(1 + exp(-x))) never overflows.
    return np.asarray(np.exp(-np.logaddexp(np.float32(0), -logits)))


def shares(logits: NDArray[Any], card: ModelCard) -> NDArray[np.float32]:
    """[K, h, w] logits of an image -> [P, h, w] probabilities whose means over several answers `mean_logits` turns back: of the
    K classes (softmax), or of yes for each and then of no for each, whose rounding errors near 0 differ (binary, sigmoid).

    Raises:
        ModelError: a logit is NaN or infinite.
    """
    logits = np.asarray(logits, dtype=np.float32)
    if not np.isfinite(logits).all():
        raise ModelError("the network's logits hold NaN or infinity; its weights or its input are broken", where=card.name)
    if _form(card) == "softmax":
        return _probabilities(logits, logits.max(axis=0), "softmax")
    return np.concatenate([_sigmoid(logits), _sigmoid(-logits)])


def mean_logits(means: NDArray[np.float32], card: ModelCard) -> NDArray[np.float32]:
    """[P, h, w] means of `shares` -> [K, h, w] logits: log p, or log p - log(1 - p)."""
    logs = np.log(np.maximum(means, np.finfo(np.float32).tiny))
    if _form(card) == "softmax":
        return np.asarray(logs)
    yes, no = np.split(logs, 2)
    return np.asarray(yes - no)


def _objects(logits: NDArray[Any], frame: Frame, card: ModelCard, options: DecodeOptions) -> Instances:
    labels, best = _best(_planes(logits, frame, card), card)
    chance = _winning(logits, frame, card, best)
    crops: list[MaskCrop] = []
    found: list[tuple[int, float]] = []
    for label, name in enumerate(card.class_names):
        chosen = labels == label + 1
        ids = watershed(chosen) if card.options.get("separate") == "watershed" else _parts(chosen)
        areas = np.bincount(ids.ravel())
        scores = np.bincount(ids.ravel(), weights=chance.ravel()) / np.maximum(areas, 1)
        least, limit = max(int(card.options.get("min_area", 0)), 1), options.class_scores.get(name, options.score)
        for number, window in enumerate(_ndimage().find_objects(ids), start=1):
            if window is None or areas[number] < least or scores[number] < limit:
                continue
            crops.append(MaskCrop(window[1].start, window[0].start, ids[window] == number))
            found.append((label, min(float(scores[number]), 1.0)))
    boxes = np.array([(c.x, c.y, c.x + c.bitmap.shape[1], c.y + c.bitmap.shape[0]) for c in crops], dtype=np.float64)
    objects = Instances(
        labels=np.array([label for label, _ in found], dtype=np.int64),
        boxes=boxes.reshape(-1, 4),
        scores=np.array([score for _, score in found]),
        masks=tuple(crops),
    )
    order = np.argsort([-score for _, score in found], kind="stable").astype(np.int64)
    return objects.select(order[: options.most] if options.most else order)


def _winning(logits: NDArray[Any], frame: Frame, card: ModelCard, best: NDArray[np.float32]) -> NDArray[np.float32]:
    """[H, W], the probability of the class that won; class after class, so that two planes are all that is held."""
    if _form(card) != "softmax":
        return _sigmoid(best)
    total = np.zeros_like(best)
    for plane in _planes(logits, frame, card):
        total += np.exp(plane - best)
    return np.asarray(1 / total)


def _ndimage() -> ModuleType:
    """Loaded late: whoever predicts boxes does not wait for it."""
    return resolve("scipy.ndimage", purpose="find objects in a map of classes")


def _parts(chosen: Mask) -> Int:
    parts, _ = _ndimage().label(chosen)
    return np.asarray(parts, dtype=np.int64)


def watershed(chosen: Mask) -> Int:
    """[H, W] numbers from 1 of the objects in a mask, 0 outside: its components (4 neighbours), each divided at its necks.

    The distance to the nearest pixel outside is flooded from its peaks down (Beucher & Lantuejoul 1979). Two basins stay apart if
    the distance at their saddle is below 3/4 of the lower peak and at least one pixel less: ragged outlines make shallow basins.
    """
    if chosen.all():
        return np.ones(chosen.shape, dtype=np.int64)
    # Beyond the border of the image nothing is known, so it is no outline.
    distance = _ndimage().distance_transform_edt(chosen).astype(np.float32)
    order = np.flatnonzero(chosen)
    order = order[np.argsort(-distance.ravel()[order], kind="stable")]
    kernels = resolve("pelagia.decode.kernels", purpose="divide touching objects")
    basins = kernels.flood(distance, order, _NECK, _NECK_PX)
    # Basins join over corners; components do not.
    parts = _parts(chosen)
    _, ids = np.unique(np.where(chosen, basins * (parts.max() + 1) + parts, 0), return_inverse=True)
    return np.asarray(ids.reshape(chosen.shape), dtype=np.int64)
