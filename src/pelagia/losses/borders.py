"""The weight map that keeps touching objects apart (Ronneberger et al., "U-Net", MICCAI 2015, arXiv:1505.04597, eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from pelagia.core.lazy import resolve
from pelagia.core.types import IGNORE_INDEX, Int

__all__ = ["border_weights", "components"]

#: Objects farther than so many sigma add less than exp(-8) to the weight.
_REACH = 4.0


def border_weights(ids: Int, *, weight: float = 10.0, sigma: float = 5.0) -> NDArray[np.float32]:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) on the ground between objects, 0 on the objects: what eq. 2 adds to the class weight.

    Args:
        ids: [H, W], number of the object at each pixel, 0 for the ground, below 0 for neither.
        weight: w0.
        sigma: in pixels.

    d1 and d2 are the distances from the centre of the pixel to the nearest pixels of the nearest and the second nearest object;
    the term is 0 where these are not within 4 sigma.
    """
    height, width = ids.shape
    nearest = np.full((2, height, width), np.inf, dtype=np.float32)
    reach = math.ceil(_REACH * sigma)
    ids = np.maximum(ids, 0)
    windows: Sequence[tuple[slice, ...] | None] = _ndimage().find_objects(ids)
    for number, window in enumerate(windows, start=1):
        if window is None:
            continue
        # Distances are needed near the object only: a crowded image costs the sum of its windows, not objects times pixels.
        rows, columns = (
            slice(max(part.start - reach, 0), min(part.stop + reach, length))
            for part, length in zip(window, ids.shape, strict=True)
        )
        distance = _ndimage().distance_transform_edt(ids[rows, columns] != number).astype(np.float32)
        first, second = nearest[:, rows, columns]
        nearest[1, rows, columns] = np.minimum(second, np.maximum(first, distance))
        nearest[0, rows, columns] = np.minimum(first, distance)
    both = nearest[0] + nearest[1]
    found = weight * np.exp(-(both**2) / np.float32(2 * sigma**2))
    found[(ids > 0) | (nearest[1] > reach)] = 0
    return np.asarray(found, dtype=np.float32)


def components(labels: Int, ground: int = 0) -> Int:
    """[H, W] labels -> numbers of objects: the components (4 neighbours) of each class but `ground`; -1 where ignored."""
    ids = np.where(labels == IGNORE_INDEX, -1, 0)
    for label in np.unique(labels[(labels != ground) & (labels != IGNORE_INDEX)]).tolist():
        parts, _ = _ndimage().label(labels == label)
        ids = np.where(parts > 0, parts + max(int(ids.max()), 0), ids)
    return ids


def _ndimage() -> ModuleType:
    """Loaded late: who predicts class maps does not wait for it."""
    return resolve("scipy.ndimage", purpose="weigh the ground between objects")
