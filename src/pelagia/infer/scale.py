"""The scale at which a model learnt, as prediction on large images needs it; training stores it in the card's manifest."""

from __future__ import annotations

from typing import Any

import numpy as np

from pelagia.data.dataset import Dataset

__all__ = ["training_scale"]

#: The typical object for the overlap of tiles: nine of ten are not longer.
_TYPICAL = 0.9


def training_scale(dataset: Dataset, *, windows: bool = False) -> dict[str, Any]:
    """`image_size`: median width and height of the images; `object_px`: the length that nine of ten objects do not exceed.

    A model that learnt on `windows` of images at full resolution has no `image_size` but `full_resolution`: its scale is one
    pixel of the image to one of the input, whatever the size of the image.

    Both in pixels of the original images; a value that the data do not tell is left out.
    """
    facts: dict[str, Any] = {}
    sizes = dataset.sizes[(dataset.sizes > 0).all(axis=1)]
    if windows:
        facts["full_resolution"] = True
    elif len(sizes):
        facts["image_size"] = [round(float(value)) for value in np.median(sizes, axis=0)]
    flat = dataset.annotations
    counted = ~(flat.crowd | flat.ignore)
    boxes = flat.boxes[counted]
    if len(boxes):
        facts["object_px"] = round(float(np.quantile((boxes[:, 2:] - boxes[:, :2]).max(axis=1), _TYPICAL)), 1)
    return facts
