"""The data types that truth and prediction share.

Conventions, stated once for the whole package:

- Pixel coordinates are continuous. (0, 0) is the outer corner of the top-left pixel, x to the right, y down; the centre of that
  pixel is (0.5, 0.5).
- A box is x1, y1, x2, y2 with x2, y2 on the outer edge, so that width = x2 - x1.
- An oriented box is cx, cy, w, h, angle: w >= h, angle in radians, clockwise on the screen, in [-pi/2, pi/2), for w = h in
  [-pi/4, pi/4).
- Labels are indices into the categories of a data set, 0 to C - 1; the ids of the source live in `Category.id`.
- Geometry on the array side is float64: on a scan of 24,000 pixels float32 resolves only two thousandths of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pelagia.errors import LabelError

__all__ = [
    "BACKGROUND",
    "IGNORE_INDEX",
    "TASKS",
    "Category",
    "Float",
    "Instances",
    "Int",
    "Mask",
    "MaskCrop",
    "PackedCrop",
    "PanopticMap",
    "Prediction",
    "Segment",
    "SemanticMap",
    "Task",
    "ground_label",
]

Float: TypeAlias = NDArray[np.float64]
Int: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Task: TypeAlias = Literal["detect", "oriented", "instance", "semantic", "panoptic", "keypoints"]

#: Every task, in the order in which tables list them.
TASKS: tuple[Task, ...] = ("detect", "oriented", "instance", "semantic", "panoptic", "keypoints")

#: Label of a pixel that is neither learnt nor scored.
IGNORE_INDEX = 255

#: Name of the class of all that is no object, in class maps painted from outlines.
BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class Category:
    """A class of a data set. `id` is the id of the source (COCO's may have gaps); labels elsewhere are positions in the list.

    `keypoints` names the points, `skeleton` joins them by 0-based index pairs, `flip` gives for each point its partner when the
    image is mirrored. `is_thing` is False for the uncountable classes of panoptic data.
    """

    id: int
    name: str
    supercategory: str = ""
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    flip: tuple[int, ...] = ()
    is_thing: bool = True


def ground_label(categories: Sequence[Category]) -> int:
    """The label of what lies between objects in a class map: the class called `BACKGROUND`, in any case, else the first."""
    names = [category.name.strip().casefold() for category in categories]
    return names.index(BACKGROUND) if BACKGROUND in names else 0


@dataclass(frozen=True, slots=True)
class MaskCrop:
    """A binary mask as a crop: `bitmap` [h, w], whose top-left pixel is column `x`, row `y` of the image.

    A crop may reach outside the image (x or y negative) while geometry is in flight; `core.masks.clip` cuts it.
    """

    x: int
    y: int
    bitmap: Mask

    @property
    def area(self) -> int:
        """Number of pixels set."""
        return int(np.count_nonzero(self.bitmap))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the bitmap."""
        height, width = self.bitmap.shape
        return height, width

    def part(self, rows: slice, columns: slice) -> Mask:
        """The bitmap of some rows and columns of the crop."""
        return self.bitmap[rows, columns]


class PackedCrop(MaskCrop):
    """A `MaskCrop` that holds its bitmap as bits, an eighth of the memory, and unpacks it whenever it is asked for."""

    __slots__ = ("_bits", "_shape")
    _bits: NDArray[np.uint8]
    _shape: tuple[int, int]

    def __init__(self, x: int, y: int, bitmap: Mask) -> None:
        for name, value in (("x", x), ("y", y), ("_bits", np.packbits(bitmap)), ("_shape", bitmap.shape)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.x, self.y, self.bitmap)

    @property
    def bitmap(self) -> Mask:
        """[h, w], of its own memory."""
        height, width = self._shape
        return np.unpackbits(self._bits, count=height * width).view(np.bool_).reshape(height, width)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the bitmap."""
        return self._shape

    def part(self, rows: slice, columns: slice) -> Mask:
        """The bitmap of some rows and columns of the crop; other rows are not unpacked."""
        first, last, _ = rows.indices(self._shape[0])
        width, last = self._shape[1], max(first, last)
        start = first * width // 8
        bits = np.unpackbits(self._bits[start : -(-last * width // 8)])[first * width - 8 * start :]
        return bits[: (last - first) * width].view(np.bool_).reshape(last - first, width)[:, columns]


def _flags(count: int) -> Mask:
    return np.zeros(count, dtype=np.bool_)


_EMPTY = np.zeros(0, dtype=np.bool_)


@dataclass(slots=True)
class Instances:
    """N objects of one image, truth or prediction.

    Args:
        labels: [N], class indices.
        boxes: [N, 4] x1, y1, x2, y2 in pixels, or None when only `oriented` is given.
        oriented: [N, 5] cx, cy, w, h, angle, or None.
        scores: [N] in [0, 1] for predictions, None for truth.
        masks: one `MaskCrop` per object, or None.
        keypoints: [N, K, 3] x, y, v with v = 0 not labelled, 1 hidden, 2 visible (for predictions: a score), or None.
        crowd: [N], a region of many objects: matches any number of predictions, never counts as missed (COCO `iscrowd`).
        difficult: [N], neither rewarded nor punished in Pascal VOC and DOTA scores.
        ignore: [N], a region to leave out of training and scores altogether.
        areas: [N] in square pixels as the source states them (COCO bins by them), or None to derive them.

    At least one of `boxes` and `oriented` is set; `box_array` gives axis-aligned boxes in either case.

    Raises:
        LabelError: lengths or shapes disagree.
    """

    labels: Int
    boxes: Float | None = None
    oriented: Float | None = None
    scores: Float | None = None
    masks: tuple[MaskCrop, ...] | None = None
    keypoints: Float | None = None
    crowd: Mask = field(default_factory=lambda: _EMPTY)
    difficult: Mask = field(default_factory=lambda: _EMPTY)
    ignore: Mask = field(default_factory=lambda: _EMPTY)
    areas: Float | None = None

    def __post_init__(self) -> None:
        self.labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        count = len(self.labels)
        for name, width in (("boxes", 4), ("oriented", 5)):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, np.asarray(value, dtype=np.float64).reshape(-1, width))
        if self.boxes is None and self.oriented is None:
            raise LabelError("an Instances needs boxes or oriented boxes; give an empty [0, 4] array for no object")
        for name in ("scores", "areas"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, np.asarray(value, dtype=np.float64).reshape(-1))
        if self.keypoints is not None:
            self.keypoints = np.asarray(self.keypoints, dtype=np.float64)
            if self.keypoints.ndim != 3 or self.keypoints.shape[2] != 3:
                raise LabelError(f"keypoints must have shape [N, K, 3], got {list(self.keypoints.shape)}")
        if self.masks is not None:
            self.masks = tuple(self.masks)
        for name in ("crowd", "difficult", "ignore"):
            value = np.asarray(getattr(self, name), dtype=np.bool_).reshape(-1)
            setattr(self, name, _flags(count) if len(value) == 0 else value)
        for name in _NAMES:
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise LabelError(f"{name} has {len(value)} entries for {count} labels")

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def empty(cls, *, oriented: bool = False, scores: bool = False) -> Instances:
        """No object at all."""
        return cls(
            labels=np.zeros(0, dtype=np.int64),
            boxes=None if oriented else np.zeros((0, 4)),
            oriented=np.zeros((0, 5)) if oriented else None,
            scores=np.zeros(0) if scores else None,
        )

    @property
    def box_array(self) -> Float:
        """[N, 4] axis-aligned boxes: `boxes`, or the tight bounds of `oriented`."""
        if self.boxes is not None:
            return self.boxes
        assert self.oriented is not None
        cx, cy, w, h, angle = self.oriented.T
        cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
        half_w, half_h = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
        return np.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], axis=1)

    def select(self, index: NDArray[Any] | Sequence[int]) -> Instances:
        """The objects at `index` (integers, in that order, or a boolean mask [N])."""
        where = np.asarray(index)
        where = np.flatnonzero(where) if where.dtype == np.bool_ else where.astype(np.int64).reshape(-1)
        values: dict[str, Any] = {}
        for name in _NAMES:
            value = getattr(self, name)
            if name == "masks":
                values["masks"] = None if value is None else tuple(value[i] for i in where)
            else:
                values[name] = None if value is None else value[where]
        return Instances(**values)

    def replace(self, **changes: Any) -> Instances:
        """A copy with some fields exchanged."""
        return replace(self, **changes)

    @staticmethod
    def concatenate(parts: Sequence[Instances]) -> Instances:
        """All objects of `parts` in order; an optional field must be set in all parts or in none.

        Raises:
            LabelError: no part, or a field set in some parts only.
        """
        if not parts:
            raise LabelError("cannot concatenate zero Instances; use Instances.empty()")
        values: dict[str, Any] = {}
        for name in _NAMES:
            column = [getattr(part, name) for part in parts]
            present = [value is not None for value in column]
            if not any(present):
                values[name] = None
            elif not all(present):
                raise LabelError(f"{name} is set in some parts only")
            elif name == "masks":
                values["masks"] = tuple(mask for value in column for mask in value)
            else:
                values[name] = np.concatenate(column)
        return Instances(**values)


#: Asked for once: a training sample makes a dozen `Instances`.
_NAMES = tuple(item.name for item in fields(Instances))


@dataclass(slots=True)
class SemanticMap:
    """A class for every pixel: `labels` [H, W] uint8 or uint16 (255 = ignore), optional `scores` [C, H, W].

    `blend` is how tiles became one map (exact, hann or cut, see `pelagia.infer.dense`); None for what is not made of tiles.
    """

    labels: NDArray[np.uint8] | NDArray[np.uint16]
    scores: NDArray[np.float32] | None = None
    blend: str | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a `PanopticMap`."""

    id: int
    label: int
    score: float | None = None
    crowd: bool = False


@dataclass(slots=True)
class PanopticMap:
    """A segment for every pixel: `ids` [H, W] int32 (0 = void) and what each id is."""

    ids: NDArray[np.int32]
    segments: tuple[Segment, ...] = ()


Prediction: TypeAlias = Instances | SemanticMap | PanopticMap
