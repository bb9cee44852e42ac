"""The objects of a data set in flat arrays: M objects over N images, without one Python object per image or object.

Flat arrays open fast, travel to worker processes cheaply, and are what a fast evaluation wants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.types import Float, Int, Mask, MaskCrop

__all__ = ["Annotations", "Shapes", "build_shapes", "ranges", "starts_of"]

_Scalar = TypeVar("_Scalar", bound=np.generic)


def ranges(starts: Int, chosen: Int) -> Int:
    """The concatenation of arange(starts[i], starts[i + 1]) over i in `chosen`."""
    lengths: Int = starts[chosen + 1] - starts[chosen]
    ends: Int = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    shifts: Int = np.repeat(starts[chosen] - (ends - lengths), lengths)
    return np.arange(total, dtype=np.int64) + shifts


def starts_of(lengths: Sequence[int] | Int) -> Int:
    """[n + 1], where each of n runs of those lengths starts when they stand one behind another, and where the last ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(np.asarray(lengths, dtype=np.int64), out=starts[1:])
    return starts


def _locked(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """The array, read-only: truth is shared by everything that holds the data set."""
    array.flags.writeable = False
    return array


@dataclass(frozen=True, slots=True, eq=False)
class Shapes:
    """The outlines of M objects, each as polygon rings, as run-length counts, or absent.

    Args:
        points: [P, 2], x, y of all rings.
        ring_starts: [R + 1], ring r is points[ring_starts[r]:ring_starts[r + 1]].
        object_rings: [M + 1], object m owns the rings object_rings[m]:object_rings[m + 1]; several rings are parts of one object.
        counts: [Q] uint32, run lengths over the whole image, column-major, beginning with background.
        count_starts: [M + 1], object m owns counts[count_starts[m]:count_starts[m + 1]].
    """

    points: Float
    ring_starts: Int
    object_rings: Int
    counts: NDArray[np.uint32]
    count_starts: Int

    def __len__(self) -> int:
        return len(self.object_rings) - 1

    @property
    def present(self) -> Mask:
        """[M], whether an object has an outline."""
        return (np.diff(self.object_rings) > 0) | (np.diff(self.count_starts) > 0)

    def rings(self, index: int) -> list[Float]:
        """The polygon rings [P, 2] of object `index`; empty if it is stored as runs or has no outline."""
        first, last = self.object_rings[index], self.object_rings[index + 1]
        return [self.points[self.ring_starts[r] : self.ring_starts[r + 1]].copy() for r in range(first, last)]

    def runs(self, index: int) -> NDArray[np.uint32]:
        """The run lengths of object `index`; empty if it is stored as polygons or has no outline."""
        return self.counts[self.count_starts[index] : self.count_starts[index + 1]].copy()

    def crop(self, index: int, width: int, height: int) -> MaskCrop | None:
        """The mask of object `index` in an image of that size, or None if it has no outline."""
        rings = self.rings(index)
        if rings:
            return core_masks.crop_from_polygon(rings, height, width)
        runs = self.runs(index)
        if len(runs):
            return core_masks.crop_from_rle(core_masks.RLE(height, width, runs))
        return None

    def select(self, chosen: Int) -> Shapes:
        """The outlines of the objects `chosen`, in that order."""
        rings = ranges(self.object_rings, chosen)
        return Shapes(
            points=_locked(self.points[ranges(self.ring_starts, rings)]),
            ring_starts=_locked(starts_of(np.diff(self.ring_starts)[rings])),
            object_rings=_locked(starts_of(np.diff(self.object_rings)[chosen])),
            counts=_locked(self.counts[ranges(self.count_starts, chosen)]),
            count_starts=_locked(starts_of(np.diff(self.count_starts)[chosen])),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """M objects over N images, ordered by image; all arrays are read-only.

    Args:
        starts: [N + 1], image i owns the objects starts[i]:starts[i + 1].
        labels: [M], class indices; 0 where `ignored_as` >= 0, since such an object has no class.
        boxes: [M, 4] x1, y1, x2, y2 in pixels of the original image.
        oriented: [M, 5] cx, cy, w, h, angle, or None.
        areas: [M] in square pixels as the source states them (derived where it does not), or None when no source states any.
        crowd, difficult, ignore: [M] flags as in `Instances`.
        ids: [M], the source's ids of the objects.
        ignored_as: [M], index into `Dataset.ignored`, the categories that mark regions to ignore; -1 for objects of a class.
        keypoints: [M, K, 3] x, y, v, or None.
        shapes: the outlines, or None.
        extents: [M, 2] width and height as the source states them, where it states boxes so: x2 - x1 may differ from the width
            in the last digit, and a score at the very edge of a threshold with it.
    """

    starts: Int
    labels: Int
    boxes: Float
    oriented: Float | None
    areas: Float | None
    crowd: Mask
    difficult: Mask
    ignore: Mask
    ids: Int
    ignored_as: Int
    keypoints: Float | None = None
    shapes: Shapes | None = None
    extents: Float | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Int:
        """[M], the image of each object."""
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int64), np.diff(self.starts))

    def select_images(self, chosen: Int) -> Annotations:
        """The objects of the images `chosen`, in that order."""
        return self.take(ranges(self.starts, chosen), starts_of(np.diff(self.starts)[chosen]))

    def select(self, keep: Mask) -> Annotations:
        """The objects where `keep` [M] is true; the images stay."""
        counts = np.bincount(self.images[keep], minlength=len(self.starts) - 1)
        return self.take(np.flatnonzero(keep), starts_of(counts))

    def take(self, rows: Int, starts: Int) -> Annotations:
        """The objects `rows`, in that order, where image i owns the new rows starts[i]:starts[i + 1]."""

        def pick(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
            return _locked(array[rows])

        return Annotations(
            starts=_locked(starts),
            labels=pick(self.labels),
            boxes=pick(self.boxes),
            oriented=None if self.oriented is None else pick(self.oriented),
            areas=None if self.areas is None else pick(self.areas),
            crowd=pick(self.crowd),
            difficult=pick(self.difficult),
            ignore=pick(self.ignore),
            ids=pick(self.ids),
            ignored_as=pick(self.ignored_as),
            keypoints=None if self.keypoints is None else pick(self.keypoints),
            shapes=None if self.shapes is None else self.shapes.select(rows),
            extents=None if self.extents is None else pick(self.extents),
        )


def build_shapes(rings: Mapping[int, list[Float]], runs: Mapping[int, NDArray[np.uint32]], count: int) -> Shapes | None:
    """The outlines of `count` objects from those that have one."""
    if not rings and not runs:
        return None
    points = [ring for row in sorted(rings) for ring in rings[row]]
    counts = [runs[row] for row in sorted(runs)]
    return Shapes(
        points=np.concatenate(points).astype(np.float64) if points else np.zeros((0, 2)),
        ring_starts=starts_of([len(ring) for ring in points]),
        object_rings=starts_of([len(rings.get(row, ())) for row in range(count)]),
        counts=np.concatenate(counts).astype(np.uint32) if counts else np.zeros(0, dtype=np.uint32),
        count_starts=starts_of([len(runs.get(row, ())) for row in range(count)]),
    )
