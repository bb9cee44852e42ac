"""Axis-aligned boxes: conventions, areas and the IoU family, for numpy arrays and torch tensors alike.

Every function is written once through array-api-compat; what goes in as a tensor comes out as a tensor on the same device, and
gradients flow. Boxes are [..., 4] in continuous pixels (see `pelagia.core.types`).

IoU variants: GIoU, Rezatofighi et al., CVPR 2019 (arXiv:1902.09630); DIoU and CIoU, Zheng et al., AAAI 2020 (arXiv:1911.08287).
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar, get_args

from array_api_compat import array_namespace

from pelagia.errors import OptionError

__all__ = [
    "Convention",
    "Overlap",
    "area",
    "clip",
    "convert",
    "denormalise",
    "intersection",
    "iou",
    "iou_aligned",
    "normalise",
]

ArrayT = TypeVar("ArrayT")  # a numpy array or a torch tensor; the namespace is found at run time

#: `xyxy` corners x1, y1, x2, y2; `xywh` top-left corner and size; `cxcywh` centre and size.
Convention = Literal["xyxy", "xywh", "cxcywh"]
#: Members of the IoU family that `iou_aligned` knows.
Overlap = Literal["iou", "giou", "diou", "ciou"]


def _parts(boxes: Any) -> tuple[Any, Any, Any, Any]:
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def convert(boxes: ArrayT, source: Convention, target: Convention) -> ArrayT:
    """[..., 4] boxes of convention `source` -> `target`.

    Raises:
        OptionError: an unknown convention.
    """
    for name in (source, target):
        if name not in get_args(Convention):
            raise OptionError(f"unknown box convention {name!r}, expected one of {', '.join(get_args(Convention))}")
    if source == target:
        return boxes
    a, b, c, d = _parts(boxes)
    if source == "xywh":
        c, d = a + c, b + d
    elif source == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if target == "xywh":
        c, d = c - a, d - b
    elif target == "cxcywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    result: ArrayT = array_namespace(boxes).stack([a, b, c, d], axis=-1)
    return result


def normalise(boxes: ArrayT, width: float, height: float) -> ArrayT:
    """[..., 4] boxes of any convention in pixels -> fractions of the image's width and height."""
    a, b, c, d = _parts(boxes)
    result: ArrayT = array_namespace(boxes).stack([a / width, b / height, c / width, d / height], axis=-1)
    return result


def denormalise(boxes: ArrayT, width: float, height: float) -> ArrayT:
    """[..., 4] boxes of any convention in fractions of the image's width and height -> pixels."""
    a, b, c, d = _parts(boxes)
    result: ArrayT = array_namespace(boxes).stack([a * width, b * height, c * width, d * height], axis=-1)
    return result


def clip(boxes: ArrayT, width: float, height: float) -> ArrayT:
    """[..., 4] xyxy boxes cut at the border of an image; a box wholly outside becomes one of zero area on the border."""
    xp = array_namespace(boxes)
    a, b, c, d = _parts(boxes)
    columns = [xp.clip(a, 0, width), xp.clip(b, 0, height), xp.clip(c, 0, width), xp.clip(d, 0, height)]
    result: ArrayT = xp.stack(columns, axis=-1)
    return result


def area(boxes: ArrayT) -> ArrayT:
    """[..., 4] xyxy boxes -> [...]: max(0, x2 - x1) * max(0, y2 - y1), in square pixels."""
    xp = array_namespace(boxes)
    x1, y1, x2, y2 = _parts(boxes)
    result: ArrayT = xp.clip(x2 - x1, 0) * xp.clip(y2 - y1, 0)
    return result


def _overlap(a: Any, b: Any) -> Any:
    """Area common to boxes whose leading dimensions broadcast."""
    xp = array_namespace(a, b)
    ax1, ay1, ax2, ay2 = _parts(a)
    bx1, by1, bx2, by2 = _parts(b)
    width = xp.clip(xp.minimum(ax2, bx2) - xp.maximum(ax1, bx1), 0)
    height = xp.clip(xp.minimum(ay2, by2) - xp.maximum(ay1, by1), 0)
    return width * height


def intersection(a: ArrayT, b: ArrayT) -> ArrayT:
    """Boxes [N, 4] and [M, 4] xyxy -> [N, M], the common area of every pair in square pixels."""
    first: Any = a
    second: Any = b
    result: ArrayT = _overlap(first[:, None, :], second[None, :, :])
    return result


def iou(a: ArrayT, b: ArrayT) -> ArrayT:
    """Boxes [N, 4] and [M, 4] xyxy -> [N, M], intersection over union; 0 where both have zero area."""
    xp = array_namespace(a, b)
    common: Any = intersection(a, b)
    area_a: Any = area(a)
    area_b: Any = area(b)
    union = area_a[:, None] + area_b[None, :] - common
    result: ArrayT = common / xp.where(union > 0, union, xp.ones_like(union))
    return result


def iou_aligned(a: ArrayT, b: ArrayT, kind: Overlap = "iou", eps: float = 1e-7) -> ArrayT:
    """Overlap of pairs: boxes [..., 4] and [..., 4] xyxy whose leading dimensions broadcast -> [...].

    With C the smallest box around both, d the distance of the centres and c the diagonal of C:

    - `iou`: |A ∩ B| / |A ∪ B|
    - `giou`: IoU - |C \\ (A ∪ B)| / |C|, in [-1, 1]
    - `diou`: IoU - d² / c²
    - `ciou`: DIoU - alpha v, with v = 4/π² (atan(w_b / h_b) - atan(w_a / h_a))², alpha = v / (1 - IoU + v); alpha is held
      constant in the gradient, as in the paper.

    Denominators are at least `eps`, so that degenerate boxes have a finite value and gradient.

    Raises:
        OptionError: an unknown kind.
    """
    if kind not in get_args(Overlap):
        raise OptionError(f"unknown overlap {kind!r}, expected one of {', '.join(get_args(Overlap))}")
    xp = array_namespace(a, b)
    common: Any = _overlap(a, b)
    area_a: Any = area(a)
    area_b: Any = area(b)
    union = area_a + area_b - common
    value = common / xp.clip(union, eps)
    if kind != "iou":
        value = value - _penalty(a, b, kind, value, union, eps)
    result: ArrayT = value
    return result


def _penalty(a: Any, b: Any, kind: Overlap, overlap: Any, union: Any, eps: float) -> Any:
    """What GIoU, DIoU and CIoU subtract from the IoU."""
    xp = array_namespace(a, b)
    ax1, ay1, ax2, ay2 = _parts(a)
    bx1, by1, bx2, by2 = _parts(b)
    hull_w = xp.maximum(ax2, bx2) - xp.minimum(ax1, bx1)
    hull_h = xp.maximum(ay2, by2) - xp.minimum(ay1, by1)
    if kind == "giou":
        hull = hull_w * hull_h
        return (hull - union) / xp.clip(hull, eps)
    distance = ((ax1 + ax2 - bx1 - bx2) ** 2 + (ay1 + ay2 - by1 - by2) ** 2) / 4
    penalty = distance / xp.clip(hull_w**2 + hull_h**2, eps)
    if kind == "diou":
        return penalty
    turn = xp.atan((bx2 - bx1) / xp.clip(by2 - by1, eps)) - xp.atan((ax2 - ax1) / xp.clip(ay2 - ay1, eps))
    v = 4 / math.pi**2 * turn**2
    alpha = v / xp.clip(1 - overlap + v, eps)
    if hasattr(alpha, "detach"):
        alpha = alpha.detach()
    return penalty + alpha * v
