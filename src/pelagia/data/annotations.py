"""The objects of a data set in flat arrays: M objects over N images, without one Python object per image or object.

Flat arrays open fast, travel to worker processes cheaply, and are what a fast evaluation wants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.types import Float, Instances, Int, Mask, MaskCrop

__all__ = ["AnnotationBuilder", "Annotations", "Columns", "Shapes", "build_shapes", "ranges"]

_Scalar = TypeVar("_Scalar", bound=np.generic)


def ranges(starts: Int, chosen: Int) -> Int:
    """The concatenation of arange(starts[i], starts[i + 1]) over i in `chosen`."""
    lengths: Int = starts[chosen + 1] - starts[chosen]
    ends: Int = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    shifts: Int = np.repeat(starts[chosen] - (ends - lengths), lengths)
    return np.arange(total, dtype=np.int64) + shifts


def _offsets(lengths: Sequence[int] | Int) -> Int:
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
            ring_starts=_locked(_offsets(np.diff(self.ring_starts)[rings])),
            object_rings=_locked(_offsets(np.diff(self.object_rings)[chosen])),
            counts=_locked(self.counts[ranges(self.count_starts, chosen)]),
            count_starts=_locked(_offsets(np.diff(self.count_starts)[chosen])),
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
        return self._take(ranges(self.starts, chosen), _offsets(np.diff(self.starts)[chosen]))

    def select(self, keep: Mask) -> Annotations:
        """The objects where `keep` [M] is true; the images stay."""
        counts = np.bincount(self.images[keep], minlength=len(self.starts) - 1)
        return self._take(np.flatnonzero(keep), _offsets(counts))

    def _take(self, rows: Int, starts: Int) -> Annotations:
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


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """M objects of a source in columns, in any order of images; no class to ignore, no keypoints, no oriented boxes.

    Args:
        image, label, ids: [M].
        boxes: [M, 4] x1, y1, x2, y2.
        extents: [M, 2] width and height as stated.
        areas: [M] square pixels as stated.
        crowd: [M].
        rings: row -> its polygon rings.
        runs: row -> its run lengths.
    """

    image: Int
    label: Int
    ids: Int
    boxes: Float
    extents: Float
    areas: Float
    crowd: Mask
    rings: Mapping[int, list[Float]]
    runs: Mapping[int, NDArray[np.uint32]]


@dataclass(slots=True)
class AnnotationBuilder:
    """Collects objects in any order of images and makes `Annotations` of them."""

    _images: list[int] = field(default_factory=list)
    _labels: list[int] = field(default_factory=list)
    _boxes: list[Sequence[float]] = field(default_factory=list)
    _oriented: dict[int, Sequence[float]] = field(default_factory=dict)
    _areas: dict[int, float] = field(default_factory=dict)
    _flags: dict[str, set[int]] = field(default_factory=lambda: {"crowd": set(), "difficult": set(), "ignore": set()})
    _ids: list[int] = field(default_factory=list)
    _ignored_as: dict[int, int] = field(default_factory=dict)
    _keypoints: dict[int, Float] = field(default_factory=dict)
    _extents: dict[int, Sequence[float]] = field(default_factory=dict)
    _rings: dict[int, list[Float]] = field(default_factory=dict)
    _runs: dict[int, NDArray[np.uint32]] = field(default_factory=dict)

    _columns: Columns | None = None

    def __len__(self) -> int:
        return len(self._labels) if self._columns is None else len(self._columns.label)

    def add(self, image: int, label: int, box: Sequence[float] | Float, *, id: int | None = None, **optional: Any) -> int:
        """Add an object of class `label` to image `image`; returns its row.

        `optional` may hold `oriented` (5 numbers), `area`, `extent` (width, height), `crowd`, `difficult`, `ignore`,
        `ignored_as`, `keypoints` [K, 3], `rings` (a list of [P, 2]) and `runs` (uint32 run lengths); None and False mean absent.
        `id` defaults to the row plus 1.
        """
        self._spill()
        row = len(self._labels)
        self._images.append(image)
        self._labels.append(label)
        self._boxes.append([float(value) for value in box])
        self._ids.append(row + 1 if id is None else id)
        for name in ("crowd", "difficult", "ignore"):
            if optional.pop(name, False):
                self._flags[name].add(row)
        stores: dict[str, dict[int, Any]] = {
            "oriented": self._oriented,
            "area": self._areas,
            "ignored_as": self._ignored_as,
            "keypoints": self._keypoints,
            "extent": self._extents,
            "rings": self._rings,
            "runs": self._runs,
        }
        for name, value in optional.items():
            if value is not None:
                stores[name][row] = value
        if row in self._ignored_as:
            self._flags["ignore"].add(row)
        return row

    def extend(self, columns: Columns) -> None:
        """Add many objects at once."""
        if self._labels or self._columns is not None:
            self._spill()
            self._take_columns(columns)
        else:
            self._columns = columns

    def _spill(self) -> None:
        """Columns that wait to be used as they are become rows like all others."""
        if self._columns is not None:
            columns, self._columns = self._columns, None
            self._take_columns(columns)

    def _take_columns(self, columns: Columns) -> None:
        first = len(self._labels)
        self._images += columns.image.tolist()
        self._labels += columns.label.tolist()
        self._boxes += columns.boxes.tolist()
        self._extents.update(enumerate(columns.extents.tolist(), start=first))
        self._ids += columns.ids.tolist()
        self._areas.update(enumerate(columns.areas.tolist(), start=first))
        self._flags["crowd"].update((first + np.flatnonzero(columns.crowd)).tolist())
        self._rings.update((first + row, value) for row, value in columns.rings.items())
        self._runs.update((first + row, value) for row, value in columns.runs.items())

    def add_instances(self, image: int, found: Instances, width: int, height: int) -> None:
        """Add the objects of an `Instances` to image `image` of that size; masks are stored as runs."""
        boxes = found.box_array
        for row in range(len(found)):
            runs = None
            if found.masks is not None:
                runs = core_masks.crop_to_rle(found.masks[row], height, width).counts
            self.add(
                image,
                int(found.labels[row]),
                boxes[row],
                oriented=None if found.oriented is None else found.oriented[row],
                area=None if found.areas is None else float(found.areas[row]),
                crowd=bool(found.crowd[row]),
                difficult=bool(found.difficult[row]),
                ignore=bool(found.ignore[row]),
                keypoints=None if found.keypoints is None else found.keypoints[row],
                runs=runs,
            )

    def build(self, images: int) -> Annotations:
        """The annotations of `images` images; within an image the order of addition stays."""
        if self._columns is not None:
            return self._build_columns(images)
        count = len(self._labels)
        image = np.asarray(self._images, dtype=np.int64).reshape(-1)
        order = np.argsort(image, kind="stable")
        boxes = np.asarray(self._boxes, dtype=np.float64).reshape(-1, 4)
        areas = self._column(self._areas, np.nan, ())
        if areas is not None:
            extent = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            areas = np.where(np.isnan(areas), extent, areas)
        flags = {name: np.zeros(count, dtype=np.bool_) for name in self._flags}
        for name, rows in self._flags.items():
            flags[name][sorted(rows)] = True
        ignored_as = np.full(count, -1, dtype=np.int64)
        for row, value in self._ignored_as.items():
            ignored_as[row] = value
        points = max((len(value) for value in self._keypoints.values()), default=0)
        keypoints = self._keypoint_column(points)
        unsorted = Annotations(
            starts=_offsets(np.bincount(image, minlength=images)),
            labels=np.asarray(self._labels, dtype=np.int64).reshape(-1),
            boxes=boxes,
            oriented=self._oriented_column(boxes),
            areas=areas,
            ids=np.asarray(self._ids, dtype=np.int64).reshape(-1),
            ignored_as=ignored_as,
            keypoints=keypoints,
            shapes=build_shapes(self._rings, self._runs, count),
            extents=self._extent_column(boxes),
            **flags,
        )
        return unsorted._take(order, unsorted.starts)

    def _build_columns(self, images: int) -> Annotations:
        """What `build` gives for objects that all came through one `extend`."""
        assert self._columns is not None
        columns = self._columns
        count = len(columns.label)
        none = np.zeros(count, dtype=np.bool_)
        unsorted = Annotations(
            starts=_offsets(np.bincount(columns.image, minlength=images)),
            labels=columns.label,
            boxes=columns.boxes,
            oriented=None,
            areas=columns.areas,
            crowd=columns.crowd,
            difficult=none,
            ignore=none,
            ids=columns.ids,
            ignored_as=np.full(count, -1, dtype=np.int64),
            shapes=build_shapes(columns.rings, columns.runs, count),
            extents=columns.extents,
        )
        return unsorted._take(np.argsort(columns.image, kind="stable"), unsorted.starts)

    def _column(self, values: dict[int, Any], fill: float, shape: tuple[int, ...]) -> Float | None:
        if not values:
            return None
        column = np.full((len(self._labels), *shape), fill, dtype=np.float64)
        for row, value in values.items():
            column[row] = value
        return column

    def _oriented_column(self, boxes: Float) -> Float | None:
        """The given oriented boxes; an object without one has the least rectangle around its rings, or its box."""
        column = self._column(self._oriented, np.nan, (5,))
        if column is None:
            return None
        missing = np.flatnonzero(np.isnan(column[:, 0]))
        x1, y1, x2, y2 = boxes[missing].T
        upright = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, np.zeros(len(missing))], axis=1)
        column[missing] = upright
        for row in missing.tolist():
            if row in self._rings:
                column[row] = core_oriented.from_points(np.concatenate(self._rings[row]))
        return core_oriented.canonical(column)

    def _extent_column(self, boxes: Float) -> Float | None:
        column = self._column(self._extents, np.nan, (2,))
        return None if column is None else np.where(np.isnan(column), boxes[:, 2:] - boxes[:, :2], column)

    def _keypoint_column(self, points: int) -> Float | None:
        if not self._keypoints:
            return None
        column = np.zeros((len(self._labels), points, 3))
        for row, value in self._keypoints.items():
            column[row, : len(value)] = value
        return column


def build_shapes(rings: Mapping[int, list[Float]], runs: Mapping[int, NDArray[np.uint32]], count: int) -> Shapes | None:
    """The outlines of `count` objects from those that have one."""
    if not rings and not runs:
        return None
    points = [ring for row in sorted(rings) for ring in rings[row]]
    counts = [runs[row] for row in sorted(runs)]
    return Shapes(
        points=np.concatenate(points).astype(np.float64) if points else np.zeros((0, 2)),
        ring_starts=_offsets([len(ring) for ring in points]),
        object_rings=_offsets([len(rings.get(row, ())) for row in range(count)]),
        counts=np.concatenate(counts).astype(np.uint32) if counts else np.zeros(0, dtype=np.uint32),
        count_starts=_offsets([len(runs.get(row, ())) for row in range(count)]),
    )
