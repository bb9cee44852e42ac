"""Objects of a whole data set in flat arrays: what the matcher compares, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from pelagia.core.lazy import resolve
from pelagia.core.types import Float, Instances, Int, Mask, MaskCrop
from pelagia.errors import EvaluationError

__all__ = ["Kind", "Objects", "Runs", "flatten", "tallest"]

Kind: TypeAlias = Literal["boxes", "oriented", "masks", "keypoints"]

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Masks of N objects as COCO's run lengths: down the columns of the whole image, the first run (maybe 0) of background.

    Args:
        counts: [Q] uint32, mask n owns counts[starts[n]:starts[n + 1]]; background after the last object pixel may be missing.
        starts: [N + 1].
        heights: [N] image heights in pixels; two masks are comparable only in images of one height.
    """

    counts: NDArray[np.uint32]
    starts: Int
    heights: Int

    def __len__(self) -> int:
        return len(self.heights)

    @classmethod
    def of(cls, items: Sequence[NDArray[np.uint32]], heights: Int) -> Runs:
        """Join the run lengths of single masks."""
        starts = np.zeros(len(items) + 1, dtype=np.int64)
        np.cumsum([len(item) for item in items], out=starts[1:])
        counts = np.concatenate(items).astype(np.uint32) if len(items) else np.zeros(0, dtype=np.uint32)
        return cls(counts, starts, np.asarray(heights, dtype=np.int64))

    def select(self, index: NDArray[Any]) -> Runs:
        """The masks at integer `index`, in that order."""
        if len(index) == len(self) and (index == np.arange(len(self))).all():
            return self
        lengths = np.diff(self.starts)[index]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        where = np.arange(starts[-1]) + np.repeat(self.starts[:-1][index] - starts[:-1], lengths)
        return Runs(self.counts[where], starts, self.heights[index])

    def areas_and_bounds(self) -> tuple[Float, Float]:
        """[N] number of object pixels, and [N, 4] tight x1, y1, x2, y2; zeros for an empty mask."""
        kernels = resolve("pelagia.metrics.kernels", purpose="compare masks")
        areas, bounds = kernels.measure_runs(self.counts, self.starts, self.heights)
        return areas, bounds


_NO_FLAGS = np.zeros(0, dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """N objects, truth or predictions, of all images, the images in order.

    Args:
        image: [N] position of the image in the sequence, ascending.
        label: [N] class index.
        bounds: [N, 4] tight axis-aligned bounds in pixels.
        area: [N] square pixels of the shape compared: box, oriented box, mask; for keypoints the area that scales OKS.
        size: [N] square pixels by which the object is binned into COCO's area ranges.
        score: [N] for predictions.
        oriented, runs, keypoints: the shapes, when that kind is compared.
        crowd, difficult, ignore: [N] flags as in `Instances`.
    """

    kind: Kind
    image: Int
    label: Int
    bounds: Float
    area: Float
    size: Float
    score: Float | None = None
    oriented: Float | None = None
    runs: Runs | None = None
    keypoints: Float | None = None
    crowd: Mask = field(default_factory=lambda: _NO_FLAGS)
    difficult: Mask = field(default_factory=lambda: _NO_FLAGS)
    ignore: Mask = field(default_factory=lambda: _NO_FLAGS)

    def __post_init__(self) -> None:
        for name in ("crowd", "difficult", "ignore"):
            if len(getattr(self, name)) == 0 and len(self.image):
                object.__setattr__(self, name, np.zeros(len(self.image), dtype=np.bool_))

    def __len__(self) -> int:
        return len(self.image)

    def select(self, index: NDArray[Any]) -> Objects:
        """The objects at integer `index`, in that order."""

        def pick(value: Any) -> Any:
            if value is None or isinstance(value, str):
                return value
            return value.select(index) if isinstance(value, Runs) else value[index]

        return Objects(**{item.name: pick(getattr(self, item.name)) for item in fields(self)})

    def replace(self, **changes: Any) -> Objects:
        """A copy with some fields exchanged."""
        return Objects(**{item.name: changes.get(item.name, getattr(self, item.name)) for item in fields(self)})


def tallest(*sides: Sequence[Instances]) -> Int:
    """[images] a height in pixels that holds the masks of every side, image by image; for `flatten`."""
    count = max((len(side) for side in sides), default=0)
    heights = np.ones(count, dtype=np.int64)
    for side in sides:
        for index, item in enumerate(side):
            bottoms = [crop.y + crop.bitmap.shape[0] for crop in item.masks or ()]
            heights[index] = max(int(heights[index]), *bottoms, 1)
    return heights


def flatten(items: Sequence[Instances], kind: Kind, *, what: str, heights: Int | None = None) -> Objects:
    """Join the objects of all images. `what` ("truth", "predictions") names them in errors.

    Args:
        heights: [images] image heights for masks; by default the tallest extent, but both sides must use the same (`tallest`).

    Raises:
        EvaluationError: shapes of this kind are absent, scores in some images only, or a coordinate is not finite.
    """
    counts = np.array([len(item) for item in items], dtype=np.int64)
    image = np.repeat(np.arange(len(items), dtype=np.int64), counts)
    used = [item for item in items if len(item)]
    label = _join([item.labels for item in used], np.int64)
    boxes = np.concatenate([item.box_array for item in used]) if used else np.zeros((0, 4))
    shapes: dict[str, Any] = {}
    if kind == "oriented":
        column = [_need(item.oriented, "oriented boxes", what) for item in used]
        oriented: Float = np.concatenate(column) if column else np.zeros((0, 5))
        shapes["oriented"], area = oriented, oriented[:, 2] * oriented[:, 3]
        boxes = Instances(labels=label, oriented=oriented).box_array
    elif kind == "masks":
        runs = _runs(items, tallest(items) if heights is None else heights, what)
        shapes["runs"] = runs
        area, boxes = runs.areas_and_bounds()
    else:
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        if kind == "keypoints":
            shapes["keypoints"] = _keypoints(used, what)
    numbers = [boxes, shapes.get("oriented", np.zeros((len(label), 0)))]
    if kind == "keypoints":
        numbers.append(shapes["keypoints"].reshape(len(label), 3 * shapes["keypoints"].shape[1]))
    broken = np.flatnonzero(~np.isfinite(np.concatenate(numbers, axis=1)).all(axis=1))
    if len(broken):
        raise EvaluationError(
            f"{len(broken)} shapes of the {what} hold NaN or infinity; mend or remove them", where=f"image {image[broken[0]]}"
        )
    stated = _join([np.full(len(item), np.nan) if item.areas is None else item.areas for item in used], np.float64)
    size = np.where(np.isnan(stated), area, stated)
    scored = [item.scores is not None for item in used]
    if any(scored) and not all(scored):
        raise EvaluationError(f"some images of the {what} have scores and some have none", where=what)
    return Objects(
        kind,
        image,
        label,
        boxes,
        size if kind == "keypoints" else area,
        size,
        score=_join([item.scores for item in used if item.scores is not None], np.float64) if all(scored) else None,
        crowd=_join([item.crowd for item in used], np.bool_),
        difficult=_join([item.difficult for item in used], np.bool_),
        ignore=_join([item.ignore for item in used], np.bool_),
        **shapes,
    )


def _join(parts: Sequence[NDArray[Any]], dtype: type[_Scalar]) -> NDArray[_Scalar]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]).astype(dtype)


def _need(value: Float | None, name: str, what: str) -> Float:
    if value is not None:
        return value
    raise EvaluationError(f"the {what} hold no {name}; evaluate them as plain boxes, or give {name}")


def _keypoints(used: Sequence[Instances], what: str) -> Float:
    """[N, K, 3]; objects with fewer points are filled up with unlabelled ones."""
    column = [_need(item.keypoints, "keypoints", what) for item in used]
    points = max((item.shape[1] for item in column), default=0)
    filled = [np.pad(item, ((0, 0), (0, points - item.shape[1]), (0, 0))) for item in column]
    return np.concatenate(filled) if filled else np.zeros((0, 0, 3))


def _runs(items: Sequence[Instances], heights: Int, what: str) -> Runs:
    counts: list[NDArray[np.uint32]] = []
    for item, height in zip(items, heights.tolist(), strict=True):
        if len(item) and item.masks is None:
            raise EvaluationError(f"the {what} hold no masks; evaluate them as boxes, or give masks")
        counts += [_crop_runs(crop, height) for crop in item.masks or ()]
    return Runs.of(counts, np.repeat(heights, [len(item) for item in items]))


def _crop_runs(crop: MaskCrop, height: int) -> NDArray[np.uint32]:
    """The run lengths of a crop in an image of that height; what lies left of or above the image is cut."""
    bitmap = crop.bitmap[max(-crop.y, 0) :, max(-crop.x, 0) :]
    x, y = max(crop.x, 0), max(crop.y, 0)
    rows, columns = bitmap.shape
    # A row of background below, so that no run passes from one column into the next.
    flat = np.zeros((columns, rows + 1), dtype=np.bool_)
    flat[:, :rows] = bitmap.T
    changes = np.flatnonzero(np.diff(flat.ravel(), prepend=False))
    place = (x + changes // (rows + 1)) * height + y + changes % (rows + 1)
    counts: NDArray[np.uint32] = np.diff(place, prepend=0).astype(np.uint32)
    return counts
