"""Boundary measures of semantic maps: how well two maps agree near the contours of a class.

Pixel scores hardly notice contours, because most pixels lie inside. Two measures look at nothing else:

- Boundary F-score (Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013). For a class,
  precision P is the share of its predicted boundary pixels within the distance theta of a true boundary pixel, recall R the share
  of its true ones within theta of a predicted one, and F = 2 P R / (P + R). Distances are Euclidean, between pixel centres;
  "within" includes theta itself (the paper has <, which differs only where theta is exactly such a distance).
- Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021): the IoU of two
  bands, the pixels of the true and of the predicted mask within the distance d of the mask's contour; that is, each mask without
  what is left of it after d erosions with a 3 x 3 square.

What the papers leave open is decided here. A pixel that the truth ignores is in no mask, true or predicted, and makes no contour:
what lies there is not known, and a rim that truth and prediction share would reward every prediction. Where a data set ignores a
rim around every object, boundary pixels hardly exist; rely on Boundary IoU there, whose bands reach across the rim.

- A boundary pixel of class c is a pixel of its mask of whose four neighbours (left, right, above, below) at least one lies
  in the image, is not ignored, and is outside the mask. The border of the image makes no boundary pixels: an object cut by it
  does not end there.
- The band of class c is the part of its mask at a chessboard distance of at most d from a pixel that is not ignored and outside
  the mask, or from the outside of the image: as in the paper, the border of the image counts as contour here.

Neither needs a loop over classes: a pixel belongs to it when the smallest or the largest label nearby is not its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.lazy import resolve
from pelagia.core.types import Int, Mask
from pelagia.errors import OptionError

__all__ = ["BOUNDARY_COUNTS", "DEFAULT_BOUNDARY", "BoundaryOptions", "Codes", "Window", "boundary_counts", "halo"]

#: A label map [H, W] with 0 = ignored by the truth, 1 to C = label + 1, above C = of no class.
Codes: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

#: What is counted per class, in the order of the columns of `boundary_counts`.
BOUNDARY_COUNTS: tuple[str, ...] = (
    "true_boundary",
    "true_boundary_found",
    "predicted_boundary",
    "predicted_boundary_right",
    "true_band",
    "predicted_band",
    "common_band",
)

#: theta over the image's diagonal (Csurka et al.), and d over it (Cheng et al.).
_THETA_SHARE = 0.0075
_BAND_SHARE = 0.02

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class BoundaryOptions:
    """The widths of the boundary measures, in pixels; the defaults follow the diagonal of the whole image, never of a window.

    Args:
        theta_px: distance within which boundary pixels find each other; None for 0.0075 of the diagonal.
        band_px: width d of the bands of Boundary IoU, at least 1; None for 2 % of the diagonal, rounded, at least 1.

    Raises:
        OptionError: a width cannot be used.
    """

    theta_px: float | None = None
    band_px: int | None = None

    def __post_init__(self) -> None:
        if self.theta_px is not None and not (math.isfinite(self.theta_px) and self.theta_px >= 0):
            raise OptionError(f"theta_px must be a number of pixels, 0 or more, got {self.theta_px}")
        if self.band_px is not None and not (math.isfinite(self.band_px) and self.band_px >= 1 and self.band_px % 1 == 0):
            raise OptionError(f"band_px must be a whole number of pixels, 1 or more, got {self.band_px}")

    def theta(self, shape: tuple[int, int]) -> float:
        """Theta for an image of height, width `shape`; never more than its diagonal."""
        diagonal = math.hypot(*shape)
        return _THETA_SHARE * diagonal if self.theta_px is None else min(float(self.theta_px), diagonal)

    def band(self, shape: tuple[int, int]) -> int:
        """d for an image of height, width `shape`."""
        return max(round(_BAND_SHARE * math.hypot(*shape)), 1) if self.band_px is None else int(self.band_px)


#: The widths of the papers.
DEFAULT_BOUNDARY = BoundaryOptions()


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image.

    Args:
        origin: row and column, in the image, of the window's first pixel.
        shape: height and width of the image; where the window ends with it, and only there, its edge is the image's border.
        core: rows and columns, in the window, of the pixels that are counted; the others are context.
    """

    origin: tuple[int, int]
    shape: tuple[int, int]
    core: tuple[slice, slice]


def halo(options: BoundaryOptions | None, shape: tuple[int, int]) -> int:
    """Pixels of context that a window of an image of height, width `shape` needs around its core, 0 without boundary measures.

    max(floor(theta) + 1, d): a boundary pixel at the distance theta is known by its neighbours, one pixel farther.
    """
    if options is None:
        return 0
    return max(math.isqrt(_limit(options.theta(shape))) + 1, options.band(shape))


def boundary_counts(truth: Codes, predicted: Codes, classes: int, window: Window, options: BoundaryOptions) -> Int:
    """[C, 7] pixels of the core of a window by class: see `BOUNDARY_COUNTS`.

    Args:
        truth, predicted: codes of the whole window, both 0 where the truth ignores. The context around the core must reach `halo`
            pixels far or to the border of the image.
    """
    core = window.core
    band = options.band(window.shape)
    true_band, predicted_band = (contour_band(codes, window, band)[core] for codes in (truth, predicted))
    common = true_band & predicted_band & (truth[core] == predicted[core])
    columns = [
        *_boundary_matches(truth, predicted, classes, core, options.theta(window.shape)),
        _per_class(truth[core], true_band, classes),
        _per_class(predicted[core], predicted_band, classes),
        _per_class(truth[core], common, classes),
    ]
    return np.stack(columns, axis=1)


def boundary_pixels(codes: Codes) -> Mask:
    """[H, W] the boundary pixels of all classes; at an inner edge of a window what lies beyond counts as ignored."""
    return _unlike(codes, _CROSS)


def contour_band(codes: Codes, window: Window, band: int) -> Mask:
    """[H, W] the bands of all classes; at an inner edge of a window what lies beyond counts as ignored."""
    height, width = codes.shape
    square = np.ones((2 * min(band, height) + 1, 2 * min(band, width) + 1), dtype=np.uint8)
    found = _unlike(codes, square)
    top, left = (max(band - start, 0) for start in window.origin)
    bottom, right = (max(length - band - start, 0) for length, start in zip(window.shape, window.origin, strict=True))
    found[:top] = found[bottom:] = True
    found[:, :left] = found[:, right:] = True
    found &= codes != 0
    return found


def _unlike(codes: Codes, kernel: NDArray[np.uint8]) -> Mask:
    """[H, W] pixels, not ignored, with another code, not ignored, under the kernel."""
    # Ignored pixels must win neither, as what OpenCV puts around an image does not: 0 is the smallest value in the maximum, and
    # 0 - 1 wraps to the largest in the minimum.
    highest: NDArray[Any] = cv2.dilate(codes, kernel)
    lowest: NDArray[Any] = cv2.erode(codes - 1, kernel) + 1
    unlike: Mask = ((highest != codes) | (lowest != codes)) & (codes != 0)
    return unlike


def _per_class(codes: Codes, chosen: Mask, classes: int) -> Int:
    return np.bincount(codes[chosen], minlength=classes + 1)[1 : classes + 1].astype(np.int64)


def _boundary_matches(truth: Codes, predicted: Codes, classes: int, core: tuple[slice, slice], theta: float) -> list[Int]:
    """Four times [C]: true boundary pixels of the core, those within theta of predicted ones, and the reverse of both."""
    true_edge, predicted_edge = boundary_pixels(truth), boundary_pixels(predicted)
    same = true_edge & predicted_edge & (truth == predicted)
    inside = np.zeros(truth.shape, dtype=np.bool_)
    inside[core] = True
    counts: list[Int] = []
    for codes, edge, other_codes, other_edge in (
        (truth, true_edge, predicted, predicted_edge),
        (predicted, predicted_edge, truth, true_edge),
    ):
        counted = edge & inside
        searching, targets = _by_class(codes, counted & ~same, classes), _by_class(other_codes, other_edge, classes)
        near = np.array([_near(*pair, theta) for pair in zip(searching, targets, strict=True)], dtype=np.int64)
        counts += [_per_class(codes, counted, classes), _per_class(codes, counted & same, classes) + near]
    return counts


def _by_class(codes: Codes, chosen: Mask, classes: int) -> list[Int]:
    """For each class [n, 2], rows and columns of its chosen pixels."""
    points = np.argwhere(chosen)
    labels = codes[chosen]
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(1, classes + 2))
    return np.split(points[order], starts)[1:-1]


def _near(points: Int, targets: Int, theta: float) -> int:
    """How many of `points` lie within theta of one of `targets`; by a tree, since contours fill little of an image."""
    if len(points) == 0 or len(targets) == 0:
        return 0
    # Squared distances are whole numbers: a bound half-way to the next one is safe from rounding.
    tree = resolve("scipy.spatial", purpose="measure distances of boundaries").cKDTree(targets)
    distance, _ = tree.query(points, distance_upper_bound=math.sqrt(_limit(theta) + 0.5))
    return int(np.isfinite(distance).sum())


def _limit(theta: float) -> int:
    """The largest whole squared distance within theta; the square of a rounded sqrt(13) may fall just short of 13."""
    return math.floor(theta * theta * (1 + 1e-12))
