"""Collecting the objects of a source, one by one or in columns, into `Annotations`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.types import Float, Instances, Int, Mask
from pelagia.data.annotations import Annotations, build_shapes, starts_of

__all__ = ["AnnotationBuilder", "Columns"]


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
            starts=starts_of(np.bincount(image, minlength=images)),
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
        return unsorted.take(order, unsorted.starts)

    def _build_columns(self, images: int) -> Annotations:
        """What `build` gives for objects that all came through one `extend`."""
        assert self._columns is not None
        columns = self._columns
        count = len(columns.label)
        none = np.zeros(count, dtype=np.bool_)
        unsorted = Annotations(
            starts=starts_of(np.bincount(columns.image, minlength=images)),
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
        return unsorted.take(np.argsort(columns.image, kind="stable"), unsorted.starts)

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
