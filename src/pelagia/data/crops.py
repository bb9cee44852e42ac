"""Windows at full resolution, at random or around rare classes.

A network for pixels learns more from a window of a large image than from the whole of it made small. Where a class covers a
thousandth of the pixels, windows at random hardly ever hold it.
"""

from __future__ import annotations

import numpy as np

from pelagia.core.types import IGNORE_INDEX, Float, Int
from pelagia.data.sample import Sample

__all__ = ["crop_placement", "rare_point"]


def crop_placement(size: tuple[int, int], canvas: tuple[int, int], rng: np.random.Generator, point: Float | None = None) -> Float:
    """[2, 3], an image of `size` (width, height) shifted by whole pixels so that `canvas` (width, height) shows a part of it.

    The window lies anywhere inside the image with equal probability, or with `point` [2] (x, y of the image) in its middle as
    nearly as the image's border allows. A side on which the image is smaller than the canvas holds all of it, anywhere.
    """
    shift = np.zeros(2)
    for axis in range(2):
        room = size[axis] - canvas[axis]
        drawn = int(rng.integers(abs(room) + 1))
        if room > 0 and point is not None:
            drawn = int(np.clip(np.rint(point[axis] - canvas[axis] / 2), 0, room))
        shift[axis] = -drawn if room > 0 else drawn
    return np.array([[1.0, 0.0, shift[0]], [0.0, 1.0, shift[1]]])


def rare_point(sample: Sample, frequencies: Float, rng: np.random.Generator) -> Float | None:
    """[2], a point on a class of the sample, drawn with probability proportional to 1 / its frequency in the data set; None if
    it holds none.

    The point is the middle of a pixel of that class, all alike, where there is a class map; else one of the mask, or the middle
    of the box, of an object of that class, all objects alike.
    """
    if sample.semantic is not None:
        labels = sample.semantic.labels
        present = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=IGNORE_INDEX + 1))
        present = present[(present != IGNORE_INDEX) & (present < len(frequencies))]
        if not len(present):
            return None
        pixels = np.flatnonzero(labels.reshape(-1) == _draw(present, frequencies, rng))
        row, column = divmod(int(pixels[rng.integers(len(pixels))]), labels.shape[1])
        return np.array([column + 0.5, row + 0.5])
    truth = sample.truth
    usable = np.flatnonzero(~(truth.crowd | truth.ignore))
    if not len(usable):
        return None
    label = _draw(np.unique(truth.labels[usable]), frequencies, rng)
    rows = usable[truth.labels[usable] == label]
    row = int(rows[rng.integers(len(rows))])
    if truth.masks is not None and truth.masks[row].area:
        crop = truth.masks[row]
        ys, xs = np.nonzero(crop.bitmap)
        chosen = int(rng.integers(len(ys)))
        return np.array([crop.x + xs[chosen] + 0.5, crop.y + ys[chosen] + 0.5])
    x1, y1, x2, y2 = truth.box_array[row]
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2])


def _draw(labels: Int, frequencies: Float, rng: np.random.Generator) -> int:
    """One of `labels`. A class that was not counted (a background that is no object) is taken for the commonest."""
    shares = frequencies[labels]
    weights = 1 / np.where(shares > 0, shares, 1.0)
    return int(rng.choice(labels, p=weights / weights.sum()))
