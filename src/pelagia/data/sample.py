"""A sample: an image and its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pelagia.core.padding import Window
from pelagia.core.types import Instances, SemanticMap

__all__ = ["Sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and its truth, in pixels of that image.

    Args:
        image: [H, W, C], uint8 or uint16, C = 1 (grey) or 3 (RGB).
        truth: the objects; empty for a background image.
        name: the image's name within its data set, relative, with forward slashes.
        index: position in the data set it came from.
        semantic: the label of every pixel (255 = ignore), for the task `semantic`.
        shown: x1, y1, x2, y2, the pixels of a canvas that show the image, the others being padding; None where all count.
    """

    image: NDArray[Any]
    truth: Instances
    name: str
    index: int
    semantic: SemanticMap | None = None
    shown: Window | None = None
